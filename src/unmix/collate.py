"""Mixtures in anyone's data pipeline: a collate function, or a transform of a batch, that draws."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import default_collate

from unmix.errors import UserError
from unmix.mixtures import Draw, Operator, UnMix
from unmix.randomness import generator_for
from unmix.transfer import to_device

__all__ = ["DrawnBatch", "MixedBatch"]


class DrawnBatch(NamedTuple):
    """A batch and the mixtures that were drawn for it: `batch, draw = drawn`.

    Attributes:
        batch: What the collate function makes of the samples, not mixed yet.
        draw: For its images; `draw.apply(images)` mixes, and `unmix.shared_loss` takes it.
    """

    batch: Any
    draw: Draw

    def to(self, device: torch.device | str, non_blocking: bool = True) -> DrawnBatch:
        """The same with the batch's tensors on the device; a draw stays on the CPU.

        Lightning calls this, which would else take the draw to pieces.
        """
        del non_blocking  # for callers that always say it; copies never block here
        return DrawnBatch(_each(self.batch, lambda rows: to_device(rows, device)), self.draw)

    def pin_memory(self) -> DrawnBatch:
        """The same with the batch's tensors in pinned memory; `DataLoader` calls this."""
        return DrawnBatch(_each(self.batch, Tensor.pin_memory), self.draw)


@dataclass(frozen=True)
class MixedBatch:
    """Collates samples and draws their mixtures.

        DataLoader(images, batch_size=256, collate_fn=MixedBatch(UnMix()), drop_last=True)

    Samples are images (C, H, W), or tuples, lists or dicts that hold them, as torchvision's v2
    transforms give them: `(view_1, view_2)`, `(image, label)`. The first image of a sample is the
    one that is drawn for; a draw can be applied to every other view of that size. Where the images
    have four dimensions, (N, C, H, W), they are a batch already and stay as they are, so this also
    is a transform of a batch, called as torchvision's `CutMix` is: `mixed(images, labels)`.

    The numbers depend on the seed and on the images alone: on the middle row of each first image
    of the batch. So the same batch gets the same mixture whichever worker collates it, after
    whatever other batches, and in a run that was resumed; other crops or another order get another
    one. For images on a GPU the row is fetched, which waits for it: in a training loop use
    `mixture.draw(images.shape, generator)`.

    Args:
        mixture: What is drawn, such as `UnMix()` or `ImageMixture()`.
        seed: Of the draws.
        collate: Makes a batch of a list of samples.

    Raises:
        UserError: if the mixture is none, or needs features of the batch, which a data worker does
            not have; in a call, if there is no image among the samples, or one image only.
    """

    mixture: Operator = UnMix()  # noqa: RUF009 - frozen
    seed: int = 0
    collate: Callable[[list[Any]], Any] = default_collate

    def __post_init__(self) -> None:
        if isinstance(self.mixture, type) or not callable(getattr(self.mixture, "draw", None)):
            raise UserError(
                f"MixedBatch: mixture {self.mixture!r} cannot draw; give one such as unmix.UnMix()."
            )
        if getattr(self.mixture, "needs_features", False):
            raise UserError(
                "MixedBatch: this pairing is by features, which a data worker does not have; draw "
                "in the training loop: mixture.draw(images.shape, generator, features)."
            )

    def __call__(self, *samples: Any) -> DrawnBatch:
        """Collate a list of samples, unless they are a batch, and draw for its images."""
        given: Any = samples[0] if len(samples) == 1 else samples
        batch = given if _first_image(given).ndim == 4 else self.collate(given)
        images = _first_image(batch)
        generator = generator_for(self.seed, "mixture", _digest(images))
        return DrawnBatch(batch, self.mixture.draw(images.shape, generator))


def _first_image(samples: Any) -> Tensor:
    for tensor in _tensors(samples):
        if tensor.ndim in (3, 4):
            return tensor
    raise UserError(
        "MixedBatch: there is no image tensor (C, H, W) among the samples; end the transform with "
        "v2.ToImage() and v2.ToDtype(torch.float32, scale=True)."
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of tuples, lists and dicts, in their order."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, Mapping):  # one that is no dict
            yield from _tensors(dict(leaf))
        elif isinstance(leaf, Tensor):
            yield leaf


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change every tensor of tuples, lists and dicts; leave anything else, such as names."""

    def changed(leaf: Any) -> Any:
        if isinstance(leaf, Mapping):
            return _each(dict(leaf), change)
        return change(leaf) if isinstance(leaf, Tensor) else leaf

    return tree_map(changed, value)


def _digest(images: Tensor) -> int:
    """A number that differs where the images do, from a row of each: the whole costs too much."""
    row = images[:, :, images.shape[2] // 2].detach().cpu().contiguous()
    shown = row.view(torch.uint8).numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(shown, digest_size=8).digest(), "little")

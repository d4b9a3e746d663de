"""Mixtures in a data pipeline: a collate function, or a transform of a batch."""

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
    """A batch and the mixtures drawn for it: `batch, draw = drawn`.

    Attributes:
        batch: The collated samples, not mixed.
        draw: Of its images; `draw.apply(images)` mixes, and `unmix.shared_loss` takes it.
    """

    batch: Any
    draw: Draw

    def to(self, device: torch.device | str, non_blocking: bool = True) -> DrawnBatch:
        """Return it with the batch's tensors on the device; the draw stays on the CPU.

        Lightning calls this; without it, it would move each tensor of the draw.
        """
        del non_blocking  # accepted for callers that pass it; copies never block here
        return DrawnBatch(_each(self.batch, lambda rows: to_device(rows, device)), self.draw)

    def pin_memory(self) -> DrawnBatch:
        """Return it with the batch's tensors in pinned memory; `DataLoader` calls this."""
        return DrawnBatch(_each(self.batch, Tensor.pin_memory), self.draw)


@dataclass(frozen=True)
class MixedBatch:
    """Collates samples and draws their mixtures.

        DataLoader(images, batch_size=256, collate_fn=MixedBatch(UnMix()), drop_last=True)

    Samples are images (C, H, W), or tuples, lists or dicts with images, as from torchvision's v2
    transforms: `(view_1, view_2)`, `(image, label)`. Mixtures are drawn for the first image of each
    sample; the draw can be applied to other views of the same size, and one of several views of an
    image (`ScaleMix()`) takes these as `draw.apply(view, others)`. Images with four dimensions,
    (N, C, H, W), are a batch already and are not collated, so this also works as a transform of a
    batch, called like torchvision's `CutMix`: `mixed(images, labels)`.

    The random numbers depend only on the seed and the images (the middle row of the first image of
    each sample). So a batch gets the same mixture from any worker and in a resumed run; other crops
    or another order get another one. With images on a GPU this synchronizes: in a training loop use
    `mixture.draw(images.shape, generator)`.

    Args:
        mixture: The operator, such as `UnMix()` or `ImageMixture()`.
        seed: Seed of the draws.
        collate: Collates a list of samples into a batch.

    Raises:
        UserError: if `mixture` is not an operator, or needs features of the batch, which a data
            worker does not have; when called, if the samples have no image, or one of more than
            three dimensions, or there is only one.
    """

    mixture: Operator = UnMix()  # noqa: RUF009 - frozen
    seed: int = 0
    collate: Callable[[list[Any]], Any] = default_collate

    def __post_init__(self) -> None:
        if isinstance(self.mixture, type) or not callable(getattr(self.mixture, "draw", None)):
            raise UserError(
                f"MixedBatch: mixture {self.mixture!r} cannot draw; give one such as unmix.UnMix()."
            )
        if getattr(self.mixture, "needs_attention", False):
            raise UserError(
                "MixedBatch: this mixture is where an encoder looks, which a data worker does not "
                "know; draw in the training loop: mixture.draw(images.shape, generator, None, map)."
            )
        if getattr(self.mixture, "needs_features", False):
            raise UserError(
                "MixedBatch: this pairing is by features, which a data worker does not have; draw "
                "in the training loop: mixture.draw(images.shape, generator, features)."
            )

    def __call__(self, *samples: Any) -> DrawnBatch:
        """Collate a list of samples, unless they are a batch already, and draw its mixtures."""
        given: Any = samples[0] if len(samples) == 1 else samples
        _check_samples(given)
        batch = given if _first_image(given).ndim == 4 else self.collate(given)
        images = _first_image(batch)
        generator = generator_for(self.seed, "mixture", _digest(images))
        if getattr(self.mixture, "needs_pixels", False):
            return DrawnBatch(batch, self.mixture.draw_for(images, generator))  # type: ignore[attr-defined]
        return DrawnBatch(batch, self.mixture.draw(images.shape, generator))


def _check_samples(given: Any) -> None:
    """Check that a list is not one of samples that are batches of their own, such as of views."""
    if not isinstance(given, list) or len(given) < 2:
        return
    shapes = [next((t.shape for t in _tensors(each) if t.ndim > 2), ()) for each in given]
    if all(len(shape) > 3 for shape in shapes):
        raise UserError(
            f"MixedBatch: each of {len(given)} samples has a tensor {tuple(shapes[0])}; give its "
            "views as a tuple, each (C, H, W). What is collated already is no list: "
            "mixed(images, labels), or mixed(*batch)."
        )


def _first_image(samples: Any) -> Tensor:
    for tensor in _tensors(samples):
        if tensor.ndim in (3, 4):
            return tensor
    raise UserError(
        "MixedBatch: there is no image tensor (C, H, W) among the samples; end the transform with "
        "v2.ToImage() and v2.ToDtype(torch.float32, scale=True)."
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    """Iterate over the tensors within tuples, lists and dicts, in order."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, Mapping):  # one that is no dict
            yield from _tensors(dict(leaf))
        elif isinstance(leaf, Tensor):
            yield leaf


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor within tuples, lists and dicts; keep everything else."""

    def changed(leaf: Any) -> Any:
        if isinstance(leaf, Mapping):
            return _each(dict(leaf), change)
        return change(leaf) if isinstance(leaf, Tensor) else leaf

    return tree_map(changed, value)


def _digest(images: Tensor) -> int:
    """A hash of the middle row of each image; hashing whole images would be slow."""
    row = images[:, :, images.shape[2] // 2].detach().cpu().contiguous()
    shown = row.view(torch.uint8).numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(shown, digest_size=8).digest(), "little")

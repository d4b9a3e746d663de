"""Predictions of a contrastive method over images as classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from unmix.config import Settings
from unmix.data import ImageSet, TensorImages, read_uint8
from unmix.hardware.devices import Machine
from unmix.memory import MemoryBank, Queue
from unmix.methods import InstanceDiscrimination
from unmix.methods.bank import BankMethod
from unmix.methods.moco import MoCo
from unmix.randomness import generator_for
from unmix.views import Views

__all__ = ["Instances", "probabilities_of"]

_CHUNK = 64


@dataclass(frozen=True)
class Instances:
    """Training images, and those that stand beside them as classes.

    Attributes:
        images: The training images.
        index: Those that are predicted for, int64 (N,), N even.
        others: Further classes, int64 (M,).
        size: Side of the views in pixels.
        weight: Of an image in its mixture; its partner has the rest.
        seed: Of the views.
    """

    images: ImageSet
    index: Tensor
    others: Tensor
    size: int
    weight: float
    seed: int

    @property
    def partner(self) -> Tensor:
        """For each of the N images the one that is mixed in: images are mixed in pairs."""
        return torch.arange(len(self.index)) ^ 1

    @cached_property
    def pixels(self) -> Tensor:
        """uint8 (N, 3, H, W)."""
        return self.read(self.index)[0]

    def read(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The pixels of images, and the indices of those that can be read."""
        if isinstance(self.images, TensorImages):
            return self.images.images[index.to(self.images.images.device)].cpu(), index
        return read_uint8(self.images, index, self.size)

    def views(self, settings: Settings, count: int, color_space: str) -> Views:
        """What makes the views of a run."""
        mean, std = self.images.mean, self.images.std
        return Views(settings.views, self.size, mean, std, count, color_space)

    def mixed(self, view: Tensor) -> Tensor:
        """The mixtures of a view (N, C, H, W), in pairs."""
        partners = view[self.partner.to(view.device)]
        return self.weight * view + (1 - self.weight) * partners

    def pictures(self, settings: Settings) -> tuple[Tensor, Tensor]:
        """What the encoder sees: clean views and their mixtures, uint8 (N, 3, size, size), RGB."""
        views = self.views(settings, 1, "RGB")
        n, _, height, width = self.pixels.shape
        draw = views.draw_all(n, height, width, generator_for(self.seed, "plot", "views"))[0]
        view = views.apply(self.pixels, draw)
        mean, std = (torch.tensor(x)[:, None, None] for x in (views.mean, views.std))

        def as_bytes(images: Tensor) -> Tensor:
            return ((images * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)

        return as_bytes(view), as_bytes(self.mixed(view))


@torch.inference_mode()
def probabilities_of(
    method: Any, instances: Instances, settings: Settings, machine: Machine, *, trained: bool
) -> tuple[Tensor, Tensor]:
    """The softmax over images of clean views and of their mixtures.

    Every class is another training image. A queue is filled with keys of other images by the same
    weights, as one that is longer than the data set has several keys of an image. A memory bank is
    that of the checkpoint; before training it is filled by the initial weights.

    Args:
        method: In evaluation mode, on the machine's device.
        instances: The images.
        settings: Of the run.
        machine: Where to compute.
        trained: Whether the method is from the end of the run.

    Returns:
        Distributions (N, C) of the clean images and of the mixtures; columns 0 to N - 1 are the
        images themselves.
    """
    assert isinstance(method, InstanceDiscrimination)
    device = machine.device
    views = instances.views(settings, method.views, method.color_space)
    others = _prepared(method, instances, views, device, trained)
    n, _, height, width = instances.pixels.shape
    draws = views.draw_all(n, height, width, generator_for(instances.seed, "plot", "views"))
    made = [views.apply(instances.pixels.to(device), draw, i) for i, draw in enumerate(draws)]
    made = made[: method.views]
    pair = method.pairs_of(method.views)[0]
    generator = generator_for(instances.seed, "plot", "targets")
    index = instances.index.to(device)
    queries = {v: _in_chunks(method, made[v], v) for v in range(method.views)}
    if isinstance(method, BankMethod):
        target = torch.cat([index[:, None], others.to(device).expand(n, -1)], dim=1)
    else:
        found = [
            method.targets(
                [view[part] for view in made],
                {v: tree_map(lambda rows, part=part: rows[part], q) for v, q in queries.items()},
                index[part], generator,
            )[pair.target]
            for part in torch.arange(n, device=device).split(_CHUNK)
        ]  # fmt: skip
        target = _joined(found)
    clean = _softmax(method, queries[pair.query], target)
    q_mix = _in_chunks(method, instances.mixed(made[pair.query]), pair.query)
    return clean, _softmax(method, q_mix, target)


def _in_chunks(method: InstanceDiscrimination, view: Tensor, number: int) -> Any:
    """The queries of a view."""
    return _joined([method.query(chunk, number) for chunk in view.split(_CHUNK)])


def _joined(parts: Sequence[Any]) -> Any:
    """Tensors, or tuples of them, of consecutive images as one."""
    return tree_map(lambda *rows: torch.cat(rows), *parts)


def _softmax(method: InstanceDiscrimination, query: Any, target: Any) -> Tensor:
    """Distributions (N, C) in float64, on the CPU; the mean of those of a query's parts."""
    parts = []
    for start in range(0, len(tree_leaves(query)[0]), _CHUNK):
        some = tree_map(lambda rows, start=start: rows[start : start + _CHUNK], query)
        logits = method.logits(some, target)
        parts.append(torch.stack([m.double().cpu().softmax(dim=1) for m in logits]).mean(dim=0))
    return torch.cat(parts)


def _prepared(
    method: InstanceDiscrimination, instances: Instances, views: Views, device: torch.device,
    trained: bool,
) -> Tensor:  # fmt: skip
    """Fill the method's memory with other images; gives those that are classes."""
    queues = [
        (parent, name)
        for parent in method.modules()
        for name, child in parent.named_children()
        if isinstance(child, Queue)
    ]
    others = instances.others
    if isinstance(method, MoCo):
        others = others[: len(method.queue)]
    if queues:
        everything = others if isinstance(method, MoCo) else torch.cat([others, instances.index])
        for parent, name in queues:
            old = getattr(parent, name)
            size = max(1, min(len(everything), len(old)))
            setattr(parent, name, Queue(size, old.keys.shape[1], generator_for(0)).to(device))
        _fill(method, instances, views, everything, device)
    elif isinstance(method, BankMethod) and not trained:
        for module in method.modules():
            if isinstance(module, MemoryBank):
                module.momentum = 0.0  # the random start does not remain
        _fill(method, instances, views, torch.cat([others, instances.index]), device)
    return others


def _fill(
    method: InstanceDiscrimination, instances: Instances, views: Views, index: Tensor,
    device: torch.device,
) -> None:  # fmt: skip
    """Let the method remember images, as in training, by its present weights."""
    generator = generator_for(instances.seed, "plot", "memory")
    for chunk in index.split(_CHUNK):
        pixels, kept = instances.read(chunk)
        if not len(kept):
            continue
        made = views(pixels.to(device), generator)[: method.views]
        needed = {*method.memory_queries, *method.target_queries}
        queries = method.queries(made, (), needed)
        where = kept.to(device)
        targets = method.targets(made, queries, where, generator)
        method.update_memory(queries, targets, where)

"""The softmax over images of clean and mixed images, before and after training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unmix.commands.checkpoints import load_method
from unmix.commands.plots.drawn import Drawn, Request
from unmix.commands.plots.instances import Instances, probabilities_of
from unmix.commands.plots.opened import OpenRun, open_runs
from unmix.config import Settings
from unmix.data import ImageSet, StreamedImages, TensorImages, read_uint8
from unmix.data.fingerprint import Fingerprint
from unmix.display import method_name
from unmix.errors import UserError, check_number
from unmix.figures.softmax import BARS, SoftmaxInput, SoftmaxModel, instance_softmax
from unmix.hardware.threads import CoreMeter
from unmix.methods import METHODS, method_class
from unmix.names import shown
from unmix.randomness import generator_for
from unmix.training.console import quiet_libraries
from unmix.training.run.data_record import check_there
from unmix.training.run.initial import start_of
from unmix.training.run.parts import build_method, load_split

__all__ = ["softmax", "without_softmax"]

_IMAGES, _PAIRS = 256, 2
# Beside the images that are predicted for; encoding more takes long on a CPU.
_OTHERS = 4096

_PROTOTYPES = "a softmax over prototypes"
_AGREEMENT = "a loss that brings views of an image together without negatives"
_STATISTICS = "a loss over the statistics of the batch's embeddings"
_INSTEAD = {
    "all4one": "a softmax of neighbors and of centroids over the queries of a batch",
    "barlow": _STATISTICS,
    "byol": _AGREEMENT,
    "deepclusterv2": _PROTOTYPES,
    "dino": _PROTOTYPES,
    "distill": "a loss that compares features with those of its teacher",
    "ibot": f"{_PROTOTYPES}, of images and of patches",
    "ijepa": "a loss that predicts the features of hidden patches",
    "lejepa": "a loss that predicts the center of an image's views",
    "mae": "a loss over pixels",
    "nnbyol": "a loss that brings an image and its neighbor together without negatives",
    "ressl": "a softmax over a queue of other images, without the image itself",
    "simdino": "a loss over the coding rate of the batch's features",
    "simmim": "a loss over pixels",
    "simsiam": _AGREEMENT,
    "swav": _PROTOTYPES,
    "tico": _STATISTICS,
    "vicreg": _STATISTICS,
    "wmse": _AGREEMENT.replace("without negatives", "after whitening"),
}
"""What a method has that does not classify each image among the others."""


@dataclass(frozen=True)
class _Measured:
    """Predictions of one model: for clean and mixed images (N, C), C classes."""

    label: str
    stage: str
    clean: Tensor
    mixed: Tensor


def softmax(request: Request) -> Drawn:
    """Softmax over images of clean images and their mixtures, by each run's weights."""
    count, weight = request.option("images", _IMAGES), request.option("weight", 0.5)
    seed = request.option("seed", 0)
    check_number("images", count, at_least=4)
    check_number("weight", weight, above=0, at_most=1)
    check_number("seed", seed, at_least=0)
    quiet_libraries()
    cores = CoreMeter()
    runs = open_runs(request)
    for opened in runs:
        _check_contrastive(opened)
    images = _images(runs, request)
    instances = _instances(images, count, seed, weight, runs)
    measured: list[_Measured] = []
    for opened in runs:
        with opened.computing(request, cores):
            measured += _of_run(opened, instances, runs, request)
    models = _columns(measured, runs)
    shown_images, pairs = _pictures(instances, runs[0])
    caption = _caption(instances, runs, measured)
    figure = instance_softmax(
        shown_images,
        [_model(label, each, pairs) for label, each in models],
        caption=caption,
        **request.how,
    )
    return Drawn(figure, *_table(measured, instances), caption)


def _check_contrastive(opened: OpenRun) -> None:
    """Check that the method of a run has a softmax over images.

    Raises:
        UserError: if it has none, with what it has instead.
    """
    if (reason := without_softmax(opened.run.settings.run.method)) is not None:
        raise UserError(f"{opened.path}: {reason}")


def without_softmax(method: str) -> str | None:
    """Why a method has no softmax over images, and which have; None if it has one."""
    if method_class(method).contrastive:
        return None
    *others, last = [name for name, kind in METHODS.items() if kind.contrastive]
    return (
        f"{method_name(method)} has {_INSTEAD.get(method, 'another loss')}, and no softmax in "
        f"which each image is a class; give a run of {', '.join(others)} or {last}."
    )


def _images(runs: Sequence[OpenRun], request: Request) -> ImageSet:
    """The training images, the same for all runs."""
    first = runs[0].run.settings.run
    data_dir = request.option("data_dir") or first.data_dir
    check_there(first.data)
    from dataclasses import replace

    seen: dict[str, Fingerprint] = {}
    images = load_split(replace(first, data_dir=data_dir), "pretrain", seen)
    for opened in runs:
        own = opened.run.settings.run
        if (
            opened.run.record is not None
            and (clause := opened.run.record.difference(seen)) is not None
        ):
            raise UserError(
                f"{opened.path}: was not trained on these images of {shown(images.name)} "
                f"({clause}); give runs that were trained on the same."
            )
        for name in ("limit", "size"):
            if getattr(own, name) != getattr(first, name):
                raise UserError(
                    f"{opened.path}: its {name} is {getattr(own, name)}, that of {runs[0].path} "
                    f"{getattr(first, name)}; give runs on the same images."
                )
    if len(images) < 4:
        raise UserError(
            f"{runs[0].path}: was trained on {len(images)} images; the figure needs 4 or more."
        )
    return images


def _instances(
    images: ImageSet, count: int, seed: int, weight: float, runs: Sequence[OpenRun]
) -> Instances:
    order = torch.randperm(len(images), generator=generator_for(seed, "plot", "softmax"))
    count = min(count, len(images)) // 2 * 2
    size = runs[0].run.settings.run.size
    assert size is not None
    index = _readable(images, order[:count], size)
    return Instances(images, index, order[count : count + _OTHERS], size, weight, seed)


def _readable(images: ImageSet, index: Tensor, size: int) -> Tensor:
    """The images that can be read, in an even number."""
    if isinstance(images, TensorImages):
        return index
    assert isinstance(images, StreamedImages)
    _, kept = read_uint8(images, index, size)
    if len(kept) < 4:
        raise UserError(f"{images.name}: fewer than 4 of its images can be read.")
    return kept[: len(kept) // 2 * 2]


def _of_run(
    opened: OpenRun, instances: Instances, runs: Sequence[OpenRun], request: Request
) -> list[_Measured]:
    run = opened.run
    settings, n = run.settings, len(instances.images)
    stages: dict[str, Any] = {}
    alike = [other for other in runs if _beginning(other.run.settings) == _beginning(settings)]
    if alike[0] is opened:
        stages["before"] = lambda: build_method(
            settings, n, instances.size, start_of(settings.model)
        )
    stages["after"] = lambda: load_method(opened.path)
    found = []
    for stage, build in stages.items():
        request.say(f"{opened.label}, {stage} training: {len(instances.index)} images, mixed too")
        method = build().requires_grad_(False).eval().to(run.machine.device)
        clean, mixed = probabilities_of(
            method, instances, settings, run.machine, trained=stage == "after"
        )
        found.append(_Measured(opened.label, stage, clean, mixed))
    return found


def _beginning(settings: Settings) -> tuple[Any, ...]:
    """What decides the initial weights, and the views."""
    run_ = settings.run
    return run_.method, run_.seed, settings.model, tuple(settings.method.items()), settings.views


def _columns(measured: Sequence[_Measured], runs: Sequence[OpenRun]) -> list[tuple[str, _Measured]]:
    epochs = {opened.label: opened.run.settings.run.epochs for opened in runs}
    before = [each for each in measured if each.stage == "before"]
    found = []
    for each in measured:
        if each.stage == "before":
            label = "before training" if len(before) == 1 else f"{each.label},\nbefore training"
        else:
            count = epochs[each.label]
            label = f"{each.label},\n{count} epoch{'s' if count > 1 else ''}"
        found.append((label, each))
    return found


def _shown_pairs(instances: Instances, clean: Tensor) -> list[int]:
    """The pairs of the figure, by their first image: such as have much to see."""
    contrast = clean.float().std(dim=(1, 2, 3)).view(-1, 2).amin(dim=1)
    good = (contrast >= contrast.median()).nonzero().flatten().tolist()
    return [2 * pair for pair in good[:_PAIRS]]


def _pictures(instances: Instances, opened: OpenRun) -> tuple[list[SoftmaxInput], list[int]]:
    """Rows of the figure: two clean images and their mixture; and the pairs."""
    clean, mixed = instances.pictures(opened.run.settings)
    weight, pairs = instances.weight, _shown_pairs(instances, clean)
    label = f"{weight:.2g} A\n+ {1 - weight:.2g} B"
    found = []
    for a in pairs:
        b = int(instances.partner[a])
        found += [
            SoftmaxInput(clean[a], "A", a, b, apart=True),
            SoftmaxInput(clean[b], "B", a, b),
            SoftmaxInput(mixed[a], label, a, b),
        ]
    return found, pairs


def _model(label: str, measured: _Measured, pairs: Sequence[int]) -> SoftmaxModel:
    rows = [
        row for a in pairs for row in (measured.clean[a], measured.clean[a ^ 1], measured.mixed[a])
    ]
    own = measured.clean.diagonal()
    lines = [
        f"clean: H {_mean(_entropy(measured.clean), 2)}, max {_mean(measured.clean.amax(dim=1))}, "
        f"on itself {_mean(own)}",
        f"mixed: H {_mean(_entropy(measured.mixed), 2)}, max {_mean(measured.mixed.amax(dim=1))}, "
        f"on A and B {_mean(_on_both(measured.mixed))}",
    ]
    # A line ends behind a comma, if it must.
    lines = [line.replace(" ", "\u00a0").replace(",\u00a0", ", ") for line in lines]
    return SoftmaxModel(label, [row.double().numpy() for row in rows], lines)


def _on_both(mixed: Tensor) -> Tensor:
    rows = torch.arange(len(mixed))
    return mixed[rows, rows] + mixed[rows, rows ^ 1]


def _mean(values: Tensor, decimals: int | None = None) -> str:
    mean = float(values.mean())
    return f"{mean:.2g}" if decimals is None else f"{mean:.{decimals}f}"


def _entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(dim=1)


def _caption(instances: Instances, runs: Sequence[OpenRun], measured: Sequence[_Measured]) -> str:
    n, weight = len(instances.index), instances.weight
    counts = {each.label: each.clean.shape[1] for each in measured}
    one = len(set(counts.values())) == 1
    classes = " and ".join(
        f"{count:,} (ln {count:,} = {math.log(count):.2f})" + ("" if one else f" for {label}")
        for label, count in (list(counts.items())[:1] if one else counts.items())
    )
    sources = "; ".join(dict.fromkeys(_source(opened.run.settings) for opened in runs))
    return (
        f"Softmax over training images of {shown(instances.images.name)}: the {BARS} largest "
        f"probabilities, and those of A and B; H: entropy in nats. Classes: {classes}. "
        f"{sources}. Mixtures: {weight:.2g} of A and {1 - weight:.2g} of B. Rows are of pairs with "
        f"contrast; below: means over all {n} images and their mixtures. Augmented views by the "
        f"run's settings, encoders in evaluation mode, seed {instances.seed}."
    )


def _source(settings: Settings) -> str:
    name = method_name(settings.run.method)
    method = settings.method
    heat = f"T {method['temperature']:g}" if "temperature" in method else ""
    where = {
        "moco": "the other view's keys, and a queue of other images' keys",
        "densecl": "the global head, with the other view's keys and a queue of other images' keys",
        "insdis": "rows of the memory bank", "cmc": "rows of the memory banks, mean of both halves",
        "pirl": "rows of the memory bank",
        "simclr": "the other views in the batch", "mocov3": "the keys in the batch",
        "nnclr": "the nearest neighbors of the images in the batch",
    }.get(settings.run.method, "other images")  # fmt: skip
    return f"{name} ({heat}): {where}" if heat else f"{name}: {where}"


def _table(
    measured: Sequence[_Measured], instances: Instances
) -> tuple[list[str], list[list[Any]]]:
    columns = [
        "run", "weights", "input", "image", "mixed_with", "classes", "entropy", "max",
        "on_image", "on_mixed_with", *(f"p{rank}" for rank in range(1, BARS + 1)),
    ]  # fmt: skip
    rows = []
    index, partner = instances.index.tolist(), instances.partner.tolist()
    for each in measured:
        stage = "initial" if each.stage == "before" else "final"
        for kind, p in (("clean", each.clean), ("mixed", each.mixed)):
            entropies, best = _entropy(p).tolist(), p.sort(dim=1, descending=True).values
            for i, other in enumerate(partner):
                mixed = kind == "mixed"
                rows.append(
                    [each.label, stage, kind, index[i], index[other] if mixed else "", p.shape[1],
                     entropies[i], float(best[i, 0]), float(p[i, i]),
                     float(p[i, other]) if mixed else "", *best[i, :BARS].tolist()]
                )  # fmt: skip
    return columns, rows

"""Views of a run's images and their mixtures, by the run's own settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unmix.commands.plots.drawn import Drawn, Request
from unmix.commands.plots.opened import checked_folders, labels_of
from unmix.commands.preview import Sample, mixed_fraction, samples_of
from unmix.config import Settings
from unmix.data import ImageSet, TensorImages, read_uint8
from unmix.data.fingerprint import Fingerprint
from unmix.display import counted
from unmix.errors import UserError, check_number
from unmix.figures.pictures import Picture, PictureRow, picture_grid
from unmix.methods import method_class
from unmix.mixtures import ManifoldMixture
from unmix.mixtures.registry import name_of
from unmix.names import shown
from unmix.randomness import generator_for
from unmix.training.console import quiet_libraries
from unmix.training.mixing import label_space
from unmix.training.run.building import build_method, no_teacher
from unmix.training.run.data_record import DataRecord, check_there
from unmix.training.run.folder import RunFolder
from unmix.training.run.parts import load_split
from unmix.views import Views

__all__ = ["views"]

_IMAGES, _MOST, _BATCH, _LOCAL = 6, 12, 64, 2


@dataclass(frozen=True)
class _Mixtures:
    """Mixtures of one kind of a run."""

    name: str
    about: str
    samples: list[Sample]


def views(request: Request) -> Drawn:
    """Images of a run, their views, and the mixtures of the first view."""
    count, seed = request.option("images", _IMAGES), request.option("seed", 0)
    check_number("images", count, at_least=1, at_most=_MOST)
    check_number("seed", seed, at_least=0)
    quiet_libraries()
    (folder,) = checked_folders(request.runs)
    run = RunFolder(folder)
    settings = run.settings()
    size = settings.run.size
    if size is None:
        raise UserError(f"{run.config}: has no size; give the folder of a run of unmix pretrain.")
    images = _images(folder, settings, request.option("data_dir"))
    pixels, index = _pixels(images, size, seed, max(_BATCH, 2 * count))
    made, names = _views(images, pixels, settings, seed)
    mixtures, notes = _mixtures(images, pixels, made[0], settings, count, seed)
    chosen = [sample.row for sample in mixtures[0].samples] if mixtures else list(range(count))
    chosen = chosen[: min(count, len(pixels))]
    rows = [PictureRow("image", [Picture(pixels[row]) for row in chosen], apart=True)]
    rows += [
        PictureRow(name, [Picture(view[row]) for row in chosen], apart=number == 0)
        for number, (name, view) in enumerate(zip(names, made, strict=True))
    ]
    table: list[list[Any]] = []
    for kind in mixtures:
        rows += _rows(kind, count)
        table += [
            [int(index[sample.row]), kind.name, sample.weight,
             "; ".join(" ".join(map(str, box)) for box in sample.boxes if box[2] > box[0])]
            for sample in kind.samples[:count]
        ]  # fmt: skip
    if not mixtures:
        table = [[int(index[row]), "none", 1.0, ""] for row in chosen]
    (label,) = labels_of([folder])
    caption = " ".join(
        [
            f"Training images of {shown(images.name)}, views of {size} px by the run's settings, "
            f"seed {seed}.",
            *(kind.about for kind in mixtures),
            *notes,
        ]
    )
    figure = picture_grid(rows, title=label, caption=caption, **request.how)
    return Drawn(figure, ["image", "mixture", "weight_of_image", "boxes"], table, caption)


def _images(folder: Any, settings: Settings, data_dir: str | None) -> ImageSet:
    own = settings.run
    check_there(own.data)
    seen: dict[str, Fingerprint] = {}
    images = load_split(replace(own, data_dir=data_dir or own.data_dir), "pretrain", seen)
    record = DataRecord.read(folder)
    if record is not None and (clause := record.difference(seen)) is not None:
        raise UserError(f"{folder}: {clause}; the figure needs the images of the run.")
    return images


def _pixels(images: ImageSet, size: int, seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Some images, uint8 (M, 3, H, W), and their indices."""
    order = torch.randperm(len(images), generator=generator_for(seed, "plot", "images"))[:count]
    if isinstance(images, TensorImages):
        return images.images[order].cpu(), order
    pixels, kept = read_uint8(images, order, size)
    if len(pixels) < 2:
        raise UserError(
            f"{images.name} has {counted(len(pixels), 'readable image')}; the figure needs 2."
        )
    return pixels, kept


def _views(
    images: ImageSet, pixels: Tensor, settings: Settings, seed: int
) -> tuple[list[Tensor], list[str]]:
    """The views as pictures, uint8 (M, 3, S, S), in RGB, and what they are called."""
    count = method_class(settings.run.method).views
    assert settings.run.size is not None
    maker = Views(settings.views, settings.run.size, images.mean, images.std, count, "RGB")
    mean, std = (torch.tensor(values)[:, None, None] for values in (maker.mean, maker.std))
    made = [
        ((view * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
        for view in maker(pixels, generator_for(seed, "plot", "views"))
    ][: count + _LOCAL]
    names = [f"view {v + 1}" if count > 1 else "view" for v in range(count)]
    names += [f"small {v + 1}" for v in range(len(made) - count)]
    return made, names


def _mixtures(
    images: ImageSet, pixels: Tensor, view: Tensor, settings: Settings, count: int, seed: int
) -> tuple[list[_Mixtures], list[str]]:
    """The mixtures of the first view, and sentences of what is not shown."""
    found, notes = [], []
    image_space = settings.mixture.image_space()
    if image_space is not None:
        share = mixed_fraction(replace(settings.mixture, unmix=False))
        samples = samples_of(image_space, view, images, count, seed) if share else []
        about = f"{settings.mixture.IM_type}: {share:.0%} of images are mixed, all views alike"
        if samples:
            about += "; only such are shown; weight: share of the image in the pixels."
            found.append(_Mixtures(settings.mixture.IM_type, about, samples))
        else:
            notes.append(f"{about}; none of those looked at.")
    mixing = []
    if settings.mixture.unmix:
        assert settings.run.size is not None
        method = build_method(settings, len(images), settings.run.size, teacher=no_teacher())
        mixing = label_space(settings, method)
    for operator, _ in mixing:
        name = replace(settings.mixture, IM=False).name
        if len(mixing) > 1:
            name += f": {name_of(operator)}"
        if isinstance(operator, ManifoldMixture):
            notes.append(f"{name}: features are mixed, and no pixels.")
        else:
            source = pixels if operator.extra else None
            samples = samples_of(operator, view, images, count, seed, source)
            about = (
                f"{name}: {operator.describe()}; {operator.one_draw} per {operator.per}, columns "
                "from different batches; weight: of the image in the loss."
            )
            if operator.needs_features:
                about += " Partners are neighbors in pixel space here, in feature space in the run."
            if operator.needs_attention:
                about += " By salience of pixels here, where the encoder looks in the run."
            found.append(_Mixtures(name, about, samples))
    return found, notes


def _rows(kind: _Mixtures, count: int) -> list[PictureRow]:
    samples = kind.samples[:count]
    most = max((len(sample.partners) for sample in samples), default=0)
    rows = [
        PictureRow(
            "partner" if most == 1 else f"partner {number + 1}",
            [
                Picture(sample.partners[number], sample.captions[number])
                if number < len(sample.partners)
                else None
                for sample in samples
            ],
            apart=number == 0,
        )
        for number in range(most)
    ]
    mixed: Sequence[Picture] = [
        Picture(sample.mixed, f"weight {sample.weight:.2f}", boxes=sample.boxes)
        for sample in samples
    ]
    return [*rows, PictureRow("mixture", mixed, apart=not rows)]

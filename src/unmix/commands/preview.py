"""Preview of a mixture or an augmentation on real images, before training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from unmix.commands.finished import Say, say_skipped
from unmix.commands.preview_parts import boxes_of, own_weight, parts_of
from unmix.commands.preview_views import augmentation_figure
from unmix.config import MixtureSettings
from unmix.config.augmentation import PRESETS
from unmix.credit import rule
from unmix.data import ImageSet, load, read_uint8
from unmix.data.outputs import is_own_figure
from unmix.display import counted
from unmix.errors import UserError, check_choice, check_number
from unmix.figures import mixtures
from unmix.figures.saving import render
from unmix.files import as_path, atomic_write
from unmix.mixtures import (
    Cutout,
    ManifoldMixture,
    MixtureOperator,
    Operator,
    spectral_residual,
)
from unmix.mixtures.registry import name_of
from unmix.names import shown
from unmix.randomness import generator_for
from unmix.training.console import quiet_libraries
from unmix.training.console import say as print_line
from unmix.training.run.notes import cutout_line
from unmix.training.run.parts import native_size
from unmix.views.crops import crop_uint8
from unmix.views.geometry import draw_boxes

__all__ = ["Sample", "mixed_fraction", "mixture_figure", "preview", "samples_of"]

_KINDS = ("png", "svg", "pdf")
_BATCH = 64
_BATCHES = 200
_MOST = 64


@dataclass(frozen=True)
class Sample:
    """A mixture, and what it is made of; pictures are uint8 (3, H, W).

    Attributes:
        row: The number of the image itself.
        own: That image.
        partners: The images mixed in, in order.
        captions: Of each partner.
        mixed: The mixture.
        weight: Of the image itself.
        boxes: Of each partner: top, left, bottom, right.
    """

    row: int
    own: Tensor
    partners: list[Tensor]
    captions: list[str]
    mixed: Tensor
    weight: float
    boxes: list[tuple[int, int, int, int]]


def preview(
    *,
    data: str = "photos",
    mixture: MixtureSettings,
    augmentation: str | None = None,
    out: Path | str,
    n: int = 8,
    seed: int = 0,
    size: int | None = None,
    data_dir: str | None = None,
    train_folder: str | None = None,
    say: Say = print_line,
) -> Path:
    """Draw a figure of images, and of their mixtures or their augmented views.

    Images are normalized, mixed and shown without the normalization, so pixel decay and the fill of
    Cutout and RandomErasing appear as the encoder sees them. Image-space mixtures leave most images
    unchanged; only mixed ones are shown, and the title states the fraction. An image may be mixed
    several times: all partners are shown in the order in which they are mixed in, with their
    weights and boxes, and the weight is that of the image itself in the result. If the partner of a
    pasted box was itself mixed, its own partners and the pasted result are shown. For label-space
    mixtures the weight is that of the loss; mixed crops of one image are shown as its partners.
    Nearest neighbors in feature space are replaced by nearest neighbors in pixel space, and where
    the encoder looks, by what is salient in the pixels.

    With `augmentation` and no mixture, two views of each image and its local crops are shown.

    Args:
        data: Data set by name, or a folder of images.
        mixture: The mixture: `IM` with `IM_type`, or `unmix`, which is shown if both are set.
        augmentation: Of the views that are shown, by name: none, crop-flip, or that of a paper,
            such as moco-v2.
        out: The file: .png, .svg or .pdf; PNG without an extension.
        n: Number of images, 1 to 64.
        seed: The same seed gives the same images and mixtures.
        size: Side of the images in pixels; by default the data set's own, 224 for files.
        data_dir: Folder of the data set (for the names that need files).
        train_folder: Folder of the images, relative to --data, if its name is not a usual one.
        say: Prints a line.

    Returns:
        The file.

    Raises:
        UserError: if neither a mixture nor an augmentation is given, the mixture changes no image,
            or a value is out of range.
    """
    path = _checked_path(as_path(out))
    check_number("n", n, at_least=1, at_most=_MOST)
    check_number("seed", seed, at_least=0)
    if size is not None:
        check_number("size", size, at_least=1)
    mixed = mixture.IM or mixture.unmix or augmentation is None
    operator = _checked_operator(mixture) if mixed else None
    if augmentation is not None:
        check_choice("augmentation", augmentation, PRESETS)
    quiet_libraries()
    images = load(data, "pretrain", data_dir=data_dir, train_folder=train_folder)
    size = size or native_size(images)
    if augmentation is None or mixed:
        figure, title = mixture_figure(images, mixture, n=n, seed=seed, size=size)
    else:
        figure, title = augmentation_figure(images, augmentation, n=n, seed=seed, size=size)
    atomic_write(path, render(figure, path.suffix[1:].lower()))
    say_skipped(say, images)
    say(title.replace("\n", "; "))
    if isinstance(operator, Cutout):
        say(cutout_line(operator, size))
    if mixture.unmix and mixture.IM:
        say("note: --IM is not shown together with --unmix; drop --unmix to see it")
    if mixed and augmentation is not None:
        say("note: mixtures are shown of images as they are; leave the mixture out to see views")
    say(f"preview: {shown(path)}")
    return path


def mixture_figure(
    images: ImageSet,
    mixture: MixtureSettings,
    *,
    n: int,
    seed: int,
    size: int,
    theme: str = "light",
    number: int | None = None,
) -> tuple[Figure, str]:
    """Images, their partners and their mixtures, and the title that says what they are.

    Args:
        images: Some of them are mixed.
        mixture: The mixture, as in `preview`.
        n: Number of images that are shown.
        seed: The same seed gives the same images and mixtures.
        size: Side of the images in pixels.
        theme: light, dark or inline; inline without the title.
        number: Of several label-space mixtures of a step the one that is shown.

    Raises:
        UserError: if no mixture is selected, or it changes no image.
    """
    operator, share = _checked_operator(mixture, number), mixed_fraction(mixture)
    pixels = _read(images, size, n, seed)
    samples = samples_of(operator, pixels, images, n, seed)
    if not samples:
        raise UserError(
            f"none of {_BATCH * _BATCHES:,} images of {images.name} changed; either they are all "
            f"equal, or the fraction of mixed images, {share:.2g}, is too small to show.",
            parameter="data",
        )
    title = _title(mixture, share, size, number)
    return _draw(samples, "" if theme == "inline" else title, theme), title


def _checked_path(path: Path) -> Path:
    if path.is_dir():
        raise UserError(
            f"{path} is a folder; give a file, such as {path / 'mixture.png'}.", parameter="out"
        )
    if not path.suffix:
        path = path.with_name(f"{path.name}.png")
    if path.suffix[1:].lower() not in _KINDS:
        raise UserError(f"{path.name} must end in .png, .svg or .pdf.", parameter="out")
    # Drawn again, a preview replaces itself, but no picture of the user's.
    if path.suffix.lower() == ".png" and path.exists() and not is_own_figure(str(path)):
        raise UserError(
            f"{path} exists, and is no figure of unmix; give another name.", parameter="out"
        )
    return path


def _label_space(mixture: MixtureSettings, number: int | None = None) -> MixtureOperator | None:
    """The label-space operator of a run, with the published defaults of its rule."""
    published = rule(mixture.unmix_rule).mixture
    if number is None:
        return mixture.label_space(published)
    return mixture.label_spaces(published)[number]


def _checked_operator(
    mixture: MixtureSettings, number: int | None = None
) -> Operator | MixtureOperator:
    operator = _label_space(mixture, number) or mixture.image_space()
    if isinstance(operator, ManifoldMixture):
        raise UserError(
            "manifold mixes features, so there are no pixels to show; preview another mixture, "
            "such as global.",
            parameter="unmix_mixture",
        )
    if operator is None:
        raise UserError(
            "no mixture is selected; give `IM=True` (with `IM_type`) for image space, "
            "`unmix=True`, or an `augmentation` to see views.",
            parameter="IM",
        )
    if mixed_fraction(mixture) == 0:
        kind = mixture.IM_type
        raise UserError(
            f"{kind} changes no image; give {_probabilities(kind)} above 0.", parameter="IM_type"
        )
    return operator


def _read(images: ImageSet, size: int, n: int, seed: int) -> Tensor:
    """Read some images, uint8 (M, 3, size, size)."""
    order = torch.randperm(len(images), generator=generator_for(seed, "preview", "images"))
    pixels, _ = read_uint8(images, order[: max(_BATCH, 2 * n)], size)
    if len(pixels) < 2:
        raise UserError(
            f"{images.name} has {counted(len(pixels), 'readable image')}; a mixture needs 2.",
            parameter="data",
        )
    return pixels.cpu()


def samples_of(
    operator: Operator | MixtureOperator,
    pixels: Tensor,
    images: ImageSet,
    n: int,
    seed: int,
    source: Tensor | None = None,
) -> list[Sample]:
    """Draw batches until enough images have changed; in label space one image per batch.

    Args:
        operator: Draws the mixtures.
        pixels: What is mixed, uint8 (M, 3, S, S).
        images: The set that they are from, for the normalization.
        n: How many mixtures.
        seed: The same seed gives the same mixtures.
        source: The images that further crops are from, uint8 (M, 3, H, W); by default `pixels`.
    """
    mean = torch.tensor(images.mean).view(3, 1, 1)
    std = torch.tensor(images.std).view(3, 1, 1)
    std = torch.where(std > 0, std, 1.0)

    def normalized(views: Tensor) -> Tensor:
        return (views / 255 - mean) / std

    def as_bytes(views: Tensor) -> Tensor:
        return ((views * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)

    own = normalized(pixels)
    found: dict[int, Sample] = {}
    for number in range(_BATCHES):
        generator = generator_for(seed, "preview", number)
        draw, bytes_of_crops, rows = _drawn(operator, pixels, own, number, generator, source)
        if not rows:
            continue
        crops = [normalized(crop) for crop in bytes_of_crops]
        mixed = as_bytes(draw.apply(own, crops) if crops else draw.apply(own))
        for row in rows:
            if row not in found and bool((mixed[row] != pixels[row]).any()):
                parts = parts_of(draw, row, own, crops)
                found[row] = Sample(
                    row,
                    pixels[row],
                    [as_bytes(part.image) for part in parts],
                    [part.caption for part in parts],
                    mixed[row],
                    own_weight(draw, row, pixels),
                    boxes_of(draw, row, parts),
                )
            if len(found) == n:
                return list(found.values())
    return list(found.values())


def _drawn(
    operator: Operator | MixtureOperator,
    pixels: Tensor,
    images: Tensor,
    number: int,
    generator: torch.Generator,
    source: Tensor | None = None,
) -> tuple[Any, list[Tensor], list[int]]:
    """A draw, the additional crops that it needs, and the rows that may be shown."""
    shape = tuple(pixels.shape)
    draw: Any
    if not isinstance(operator, MixtureOperator):
        draw = operator.draw(shape, generator)
        return draw, [], draw.is_mixed.nonzero().flatten().tolist()
    features = images.flatten(1) if operator.needs_features else None
    attention = spectral_residual(images) if operator.needs_attention else None
    draw = operator.draw_for(images, generator, features, attention)
    side = pixels.shape[-1]
    whole = pixels if source is None else source
    crops = [_cropped(whole, scale, generator, side) for scale in operator.extra]
    # Usually one weight is drawn per batch, so every column comes from a batch of its own.
    row = number % len(draw.is_mixed)
    return draw, crops, [row] if draw.is_mixed[row] else []


def _cropped(
    pixels: Tensor, scale: tuple[float, float] | None, generator: torch.Generator, side: int
) -> Tensor:
    """A random crop of every image, resized: uint8 (M, 3, side, side)."""
    n, _, height, width = pixels.shape
    options = {} if scale is None else {"scale": scale}
    boxes = draw_boxes(n, height, width, generator, **options)
    crops = [
        crop_uint8(image, (top, left, rows, columns), side)
        for image, (top, left, rows, columns) in zip(pixels, boxes.tolist(), strict=True)
    ]
    return torch.stack(crops)


def mixed_fraction(mixture: MixtureSettings) -> float:
    """The expected fraction of images that a mixture changes, in [0, 1].

    For RandomErasing it is an upper bound: sometimes no rectangle fits.
    """
    operator: Any = mixture.image_space()
    return 1.0 if mixture.unmix or operator is None else float(operator.mixed_fraction)


def _title(mixture: MixtureSettings, share: float, size: int, number: int | None = None) -> str:
    """One line about the mixture, one about its frequency."""
    if not mixture.unmix:
        operator: Any = mixture.image_space()
        sides = (size, size) if isinstance(operator, Cutout) else ()
        text = operator.describe(*sides)
        text = f"IM: {text}" if mixture.IM_type == "IM" else text
        return f"{text}\n{share:.0%} of images are mixed; only these are shown"
    label_space = _label_space(mixture, number)
    assert label_space is not None
    text, once = label_space.describe(), label_space.one_draw
    name = mixture.name if number is None else f"{mixture.name}, {name_of(label_space)}"
    if label_space.needs_features:
        text += "; neighbors in pixel space here, in feature space in a run"
    if label_space.needs_attention:
        text += "; by salience of pixels here, in a run by where the encoder looks"
    if label_space.per == "sample":
        return f"{name}: {text}\n{once} per sample"
    return f"{name}: {text}\n{once} per batch; every column is from a different batch"


def _probabilities(im_type: str) -> str:
    """The parameters that determine the probability that an image changes."""
    return {
        "IM": "`g_prob` and `g_num`, or `r_prob` and `r_num`,",
        "global": "`g_prob` and `g_num`",
        "region": "`r_prob` and `r_num`",
        "Cutout": "`cutout_p`",
        "RandomErasing": "`random_erasing_prob`",
        "DACL": "`dacl_alpha`",
    }[im_type]


def _draw(samples: list[Sample], title: str, theme: str) -> Figure:
    erased = not any(sample.partners for sample in samples)
    return mixtures(
        torch.stack([sample.own for sample in samples]),
        [sample.partners for sample in samples],
        torch.stack([sample.mixed for sample in samples]),
        [sample.weight for sample in samples],
        [sample.boxes for sample in samples],
        captions=[sample.captions for sample in samples],
        title=title,
        result="erased" if erased else "mixture",
        theme=theme,
    )

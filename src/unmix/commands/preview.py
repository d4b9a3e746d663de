"""What a mixture does to real images, drawn before anything is trained."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from unmix.commands.finished import Say, say_skipped
from unmix.config import MixtureSettings
from unmix.credit import rule
from unmix.data import ImageSet, load, read_uint8
from unmix.errors import UserError, check_number
from unmix.figures import mixtures
from unmix.figures.saving import render
from unmix.files import write_whole
from unmix.mixtures import (
    EraseDraw,
    ImageSpaceDraw,
    ManifoldMixture,
    MixtureDraw,
    MixtureOperator,
    Operator,
)
from unmix.mixtures.describing import described
from unmix.names import shown
from unmix.randomness import generator_for
from unmix.training.console import quiet_libraries
from unmix.training.console import say as print_line
from unmix.training.parts import native_size
from unmix.views.crops import crop_uint8
from unmix.views.geometry import draw_boxes

__all__ = ["preview", "touched_share"]

_KINDS = ("png", "svg", "pdf")
_BATCH = 64
_BATCHES = 200
_MOST = 64


@dataclass(frozen=True)
class _Sample:
    """One column of the figure."""

    own: Tensor
    partner: Tensor | None
    mixed: Tensor
    weight: float
    box: list[int]


def preview(
    *,
    data: str = "photos",
    mixture: MixtureSettings,
    out: Path | str,
    n: int = 8,
    seed: int = 0,
    size: int | None = None,
    data_dir: str | None = None,
    train_folder: str | None = None,
    say: Say = print_line,
) -> Path:
    """Draw what a mixture does to real images.

    Images are normalised, mixed and shown without the normalisation, so that a pixel decay and the
    colours of Cutout and RandomErasing look as the encoder gets them. Image-space mixtures leave
    most images alone; only those that change are shown, and the title says how many do. An image
    may be mixed several times: the partner and box shown are those of the last time, the weight is
    the own image's share of the result. Of label-space mixtures the weight is the own share of the
    credit; where crops of one image are mixed, the first of them is shown as the partner. Partners
    that are neighbours in feature space are here the neighbours by their pixels.

    Args:
        data: Data set by name, or a folder of images.
        mixture: Which mixture: `IM` with `IM_type`, or `unmix`, which is shown if both are set.
        out: The file: .png, .svg or .pdf; PNG without an ending.
        n: How many images to show.
        seed: Same seed, same images and mixtures.
        size: Side of the images in pixels; by default the data set's own, 224 for files.
        data_dir: Where the data set lies (for the names that need files).
        train_folder: Folder of the images, relative to --data, where its name is not usual.
        say: Prints a line.

    Returns:
        The file.

    Raises:
        UserError: if no mixture is chosen, it changes nothing, or a value is out of range.
    """
    path = _checked_path(Path(out))
    check_number("--n", n, at_least=1, at_most=_MOST)
    check_number("--seed", seed, at_least=0)
    if size is not None:
        check_number("--size", size, at_least=1)
    operator, share = _checked_operator(mixture), touched_share(mixture)
    quiet_libraries()
    images = load(data, "pretrain", data_dir=data_dir, train_folder=train_folder)
    samples = _samples(operator, _read(images, size, n, seed), images, n, seed)
    if not samples:
        raise UserError(
            f"--data: none of {_BATCH * _BATCHES:,} images of {images.name} changed; either they "
            f"are all alike, or a share of {share:.2g} is too small to show."
        )
    title = _title(mixture, share)
    write_whole(path, _rendered(_draw(samples, title), path.suffix[1:].lower()))
    say_skipped(say, images)
    say(title.replace("\n", "; "))
    say(f"preview: {shown(path)}")
    return path


def _checked_path(path: Path) -> Path:
    if path.is_dir():
        raise UserError(f"--out: {path} is a folder; give a file, such as {path / 'mixture.png'}.")
    if not path.suffix:
        return path.with_name(f"{path.name}.png")
    if path.suffix[1:].lower() not in _KINDS:
        raise UserError(f"--out: {path.name} cannot be written; end it in .png, .svg or .pdf.")
    return path


def _of_the_rule(mixture: MixtureSettings) -> MixtureOperator | None:
    """The label-space operator as a run has it: with what its rule was published with."""
    return mixture.label_space(rule(mixture.unmix_rule).published)


def _checked_operator(mixture: MixtureSettings) -> Operator | MixtureOperator:
    operator = _of_the_rule(mixture) or mixture.image_space()
    if isinstance(operator, ManifoldMixture):
        raise UserError(
            "--unmix_mixture: manifold mixes features, so there are no pixels to show; preview "
            "another mixture, such as global."
        )
    if operator is None:
        raise UserError(
            "--IM: no mixture is chosen; give --IM (with --IM_type) for image space, or --unmix."
        )
    if touched_share(mixture) == 0:
        kind = mixture.IM_type
        raise UserError(f"--IM_type: {kind} changes no image; give {_flags(kind)} above 0.")
    return operator


def _read(images: ImageSet, size: int | None, n: int, seed: int) -> Tensor:
    """Read some images, uint8 (M, 3, size, size)."""
    size = size or native_size(images)
    order = torch.randperm(len(images), generator=generator_for(seed, "preview", "images"))
    pixels, _ = read_uint8(images, order[: max(_BATCH, 2 * n)], size)
    if len(pixels) < 2:
        raise UserError(
            f"--data: {images.name} has {len(pixels)} readable images; a mixture needs 2."
        )
    return pixels.cpu()


def _samples(
    operator: Operator | MixtureOperator, pixels: Tensor, images: ImageSet, n: int, seed: int
) -> list[_Sample]:
    """Draw batches until enough images have changed; of each in label space, one image."""
    mean = torch.tensor(images.mean).view(3, 1, 1)
    std = torch.tensor(images.std).view(3, 1, 1)
    std = torch.where(std > 0, std, 1.0)

    def normalised(views: Tensor) -> Tensor:
        return (views / 255 - mean) / std

    found: dict[int, _Sample] = {}
    for number in range(_BATCHES):
        generator = generator_for(seed, "preview", number)
        draw, crops, rows = _drawn(operator, pixels, normalised(pixels), number, generator)
        if not rows:
            continue
        changed = _applied(draw, normalised(pixels), [normalised(crop) for crop in crops])
        shown = ((changed * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
        for row in rows:
            if row not in found and bool((shown[row] != pixels[row]).any()):
                partner, box = _last(draw, row)
                others = crops[0] if crops else pixels
                other = None if partner is None else others[partner]
                weight = _weight(draw, row, pixels)
                found[row] = _Sample(pixels[row], other, shown[row], weight, box)
            if len(found) == n:
                return list(found.values())
    return list(found.values())


def _drawn(
    operator: Operator | MixtureOperator,
    pixels: Tensor,
    images: Tensor,
    number: int,
    generator: torch.Generator,
) -> tuple[Any, list[Tensor], list[int]]:
    """A draw, the further crops that it needs, and which of its images may be shown."""
    shape = tuple(pixels.shape)
    draw: Any
    if not isinstance(operator, MixtureOperator):
        draw = operator.draw(shape, generator)
        return draw, [], draw.touched.nonzero().flatten().tolist()
    draw = operator.draw(shape, generator, images.flatten(1) if operator.needs_features else None)
    crops = [_cropped(pixels, scale, generator) for scale in operator.extra]
    # Mostly one weight is drawn a batch: every column comes from a batch of its own.
    row = number % len(draw.touched)
    return draw, crops, [row] if draw.touched[row] else []


def _applied(draw: Any, images: Tensor, crops: list[Tensor]) -> Tensor:
    return draw.apply(images, crops) if crops else draw.apply(images)


def _cropped(
    pixels: Tensor, scale: tuple[float, float] | None, generator: torch.Generator
) -> Tensor:
    """A random crop of every image, of its size: uint8 (M, 3, H, W)."""
    n, _, height, width = pixels.shape
    options = {} if scale is None else {"scale": scale}
    boxes = draw_boxes(n, height, width, generator, **options)
    crops = [
        crop_uint8(image, (top, left, rows, columns), height)
        for image, (top, left, rows, columns) in zip(pixels, boxes.tolist(), strict=True)
    ]
    return torch.stack(crops)


def _last(draw: Any, row: int) -> tuple[int | None, list[int]]:
    """Partner and box of the last thing that happened to an image; an empty box is the whole."""
    if isinstance(draw, EraseDraw):
        return None, draw.box[row].tolist()
    if not isinstance(draw, ImageSpaceDraw):
        inner = getattr(draw, "pairs", draw)
        return int(draw.partner[row]), _shown_box(inner, row)
    for last in reversed((*draw.own, *draw.regions)):
        partner = int(last.partner[row])
        if bool(last.touched[row]) and partner != row:
            return partner, _shown_box(last, row)
    # Nothing but the pixel decay.
    return row, [0] * 4


def _shown_box(draw: Any, row: int) -> list[int]:
    box = draw.box[row].tolist() if hasattr(draw, "box") else [0] * 4
    return [0] * 4 if hasattr(draw, "size") and box == [0, 0, *draw.size] else box


def _weight(draw: Any, row: int, pixels: Tensor) -> float:
    """The own image's share: of the credit, or what is left of it if all others are black."""
    if isinstance(draw, MixtureDraw):
        return float(draw.weight[row])
    ones = torch.zeros(len(pixels), 1, *pixels.shape[2:])
    ones[row] = 1
    if isinstance(draw, EraseDraw):
        draw = EraseDraw(draw.box, torch.zeros_like(draw.fill), draw.size)
    elif isinstance(draw, ImageSpaceDraw):
        draw = ImageSpaceDraw(draw.own, draw.regions, draw.partners, torch.ones_like(draw.decay))
    return float(draw.apply(ones)[row].mean())


def touched_share(mixture: MixtureSettings) -> float:
    """The share of images that a mixture touches, in [0, 1].

    For RandomErasing it is an upper bound: now and then no rectangle fits.
    """
    if mixture.unmix:
        return 1.0
    if mixture.IM_type == "Cutout":
        return mixture.cutout_p
    if mixture.IM_type == "RandomErasing":
        return mixture.random_erasing_prob
    untouched = {
        "global": (1 - mixture.g_prob) ** mixture.g_num,
        "region": (1 - mixture.r_prob) ** mixture.r_num,
    }
    return 1 - untouched.get(mixture.IM_type, untouched["global"] * untouched["region"])


def _title(mixture: MixtureSettings, share: float) -> str:
    """One line on the mixture, one on how often it happens."""
    if not mixture.unmix:
        return f"{_described(mixture)}\n{share:.0%} of images are touched; only such are shown"
    operator = _of_the_rule(mixture)
    assert operator is not None
    text, once = described(operator)
    if operator.per == "sample":  # type: ignore[attr-defined]
        return f"{mixture.name}: {text}\n{once} a sample"
    return f"{mixture.name}: {text}\n{once} a batch; every column is from a batch of its own"


def _described(mixture: MixtureSettings) -> str:
    rounds = {
        "global": f"global {mixture.g_num} times with probability {mixture.g_prob:g}",
        "region": f"region {mixture.r_num} times with probability {mixture.r_prob:g}",
        "Cutout": f"Cutout of {mixture.mask_size} px with probability {mixture.cutout_p:g}",
        "RandomErasing": f"RandomErasing with probability {mixture.random_erasing_prob:g}",
    }
    if mixture.IM_type == "IM":
        return f"IM: {rounds['global']}, then {rounds['region']}"
    return rounds[mixture.IM_type]


def _flags(im_type: str) -> str:
    """The flags that decide whether anything happens."""
    return {
        "IM": "--g_prob and --g_num, or --r_prob and --r_num,",
        "global": "--g_prob and --g_num",
        "region": "--r_prob and --r_num",
        "Cutout": "--cutout_p",
        "RandomErasing": "--random_erasing_prob",
    }[im_type]


def _draw(samples: list[_Sample], title: str) -> Figure:
    own = torch.stack([sample.own for sample in samples])
    mixed = torch.stack([sample.mixed for sample in samples])
    others = [sample.partner for sample in samples if sample.partner is not None]
    figure = mixtures(
        own,
        torch.stack(others) if others else own,
        mixed,
        [sample.weight for sample in samples],
        [sample.box for sample in samples],
        title=title,
    )
    if not others:
        _without_partners(figure)
    return figure


def _without_partners(figure: Figure) -> None:
    """Take the row of partners out: what is erased has none."""
    axes = figure.axes
    grid = axes[0].get_gridspec()
    assert grid is not None
    width, height = figure.get_size_inches()
    for cell in axes[1::3]:
        cell.remove()
    grid.set_height_ratios([1, 0.01, 1] * (grid.nrows // 3))
    figure.set_size_inches(width, height * 0.72)
    for cell in axes[2::3]:
        if cell.get_ylabel():
            cell.set_ylabel("erased")


def _rendered(figure: Figure, kind: str) -> bytes:
    if kind != "pdf":
        return render(figure, kind)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="pdf", metadata={"CreationDate": None})
    return buffer.getvalue()

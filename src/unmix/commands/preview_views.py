"""Preview of an augmentation on real images, before training."""

from __future__ import annotations

from dataclasses import replace

import torch
from matplotlib.figure import Figure
from torch import Tensor

from unmix.config.augmentation import PRESETS
from unmix.data import ImageSet, StreamedImages, TensorImages
from unmix.errors import UserError, check_choice
from unmix.figures import Picture, PictureRow, picture_grid
from unmix.randomness import generator_for
from unmix.training.loading.crops import FileCrops
from unmix.views import Views, ViewSettings

__all__ = ["augmentation_figure"]

_ACROSS = 8
_LOCAL_CROPS = 2  # that are shown, of as many as there are


def augmentation_figure(
    images: ImageSet, augmentation: str, *, n: int, seed: int, size: int
) -> tuple[Figure, str]:
    """Images, two views of each as a run draws them, and its local crops; and the title.

    Args:
        images: Some of them are shown.
        augmentation: A preset's name; see `unmix.views.preset`.
        n: Number of images that are shown.
        seed: The same seed gives the same images and views.
        size: Side of the views in pixels.

    Raises:
        UserError: if there is no preset of that name, or no image is readable.
    """
    preset = PRESETS[check_choice("augmentation", augmentation, PRESETS)]
    local = min(_LOCAL_CROPS, preset.local_crops)
    # The settings of local crops are those of the first; the last one is the image itself.
    kinds = (replace(preset, local_crops=local), preset.of_view("second"), PRESETS["none"])
    make = Views(kinds, size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    order = torch.randperm(len(images), generator=generator_for(seed, "preview", "images"))
    drawn: list[list[Tensor]] = []
    for row in order.tolist():
        if (made := _views_of(images, row, make, seed)) is not None:
            drawn.append(made)
        if len(drawn) == n:
            break
    if not drawn:
        raise UserError(f"{images.name} has no readable image.", parameter="data")
    places = {"image": 2, "view 1": 0, "view 2": 1}
    places |= {f"local crop {number + 1}": 3 + number for number in range(local)}
    rows = [
        PictureRow(
            label,
            [Picture(each[place]) for each in drawn[start : start + _ACROSS]],
            apart=label == "image" and start > 0,
        )
        for start in range(0, len(drawn), _ACROSS)
        for label, place in places.items()
    ]
    figure = picture_grid(
        rows, title=f"augmentation {augmentation}", width=0.4 + max(3, min(len(drawn), _ACROSS))
    )
    return figure, f"augmentation {augmentation}: {_described(preset)}"


def _views_of(images: ImageSet, row: int, make: Views, seed: int) -> list[Tensor] | None:
    """Every view of an image, uint8 (3, S, S); None if it cannot be read."""
    generator = generator_for(seed, "preview", "views", row)
    if isinstance(images, TensorImages):
        made = make(images.images[row : row + 1], generator)
    else:
        assert isinstance(images, StreamedImages)
        batch = FileCrops(images, make, seed)[0, row]
        for error in batch.broken:
            images.skipped.add(error)
        crops = batch.crops
        if crops is None:
            return None
        made = [
            make.apply_crops(crop, make.draw(1, make.size, make.size, generator, view), view)
            for view, crop in enumerate(crops)
        ]
    return [(view[0].clamp(0, 1) * 255).round().to(torch.uint8).cpu() for view in made]


def _described(own: ViewSettings) -> str:
    """What an augmentation changes."""
    first, second = own.of_view("first"), own.of_view("second")
    parts = []
    if first.crop_scale_min < 1:
        parts.append(f"crops of {first.crop_scale_min:.0%} to {first.crop_scale_max:.0%}")
    for name, word in (
        ("flip_p", "flips"),
        ("jitter_p", "color jitter"),
        ("gray_p", "grayscale"),
        ("blur_p", "blur"),
        ("solarize_p", "solarization"),
    ):
        chances = dict.fromkeys((getattr(first, name), getattr(second, name)))
        if any(chances):
            parts.append(f"{word} {' and '.join(f'{chance:.0%}' for chance in chances)}")
    if own.local_crops:
        parts.append(f"{own.local_crops} local crops")
    return ", ".join(parts) or "the whole image, as it is"

"""From uint8 images to normalized views: draw, then apply."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from unmix.config import ViewSettings
from unmix.errors import UserError, check_choice, check_number
from unmix.transfer import to_device
from unmix.views.blur import blur_weights
from unmix.views.color import (
    ColorDraw,
    ColorMaps,
    apply_color,
    color_maps,
    solarize,
)
from unmix.views.color_spaces import (
    COLOR_SPACES,
    normalize_lab,
    normalize_ycbcr,
    rgb_to_lab,
    rgb_to_ycbcr,
)
from unmix.views.constants import constant
from unmix.views.draws import ViewDraw, draw_crops, draw_view, moved
from unmix.views.geometry import center_boxes, crop_weights, resample
from unmix.views.kinds import view_kinds

__all__ = ["Views"]

# Pixels per chunk of color operations on a CPU: four float32 planes in and out are 4 MB.
_IN_CACHE = 1 << 17


class Views:
    """Makes views of uint8 images, on the images' device.

    The steps are torchvision's, with the four of color jitter in random order for each sample. Two
    things differ: colors are clamped once, after jitter and grayscale, not after each step; and
    blur is part of the resampling, before the color steps. With MoCo v2's settings, on photographs
    of scikit-image, a view differs from torchvision's of the same draw by an RMS of 0.0034 of the
    range on average, without hue by 0.0026; jitter alone by 0.34 of 255 (mean absolute difference),
    because of the clamping.

    There are `len(views)` views of an image, in this order: `count` global views, the local crops
    of the settings, and extra views. A `view` argument is the number of one of them.

    Args:
        settings: Ranges and probabilities of all views; or a sequence with those of each global
            view, such as a strong and a weak one.
        size: Side of the global views in pixels.
        mean: Mean of the training images, RGB in [0, 1]; used if `color_space` is "RGB".
        std: Standard deviation, likewise.
        count: Number of global views; by default the number of settings in a sequence, or 2.
        color_space: "RGB", "Lab" or "YCbCr"; the last two are normalized as in CMC.
        extra: For each extra view, of the global size, the smallest and largest area of its crop
            as a share of the image's, or None for that of the first view.
        channels_last: Return views in the memory format `torch.channels_last`.

    Attributes:
        kinds: Settings and size of each view.
        sizes: Side of each view in pixels.

    Raises:
        UserError: if an argument is out of range.
    """

    def __init__(
        self,
        settings: ViewSettings | Sequence[ViewSettings],
        size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        count: int | None = None,
        color_space: str = "RGB",
        *,
        extra: Sequence[tuple[float, float] | None] = (),
        channels_last: bool = False,
    ) -> None:
        several = [settings] if isinstance(settings, ViewSettings) else settings
        if not all(isinstance(each, ViewSettings) for each in several):
            raise UserError(
                f"Views: settings: {settings!r}; give unmix.views.preset(name), or a list of them."
            )
        _check_side(size)
        check_number("size", size, at_least=1, owner="Views")
        if count is None:
            count = 2 if isinstance(settings, ViewSettings) else len(settings)
        check_number("count", count, at_least=1, owner="Views")
        check_choice("color_space", color_space, COLOR_SPACES, owner="Views")
        _check_shares("mean", mean, color_space)
        _check_shares("std", std, color_space)
        self.size = size
        self.count = count
        self.kinds = view_kinds(settings, size, count, extra)
        self.sizes = tuple(kind.size for kind in self.kinds)
        self.color_space = color_space
        self.channels_last = channels_last
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        # The other color spaces are computed from RGB in [0, 1] and have their own normalization.
        self.mean = mean if color_space == "RGB" else (0.0, 0.0, 0.0)
        self.std = std if color_space == "RGB" else (1.0, 1.0, 1.0)

    def __len__(self) -> int:
        """Return the number of views of an image, local crops and extra views included."""
        return len(self.kinds)

    def draw(
        self,
        n: int,
        height: int | Tensor,
        width: int | Tensor,
        generator: torch.Generator | None,
        view: int = 0,
    ) -> ViewDraw:
        """Draw one view of `n` images.

        Args:
            n: Number of images.
            height: Height of the images in pixels: one for all, or int64 `(n,)`.
            width: Width in pixels, likewise.
            generator: Source of the random numbers; the draw is on its device.
            view: Number of the view.
        """
        return draw_view(self.kinds[view].settings, n, height, width, generator)

    def draw_boxes(
        self,
        n: int,
        height: int | Tensor,
        width: int | Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        view: int = 0,
    ) -> Tensor:
        """Draw only the crop boxes, for images that are cropped where they are decoded.

        Arguments as for `draw`; `generator` may also be a sequence with one generator per image,
        whose box then does not depend on the other images.

        Returns:
            int64 `(n, 4)`: top, left, height, width.
        """
        return draw_crops(self.kinds[view].settings, n, height, width, generator)

    def draw_all(
        self,
        n: int,
        height: int | Tensor,
        width: int | Tensor,
        generator: torch.Generator | None,
    ) -> list[ViewDraw]:
        """Draw all views of `n` images, in order; arguments as for `draw`."""
        return [self.draw(n, height, width, generator, view) for view in range(len(self))]

    @torch.no_grad()
    def apply(self, images: Tensor, draw: ViewDraw, view: int = 0) -> Tensor:
        """Compute one view of each image from its draw.

        Args:
            images: uint8 `(N, 3, H, W)`.
            draw: Of N images of this size, on any device.
            view: Number of the view; S is its size.

        Returns:
            float32 `(N, 3, S, S)`, normalized, on the images' device.
        """
        _check_images(images, draw)
        if draw.size not in (None, size := tuple(images.shape[2:])):
            raise UserError(
                f"is for images of {draw.size[0]} x {draw.size[1]} pixels, but these are of "
                f"{size[0]} x {size[1]}, where its crops would lie elsewhere.", parameter="draw",
            )  # fmt: skip
        with _no_autocast(images.device):
            kind = self.kinds[view]
            how = kind.settings.interpolation, kind.settings.blur_kernel
            return self.make(images, draw, kind.size, *how)

    @torch.no_grad()
    def apply_crops(self, crops: Tensor, draw: ViewDraw, view: int = 0) -> Tensor:
        """Compute one view of images that are already cropped and resized.

        Args:
            crops: uint8 `(N, 3, S, S)`, such as from `crop_pil`.
            draw: Of N images, on any device; its boxes are not used.
            view: Number of the view; S is its size.

        Returns:
            float32 `(N, 3, S, S)`, normalized, on the crops' device.
        """
        _check_images(crops, draw)
        size = self.sizes[view]
        if crops.shape[2:] != (size, size):
            raise UserError(
                f"{tuple(crops.shape[2:])} pixels; view {view} of `size={self.size}` needs "
                f"({size}, {size}).",
                parameter="crops",
            )
        with _no_autocast(crops.device):
            return self.make_of_crops(crops, draw, self.kinds[view].settings.blur_kernel)

    def make(
        self, images: Tensor, draw: ViewDraw, size: int, interpolation: str, blur_kernel: int
    ) -> Tensor:
        """The tensor operations of `apply`, which can be replaced by a compiled version.

        The number of the view is not an argument: all views of the same size and steps share one
        compiled program.
        """
        device = images.device
        boxes = to_device(draw.boxes, device)
        flip, sigma = moved(draw.flip, device), moved(draw.sigma, device)
        rows, columns = crop_weights(
            boxes, images.shape[2], images.shape[3], size, flip=flip, interpolation=interpolation
        )
        if sigma is not None:
            blur = blur_weights(sigma, size, blur_kernel)
            rows, columns = torch.bmm(blur, rows), torch.bmm(blur, columns)
        return self._finish(_resampled(images, rows, columns, interpolation), draw)

    def make_of_crops(self, crops: Tensor, draw: ViewDraw, blur_kernel: int) -> Tensor:
        """The tensor operations of `apply_crops`, which can be replaced by a compiled version."""
        device = crops.device
        flip, sigma = moved(draw.flip, device), moved(draw.sigma, device)
        if flip is not None:
            crops = torch.where(flip[:, None, None, None], crops.flip(3), crops)
        if sigma is not None:
            weights = blur_weights(sigma, crops.shape[3], blur_kernel)
            crops = resample(crops, weights, weights)
        return self._finish(crops, draw)

    def __call__(self, images: Tensor, generator: torch.Generator | None) -> list[Tensor]:
        """Draw and compute all views of uint8 `(N, 3, H, W)`, in order; each as from `apply`."""
        _check_images(images)
        n, _, height, width = images.shape
        draws = self.draw_all(n, height, width, generator)
        return [self.apply(images, draw, view) for view, draw in enumerate(draws)]

    @torch.no_grad()
    def plain(self, images: Tensor) -> Tensor:
        """Compute the view for evaluation: no augmentation, only color space and normalization.

        Args:
            images: uint8 `(N, 3, H, W)`. If their size differs from the views', the largest
                centered square is resized, antialiased.

        Returns:
            float32 `(N, 3, size, size)`, normalized, on the images' device.
        """
        _check_images(images)
        n, _, height, width = images.shape
        with _no_autocast(images.device):
            if (height, width) == (self.size, self.size):
                pixels = images.float()
            else:
                boxes = center_boxes(n, height, width, device=images.device)
                interpolation = self.kinds[0].settings.interpolation
                weights = crop_weights(boxes, height, width, self.size, interpolation=interpolation)
                pixels = _resampled(images, *weights, interpolation)
            out = self._in_space(self._normalized(pixels))
            return out.contiguous(memory_format=self._format)

    def _finish(self, pixels: Tensor, draw: ViewDraw) -> Tensor:
        """Apply all steps after the crop, to images in [0, 255] of any dtype and memory format."""
        device = pixels.device
        maps = None if draw.color is None else self._maps(draw.color, device)
        which = moved(draw.solarize, device)
        out = torch.empty(
            pixels.shape, device=device, dtype=torch.float32, memory_format=self._format
        )
        step = max(1, len(pixels))
        if device.type == "cpu" and not torch.compiler.is_compiling():
            step = max(1, _IN_CACHE // (pixels.shape[2] * pixels.shape[3]))
        for start in range(0, len(pixels), step):
            rows = slice(start, start + step)
            self._color(
                pixels[rows].to(torch.float32, memory_format=torch.contiguous_format),
                None if maps is None else maps.rows(rows),
                None if which is None else which[rows],
                out[rows],
            )
        return out

    def _color(
        self, pixels: Tensor, maps: ColorMaps | None, which: Tensor | None, out: Tensor
    ) -> None:
        """Jitter, gray, normalize, clamp, solarize float32 images in [0, 255]; write them to out.

        Bounds are scalars, one channel at a time: broadcast bounds are several times slower.
        """
        if maps is None:
            made = self._normalized(pixels)
        else:
            made = apply_color(pixels, maps, self._shift(pixels))
        last = which is None and self.color_space == "RGB"
        clamped = out if last else made
        for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True)):
            low, high = -mean / std, (1 - mean) / std
            clamped[:, channel] = made[:, channel].clamp(low, high)
        if last:
            return
        if which is not None:
            pairs = list(zip(self.mean, self.std, strict=True))
            threshold = constant([(0.5 - mean) / std for mean, std in pairs], made)
            bound = constant([(1 - 2 * mean) / std for mean, std in pairs], made)
            made = solarize(made, which, threshold=threshold, bound=bound)
        out.copy_(self._in_space(made))

    def _maps(self, draw: ColorDraw, device: torch.device) -> ColorMaps:
        """Compose the maps from [0, 255] to normalized colors, then move them to the device."""
        maps = color_maps(draw, tuple(1 / (255 * std) for std in self.std))
        return ColorMaps(
            moved(maps.hue, device), to_device(maps.pixel, device), to_device(maps.mean, device)
        )

    def _scale(self, like: Tensor) -> Tensor:
        """Return the factor `(3,)` from [0, 255] to normalized."""
        return constant([1 / (255 * std) for std in self.std], like)

    def _shift(self, like: Tensor) -> Tensor:
        """Return the normalized value `(3,)` of black."""
        return constant([-mean / std for mean, std in zip(self.mean, self.std, strict=True)], like)

    def _normalized(self, pixels: Tensor) -> Tensor:
        """Normalize images in [0, 255] by the mean and std."""
        scale, shift = self._scale(pixels), self._shift(pixels)
        return torch.addcmul(shift[:, None, None], pixels, scale[:, None, None])

    def _in_space(self, out: Tensor) -> Tensor:
        """Convert to the color space."""
        if self.color_space == "Lab":
            return normalize_lab(rgb_to_lab(out))
        if self.color_space == "YCbCr":
            return normalize_ycbcr(rgb_to_ycbcr(out))
        return out


def _resampled(images: Tensor, rows: Tensor, columns: Tensor, interpolation: str) -> Tensor:
    """Apply weights and clamp to [0, 255] if needed: the cubic kernel overshoots."""
    pixels = resample(images, rows, columns)
    return pixels.clamp_(0, 255) if interpolation == "bicubic" else pixels


def _check_side(size: Any) -> None:
    if not isinstance(size, Integral):
        raise UserError(f"Views: size: {size!r} is no whole number, the side in pixels.")


def _check_shares(name: str, given: Any, color_space: str) -> None:
    """Check the mean or the std: three numbers, in [0, 1] where images are normalized by them."""
    numbers = [float(number) for number in given] if isinstance(given, Iterable) else []
    most = 1 if color_space == "RGB" else float("inf")
    least = min(numbers, default=-1)
    if len(numbers) != 3 or least < 0 or max(numbers) > most or (name == "std" and least == 0):
        above = ", above 0" if name == "std" else ""
        raise UserError(
            f"Views: {name} {given} must be three numbers in [0, 1]{above}; those of pixels in "
            "[0, 255] are divided by 255."
        )


def _no_autocast(device: torch.device) -> torch.autocast:
    """Disable autocast: views are computed in float32.

    The dtype is given though it is unused, so that compiled code is not recompiled if it differs.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=False)


def _check_images(images: Tensor, draw: ViewDraw | None = None) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise UserError(
            f"{images.dtype} {tuple(images.shape)}; views need torch.uint8 (N, 3, H, W).",
            parameter="images",
        )
    if draw is not None and len(draw.boxes) != len(images):
        raise UserError(
            f"is for {len(draw.boxes)} images, but {len(images)} were given.", parameter="draw"
        )

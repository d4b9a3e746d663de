"""SaliencyMix: a box of the partner around its most salient place; and a map of salience."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unmix.mixtures.boxes import box_mask
from unmix.mixtures.draws import MaskDraw, MixtureDraw
from unmix.mixtures.fields import parameter
from unmix.mixtures.operators import PER, PairOperator, Per
from unmix.mixtures.sampling import PAIRINGS, Pairing, Weight, checked_shape
from unmix.transfer import to_device

__all__ = ["SaliencyMix", "spectral_residual"]

_SIDE = 64


@dataclass(frozen=True)
class SaliencyMix(PairOperator):
    """A box around the most salient pixel of one image is pasted into the same place of another.

    The box covers 1 - lambda of the image before it is clipped, and the share is that of the
    pixels, counted. Source: Uddin et al. 2021 (ICLR, arXiv 2006.01791), Sec. 3. The map is the
    spectral residual (Hou and Zhang 2007) of the view instead of OpenCV's fine-grained saliency.
    As released, the box of a batch is that of the first mixture's partner; `per="sample"` gives
    each its own.

    Args:
        weight: The distribution of lambda.
        per: One box for a `batch`, as released, or for each `sample`.
        pairing: See `unmix.mixtures.sampling.partners`.

    Raises:
        UserError: if a string is none of its choices.
    """

    one_draw = "one box"
    by_region: ClassVar[bool] = True
    needs_pixels: ClassVar[bool] = True

    weight: Weight = Weight()  # noqa: RUF009 - frozen
    per: Per = parameter("batch", setting="unmix_per", choices=PER)
    pairing: Pairing = parameter("reverse", setting="unmix_pairing", choices=PAIRINGS)

    def describe_mixing(self) -> str:
        """Where the box is, and the distribution of lambda."""
        return f"a box around the partner's most salient pixel; {self.weight}"

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
        salience: Tensor | None = None,
    ) -> MixtureDraw:
        """Draw for a batch of shape (N, C, H, W).

        Args:
            shape: Of the batch.
            generator: For lambda, and the partners.
            features: (N, D) for nearest neighbors.
            salience: How salient each pixel is, (N, H, W), on any device; see `draw_for`.

        Raises:
            ValueError: without the salience of all pixels.
        """
        n, height, width = checked_shape(shape, region=True)
        if salience is None or salience.shape != (n, height, width):
            raise ValueError(
                f"SaliencyMix needs how salient the pixels are, ({n}, {height}, {width}), not "
                f"{None if salience is None else tuple(salience.shape)}; "
                "use draw_for(images, generator)"
            )
        device = salience.device
        root = (1 - self.weight.draw(self._times(n), generator).double()).sqrt()
        size = torch.tensor([height, width], device="cpu")
        half = to_device((root[:, None] * size).long() // 2, device)
        partner = self._partner(n, generator, features)
        # Nothing is read back: the mask stays on the images' device.
        peak = salience.flatten(1).argmax(dim=1)[to_device(partner[: len(half)], device)]
        center = torch.stack([peak // width, peak % width], dim=1)
        edge = to_device(size, device)
        low = (center - half).clamp(min=0)
        box = torch.cat([low, (center + half).minimum(edge)], dim=1)
        return self._credited(MaskDraw(partner, box_mask(box, height, width)[:, 0], n))

    def draw_for(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
        attention: Tensor | None = None,
    ) -> MixtureDraw:
        """Draw for images (N, C, H, W), by the spectral residual of each."""
        return self.draw(images.shape, generator, features, spectral_residual(images))


@torch.no_grad()
def spectral_residual(images: Tensor) -> Tensor:
    """How salient each pixel is: the spectral residual, float32 (N, H, W), at most 1.

    The log amplitude of the spectrum, minus its local mean, is transformed back with the phase:
    what is left is what the spectrum does not predict. Source: Hou and Zhang 2007 (CVPR), with the
    numbers of OpenCV's StaticSaliencySpectralResidual (64 x 64 pixels, a mean over 3 x 3, a
    Gaussian of 5 x 5 and sigma 8), of the mean of the channels.

    Args:
        images: (N, C, H, W), in any unit.
    """
    with torch.autocast(images.device.type, enabled=False):
        gray = images.float().mean(dim=1, keepdim=True)
        small = _resized(gray, (_SIDE, _SIDE))[:, 0]
        spectrum = torch.fft.fft2(small)
        log = spectrum.abs().clamp(min=torch.finfo(torch.float32).tiny).log()
        residual = log - _filtered(log, torch.ones_like(log[0, 0, :3]) / 3)
        found = torch.fft.ifft2(torch.polar(residual.exp(), spectrum.angle())).abs()
        found = found / found.amax(dim=(1, 2), keepdim=True).clamp(min=1e-30)  # squares stay finite
        at = torch.arange(-2, 3, device=found.device, dtype=torch.float32)
        kernel = torch.exp(-(at**2) / (2 * 8.0**2))
        found = _filtered(found, kernel / kernel.sum()).square()
        found = found / found.amax(dim=(1, 2), keepdim=True).clamp(min=1e-30)
        return _resized(found[:, None], (images.shape[2], images.shape[3]))[:, 0]


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def _filtered(maps: Tensor, kernel: Tensor) -> Tensor:
    """Maps (N, H, W), filtered by a kernel along both axes; mirrored at the edges."""
    k = len(kernel) // 2
    padded = F.pad(maps[:, None], (k, k, k, k), mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[:, 0]

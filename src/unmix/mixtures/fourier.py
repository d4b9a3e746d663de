"""FMix: masks with the smooth outlines of low-frequency noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unmix.mixtures.boxes import whole_cells
from unmix.mixtures.draws import MaskDraw, MixtureDraw
from unmix.mixtures.fields import parameter
from unmix.mixtures.operators import PER, PairOperator, Per
from unmix.mixtures.sampling import PAIRINGS, Pairing, Weight, checked_shape
from unmix.randomness import device_of

__all__ = ["FMix", "low_frequency_noise"]


@dataclass(frozen=True)
class FMix(PairOperator):
    """The partner's pixels are where low-frequency noise is least.

    The image keeps the round(lambda H W) pixels with the largest noise, and the share is theirs,
    counted. Source: Harris et al. 2020 (arXiv 2002.12047), Sec. 4; the defaults are the paper's.

    Args:
        decay_power: The amplitude of a frequency f falls as f to this power; larger is smoother.
            At least 0.
        weight: The distribution of lambda.
        per: One mask for a `batch`, as released, or for each `sample`, which for 256 images of 224
            pixels takes a core most of a second.
        pairing: See `unmix.mixtures.sampling.partners`.
        align: Side in pixels of cells, of which masks are; None for pixels.

    Raises:
        UserError: if a number is out of its range, or a string is none of its choices.
    """

    by_region: ClassVar[bool] = True

    one_draw = "one mask"
    decay_power: float = parameter(3.0, at_least=0)
    weight: Weight = Weight()  # noqa: RUF009 - frozen
    per: Per = parameter("batch", setting="unmix_per", choices=PER)
    pairing: Pairing = parameter("reverse", setting="unmix_pairing", choices=PAIRINGS)
    align: int | None = parameter(None, setting="unmix_align", at_least=1)

    def describe_mixing(self) -> str:
        """Where the masks come from, and the distribution of lambda."""
        noise = f"masks of low-frequency noise, decay power {self.decay_power:g}"
        return f"{noise}; {self.weight}"

    def draw(
        self,
        shape: Sequence[int],
        generator: torch.Generator | None = None,
        features: Tensor | None = None,
    ) -> MixtureDraw:
        """Draw for a batch of shape (N, C, H, W); features (N, D) for nearest neighbors."""
        n, height, width = checked_shape(shape)
        lam = self.weight.draw(self._times(n), generator)
        side = self.align or 1
        rows, columns = whole_cells(height, width, side)
        noise = low_frequency_noise(len(lam), rows, columns, self.decay_power, generator).flatten(1)
        pasted = ((1 - lam) * rows * columns).round().long().tolist()
        mask = torch.zeros_like(noise, dtype=torch.bool)
        for row, values, count in zip(mask, noise, pasted, strict=True):
            if count > 0:
                row.copy_(values <= values.kthvalue(count).values)
        mask = mask.unflatten(1, (rows, columns))
        mask = mask.repeat_interleave(side, 1).repeat_interleave(side, 2)
        pairs = MaskDraw(self._partner(n, generator, features), mask, n)
        return self._credited(pairs)


def low_frequency_noise(
    m: int, height: int, width: int, decay_power: float, generator: torch.Generator | None
) -> Tensor:
    """Noise whose spectrum is complex Gaussian with amplitude f ** -decay_power: (m, H, W), CPU.

    Frequencies f are in cycles a pixel and taken as at least 1 / max(H, W), so that the constant
    part has a finite amplitude (Harris et al. 2020, Eq. 4 and released code).
    """
    rows = torch.fft.fftfreq(height, device="cpu", dtype=torch.float32)
    columns = torch.fft.rfftfreq(width, device="cpu", dtype=torch.float32)
    frequency = (rows[:, None].square() + columns.square()).sqrt()
    amplitude = frequency.clamp(min=1 / max(height, width)) ** -decay_power
    parts = torch.randn(
        (m, *amplitude.shape, 2), generator=generator, device=device_of(generator),
        dtype=torch.float32,
    ).cpu()  # fmt: skip
    return torch.fft.irfft2(torch.view_as_complex(parts) * amplitude, s=(height, width))

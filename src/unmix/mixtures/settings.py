"""The published flags, and the operators they stand for."""

from __future__ import annotations

from dataclasses import dataclass

from unmix.errors import check_choice
from unmix.mixtures.erasing import Cutout, RandomErasing
from unmix.mixtures.operators import ImageMixture, Operator, UnMix

__all__ = ["IM_TYPES", "MixtureSettings"]

IM_TYPES = ("IM", "global", "region", "Cutout", "RandomErasing")


@dataclass(frozen=True)
class MixtureSettings:
    """Which mixtures are used: the flags of the released code, with their defaults.

    Args:
        IM: Image space: perturb the views; the loss does not know.
        IM_type: The perturbation: IM (global, then region), global, region, Cutout, RandomErasing.
        g_alpha: Global mixtures: lambda ~ Beta(g_alpha, g_alpha).
        g_num: Global mixtures: rounds.
        g_prob: Global mixtures: probability of each round.
        r_beta: Region mixtures: lambda ~ Beta(r_beta, r_beta).
        r_prob: Region mixtures: probability of each round.
        r_num: Region mixtures: rounds.
        r_pixel_decay: Region mixtures: factor on the image in the first round.
        mask_size: Cutout: side of the square in pixels.
        cutout_p: Cutout: probability.
        cutout_inside: Cutout: keep the square inside the image.
        mask_color: Cutout: the value written (0 is the mean colour).
        area_ratio_range: RandomErasing: least and greatest share of the image.
        random_erasing_prob: RandomErasing: probability.
        min_aspect_ratio: RandomErasing: least height over width.
        max_attempt: RandomErasing: tries to find a rectangle that fits.
        unmix: Label space: share the loss between the two images of a mixture.
        unmix_prob: Un-Mix: probability of a global mixture; the rest are region mixtures.
        beta: Un-Mix: lambda ~ Beta(beta, beta).
        unmix_per: Un-Mix: one weight and coin a "batch" or a "sample".
        unmix_pairing: Un-Mix: partner by "reverse" of the batch or by "permutation".
        unmix_joint: Un-Mix: encode clean and mixed images in one forward; batch norm then takes
            its statistics over both.
    """

    IM: bool = False
    IM_type: str = "IM"
    g_alpha: float = 1.0
    g_num: int = 2
    g_prob: float = 0.1
    r_beta: float = 1.0
    r_prob: float = 0.1
    r_num: int = 2
    r_pixel_decay: float = 1.0
    mask_size: int = 50
    cutout_p: float = 0.1
    cutout_inside: bool = False
    mask_color: float = 0.0
    area_ratio_range: tuple[float, float] = (0.02, 0.4)
    random_erasing_prob: float = 0.1
    min_aspect_ratio: float = 0.3
    max_attempt: int = 20
    unmix: bool = False
    unmix_prob: float = 0.5
    beta: float = 1.0
    unmix_per: str = "batch"
    unmix_pairing: str = "reverse"
    unmix_joint: bool = False

    def __post_init__(self) -> None:
        check_choice("--IM_type", self.IM_type, IM_TYPES)
        self.label_space()
        for im_type in IM_TYPES:
            self._operator(im_type)

    @property
    def name(self) -> str:
        """What tables call it: "none", the IM_type, "Un-Mix", or both joined by "+"."""
        parts = [self.IM_type] * self.IM + ["Un-Mix"] * self.unmix
        return " + ".join(parts) or "none"

    def image_space(self) -> Operator | None:
        """The operator of `IM_type`, or None without `IM`."""
        return self._operator(self.IM_type) if self.IM else None

    def label_space(self) -> UnMix | None:
        """Un-Mix's operator, or None without `unmix`."""
        mixture = UnMix(self.unmix_prob, self.beta, self.unmix_per, self.unmix_pairing)  # type: ignore[arg-type]
        return mixture if self.unmix else None

    def _operator(self, im_type: str) -> Operator:
        if im_type == "Cutout":
            return Cutout(self.mask_size, self.cutout_p, self.cutout_inside, self.mask_color)
        if im_type == "RandomErasing":
            return RandomErasing(
                self.area_ratio_range,
                self.random_erasing_prob,
                self.min_aspect_ratio,
                self.max_attempt,
            )
        return ImageMixture(
            g_alpha=self.g_alpha,
            g_num=0 if im_type == "region" else self.g_num,
            g_prob=self.g_prob,
            r_beta=self.r_beta,
            r_num=0 if im_type == "global" else self.r_num,
            r_prob=self.r_prob,
            r_pixel_decay=self.r_pixel_decay,
        )

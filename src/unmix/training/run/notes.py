"""What is said in pixels, and was published for larger views than those of the run."""

from __future__ import annotations

from unmix.config import MixtureSettings, ViewSettings
from unmix.mixtures import Cutout
from unmix.views.kinds import view_kinds

__all__ = ["cutout_line", "notes_on_sizes"]

_PUBLISHED = 224
_MUCH = 0.25


def notes_on_sizes(mixture: MixtureSettings, views: ViewSettings, size: int) -> tuple[str, ...]:
    """What the user should hear of Cutout's square and of the blur, in views of `size` pixels."""
    lines = []
    operator = mixture.image_space()
    if isinstance(operator, Cutout):
        lines.append(cutout_line(operator, size))
    kinds = view_kinds(views, size, 2)
    sigma = next((k.settings.blur_sigma for k in kinds if k.settings.blur_p > 0), None)
    if sigma is not None and size <= _PUBLISHED // 2:
        low, high = sigma
        lines.append(
            f"note: --blur_sigma {low:g} {high:g} is in pixels; for their size, views of {size} px "
            f"are blurred {_PUBLISHED / size:.3g} times as much as the published ones of "
            f"{_PUBLISHED} px"
        )
    return tuple(lines)


def cutout_line(operator: Cutout, size: int) -> str:
    """What Cutout erases of square images, as a line; a warning above a quarter."""
    side = operator.side(size, size)
    mean, most = operator.erased(size, size)
    share = f"{mean:.0%} of the picture on average, {most:.0%} at most"
    if operator.mask_size is None:
        return f"Cutout: squares of {side} px, 50/224 of the side as published; {share}"
    if most <= _MUCH:
        return f"Cutout: squares of {side} px; {share}"
    right = Cutout().side(size, size)
    return (
        f"warning: --mask_size {side} erases {share}; without it, Cutout would be as published, "
        f"squares of {right} px"
    )

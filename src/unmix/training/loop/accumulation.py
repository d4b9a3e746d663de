"""`--accumulate`: the images of one optimizer step, encoded in parts."""

from __future__ import annotations

from unmix.backbones import has_batch_norm
from unmix.methods import Method

__all__ = ["accumulation_line", "part_sizes"]


def part_sizes(n: int, most: int, smallest: int = 2, even: bool = False) -> list[int]:
    """The sizes of the parts of a batch, as equal as they can be.

    The last batch of an epoch may be smaller; it has fewer parts then, or smaller ones.

    Args:
        n: Images of the batch, at least `smallest`.
        most: Images of a part of a full batch. A part has more only where it would else have fewer
            than `smallest`.
        smallest: The fewest images of a part.
        even: Whether parts have even sizes; then `n` is even.
    """
    count = max(1, min(-(-n // most), n // smallest))
    unit = 2 if even else 1
    size, more = divmod(n // unit, count)
    return [unit * (size + (number < more)) for number in range(count)]


def accumulation_line(method: Method, parts: int, batch_size: int, mixtures: bool) -> str:
    """What a run says of its parts: what they share with a whole batch, and what they do not.

    Args:
        method: The method that is trained.
        parts: Of a full batch.
        batch_size: Images of an optimizer step.
        mixtures: Whether label-space mixtures are drawn.
    """
    within = [] if method.across_samples is None else [method.across_samples]
    if has_batch_norm(method):
        within.append("statistics of batch norm")
    if mixtures:
        within.append("partners of mixtures")
    line = (
        f"accumulate: the {batch_size} images of a step are encoded in {parts} parts of "
        f"{batch_size // parts}, whose gradients are averaged"
    )
    if not within:
        return f"{line}, as of one batch"
    *others, last = within
    said = f"{', '.join(others)} and {last}" if others else last
    return f"note: {line}; as of one batch, but for {said}, which are those of a part"

"""The speed of training on this machine, by stage, and relative to its limit."""

from __future__ import annotations

import json as json_
from collections.abc import Callable, Sequence
from typing import Any

from typing_extensions import Unpack

from unmix.config.keywords import PretrainSettings
from unmix.data import StreamedImages
from unmix.display import memory, rate
from unmix.errors import UserError, check_number
from unmix.files import as_path, atomic_write
from unmix.names import shown
from unmix.studies.cost import unscheduled
from unmix.training.console import is_leader, quiet_libraries
from unmix.training.console import say as print_line
from unmix.training.profiling import STAGES, facts, measure_stages
from unmix.training.run.notes import note_on_width
from unmix.training.run.parts import build_parts, headline
from unmix.training.run.pretrain import settings_for

__all__ = ["bench", "check_output", "table"]


def bench(
    config: str | Sequence[str] | None = None,
    *,
    steps: int = 5,
    json: str | None = None,
    chart: str | None = None,
    say: Callable[[str], None] = print_line,
    **words: Unpack[PretrainSettings],
) -> dict[str, Any]:
    """Measure the stages of a training step, separately and together.

    Args:
        config: A recipe's name or a YAML file, or several, as for `pretrain`.
        steps: Number of measurements of each stage; the median is reported.
        json: Write all measurements to this file.
        chart: Write a bar chart to this file, a PNG.
        say: Prints a line.
        words: Settings of `pretrain`.

    Returns:
        The content of the JSON file.

    Raises:
        UserError: if settings are invalid, images cannot be read, or an output exists or cannot be
            written; before anything is measured.
    """
    check_number("steps", steps, at_least=1)
    for parameter, path in (("json", json), ("chart", chart)):
        check_output(parameter, path)
    if chart is not None and not chart.endswith(".png"):
        raise UserError(f"{chart} must end in .png.", parameter="chart")
    quiet_libraries()
    settings, recipes = settings_for({**words, "run": None}, config)
    if (note := note_on_width(settings)) is not None:
        say(note)
    if (both := unscheduled(settings)) is not None:
        settings = both[0]
        say("note: a mixed step is measured; not all steps of this run are")
    parts = build_parts(settings)
    say("\n".join(headline(parts, recipes).splitlines()[:2]))
    measured = facts(parts, measure_stages(parts, steps=steps))
    if isinstance(parts.train, StreamedImages) and (line := parts.train.skipped.line()):
        say(line)
    say(table(measured))
    if not is_leader():
        return measured
    if json is not None:
        atomic_write(as_path(json), _encoded(measured))
        say(f"json: {shown(json)}")
    if chart is not None:
        from unmix.figures.bench import step_chart
        from unmix.figures.saving import render

        atomic_write(as_path(chart), render(step_chart(measured), "png"))
        say(f"chart: {shown(chart)}")
    return measured


def table(measured: dict[str, Any]) -> str:
    """The table that `unmix bench` prints."""
    head = f"{'stage':<11}{'images/s':>10}{'from':>10}{'to':>10}{'ms/step':>11}  what"
    lines = [head, "-" * len(head)]
    for stage, row in measured["stages"].items():
        rates = row["images_per_second"]
        lines.append(
            f"{stage:<11}{rate(rates['median']):>10}{rate(rates['min']):>10}{rate(rates['max']):>10}"
            f"{row['milliseconds_per_step']:>11,.1f}  {STAGES[stage]}"
        )
    at_limit = measured["images_per_second_at_matmul_rate"]
    lines += [
        f"{'limit':<11}{rate(at_limit):>10}{'':>31}  forward and backward at the speed of a large "
        "matrix product",
        "",
        f"outside the model: {measured['outside_model_share']:.1%} of a step   model: "
        f"{measured['model_flops_per_second'] / 1e12:,.2f} of "
        f"{measured['matmul_flops_per_second'] / 1e12:,.2f} TFLOP/s "
        f"({measured['model_share_of_matmul_rate']:.0%})   peak memory: "
        f"{memory(measured['peak_memory_bytes'])}",
    ]
    return "\n".join(lines)


def check_output(parameter: str, name: str | None) -> None:
    """Check that a file can be written, before minutes are spent on its content.

    Raises:
        UserError: if it exists, or cannot be written.
    """
    if name is None:
        return
    path = as_path(name)
    if path.exists():
        raise UserError(f"{path} exists; give another name, or remove it.", parameter=parameter)
    atomic_write(path, b"")
    path.unlink()


def _encoded(measured: dict[str, Any]) -> bytes:
    return (json_.dumps(measured, indent=1) + "\n").encode()

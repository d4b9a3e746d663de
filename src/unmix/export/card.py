"""A model card: what a run was trained on, how, and what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unmix.names import shown

__all__ = ["Card", "ResultLine"]


@dataclass(frozen=True)
class ResultLine:
    """The accuracy of a protocol on a data set.

    Attributes:
        title: The protocol, in words.
        data: Name of the data set.
        value: Top-1 of this run, in percent.
        siblings: Top-1 of the runs that differ in their seed alone, this one included.
    """

    title: str
    data: str
    value: float
    siblings: tuple[float, ...]

    @property
    def spread(self) -> str:
        """Mean and standard deviation over the seeds, if there are several."""
        if len(self.siblings) < 2:
            return "one seed"
        mean, std = statistics.mean(self.siblings), statistics.stdev(self.siblings)
        return f"{mean:.1f} ± {std:.1f} (n = {len(self.siblings)})"


@dataclass(frozen=True)
class Card:
    """What a model card says.

    Attributes:
        title: Name of the run.
        license: Identifier of Hugging Face's list, such as apache-2.0.
        about: A paragraph.
        data: What it was trained on, or that this is not known.
        recipe: Settings by name.
        results: Measured accuracies.
        versions: Of the packages that it was trained with.
    """

    title: str
    license: str = "unknown"
    about: str = ""
    data: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    results: Sequence[ResultLine] = ()
    versions: Mapping[str, Any] = field(default_factory=dict)

    def text(
        self, *, library: str, tags: Sequence[str], usage: Sequence[str], prepared: Sequence[str]
    ) -> str:
        """The README.md.

        Args:
            library: "timm" or "unmix".
            tags: Tags of the front matter.
            usage: Lines of Python that load it.
            prepared: Sentences: how images are prepared.
        """
        front = [
            "---", f"license: {self.license}", f"library_name: {library}",
            "pipeline_tag: image-feature-extraction", "tags:", *(f"- {tag}" for tag in tags), "---",
        ]  # fmt: skip
        parts = [f"# {_plain(self.title)}", self.about, f"## How to load it\n\n{_code(usage)}"]
        parts.append(" ".join(prepared))
        if self.data:
            parts.append(f"## Data\n\n{self.data}")
        parts.append(f"## Results\n\n{self._results()}")
        if self.recipe:
            rows = [(f"`{name}`", _cell(value)) for name, value in self.recipe.items()]
            parts.append(f"## Recipe\n\n{_table(('setting', 'value'), rows)}")
        if self.versions:
            parts.append(
                "Trained with " + ", ".join(f"{k} {v}" for k, v in self.versions.items()) + "."
            )
        return "\n".join(front) + "\n\n" + "\n\n".join(part for part in parts if part) + "\n"

    def _results(self) -> str:
        if not self.results:
            return "None are recorded here."
        rows = [
            (row.title, _cell(row.data), f"{row.value:.1f}", row.spread) for row in self.results
        ]
        header = ("protocol", "data", "this run: top-1 (%)", "seeds: mean ± standard deviation")
        return (
            f"{_table(header, rows)}\n\nThe spread is over runs of the same settings that differ "
            "in their seed; it says how much of a difference may be chance."
        )


def _code(lines: Sequence[str]) -> str:
    return "```python\n" + "\n".join(lines) + "\n```"


def _plain(text: object) -> str:
    return shown(text).replace("`", "'").replace("<", "&lt;")


def _cell(value: object) -> str:
    """A value in a cell of a table."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_cell, value))
    return _plain(value).replace("|", "\\|")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

"""What is ignored in a folder of images, and the lines that say so."""

from __future__ import annotations

from collections import Counter

from unmix.data.formats import HEIC, HEIC_REASON
from unmix.names import in_words, shown

__all__ = ["Passed"]

_MOST_NAMED = 6


class Passed:
    """What was ignored: files that are not images, counted, output of unmix, and repeated folders.

    Attributes:
        others: Number of files by extension.
        special: Paths with the name of an image that are not regular files, and what they are.
        runs: Run folders.
        figures: Figures of unmix.
        again: Links to folders whose images are listed already.
        loops: Links to a folder that they are in.
        nowhere: Links that cannot be followed, and whose names are no images'.
        holding: For device and inode of a folder, whether there are images in it at any depth.
    """

    def __init__(self) -> None:
        self.others: Counter[str] = Counter()
        self.special: list[tuple[str, str]] = []
        self.runs: list[str] = []
        self.figures: list[str] = []
        self.again: dict[str, None] = {}
        self.loops: list[str] = []
        self.nowhere: list[str] = []
        self.holding: dict[tuple[int, int], bool] = {}

    def lines(self) -> list[str]:
        """A line for each kind."""
        lines = []
        if self.others:
            named = [
                f"{count:,} {f'.{shown(kind)}' if kind else 'without extension'}"
                + (f" ({HEIC_REASON})" if kind in HEIC else "")
                + (" (wds:FOLDER reads them as shards)" if kind == "tar" else "")
                for kind, count in sorted(
                    self.others.items(), key=lambda kv: (kv[0] != "tar", -kv[1], kv[0])
                )
            ]
            rest = sum(sorted(self.others.values(), reverse=True)[_MOST_NAMED:])
            named = named[:_MOST_NAMED] + ([f"{rest:,} others"] if rest else [])
            lines.append(f"ignored, since they are not images: {', '.join(named)}")
        if self.special:
            path, kind = self.special[0]
            count = _counted(len(self.special), "name")
            verb = "are not regular files" if len(self.special) > 1 else "is not a regular file"
            lines.append(f"ignored: {count} that {verb} ({shown(path)}: {kind})")
        if self.again:
            count = _counted(len(self.again), "link")
            first = shown(next(iter(self.again)))
            lines.append(f"ignored: {count} to folders whose images are listed already ({first})")
        if self.loops:
            count = _counted(len(self.loops), "link")
            lines.append(f"ignored: {count} to a folder above ({shown(self.loops[0])})")
        if self.nowhere:
            count = _counted(len(self.nowhere), "link")
            lines.append(f"ignored: {count} that cannot be followed ({shown(self.nowhere[0])})")
        own = []
        if self.runs:
            own.append(f"{_counted(len(self.runs), 'run folder')} ({shown(self.runs[0])})")
        if self.figures:
            own.append(f"{_counted(len(self.figures), 'figure')} ({shown(self.figures[0])})")
        if own:
            lines.append(f"ignored, since unmix wrote them: {in_words(own)}")
        return lines


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("s" if count != 1 else "")

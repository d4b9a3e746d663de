"""The report of runs or of a study while they are trained, in a browser on this machine."""

from __future__ import annotations

import hashlib
import time
import webbrowser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unmix.commands.finished import Say
from unmix.commands.serving import Page, bound, serving
from unmix.commands.watched import Watched, watched
from unmix.display import Answer
from unmix.errors import UserError
from unmix.figures.report import page
from unmix.figures.report_content import Report, Running
from unmix.names import shown
from unmix.studies.watching import State, follow
from unmix.training.console import quiet_libraries
from unmix.training.console import say as print_line

__all__ = ["watch"]

_REFRESH = 3.0
_PAUSE = 1.0


def watch(
    *runs: Path | str | Sequence[Path | str],
    port: int | None = None,
    open: bool = False,
    say: Say = print_line,
) -> None:
    """Show the report of runs or of a study in a browser while they are trained.

    The page is that of `unmix compare` or of a study, at an address of this machine that no other
    can reach, and renews itself. Ctrl-C ends it, and not the training.

    Args:
        runs: Run folders, or the folder of one study. A folder that does not exist yet, or is
            empty, is waited for.
        port: Of the address; by default the first free one from 8642 on.
        open: Open the page in the browser.
        say: Prints a line.

    Raises:
        UserError: if a folder holds neither a run nor a study, the port is not free, or all that is
            watched was deleted.
    """
    quiet_libraries()
    subject = watched(runs)
    server = bound(port)
    live = _Live(subject, say)
    live.renew()
    with serving(server, live.page) as url:
        say(f"{url} shows {shown(subject.name)} during training; Ctrl-C ends this page alone")
        if open and not _opened(url):
            say("no browser can be opened here; open the address in one")
        follow(live.renew, say, lambda _: time.sleep(_PAUSE), stay=True)


def _opened(url: str) -> bool:
    try:
        return webbrowser.open(url)
    except webbrowser.Error:
        return False


class _Live:
    """The page as it is now; made anew when the files of the runs change.

    Args:
        subject: What is watched.
        say: Prints a line.
        refresh: Seconds after which the page asks again.
    """

    def __init__(self, subject: Watched, say: Say, refresh: float = _REFRESH) -> None:
        self.subject, self.say, self.refresh = subject, say, refresh
        self.stamp: object = None
        self.report: Report | None = None
        self.served: Page | None = None
        self.told = ""

    def page(self) -> Page:
        """As it is served."""
        assert self.served is not None
        return self.served

    def renew(self) -> State:
        """Read what has changed; gives how far the training is.

        Raises:
            UserError: if nothing is left to be watched.
        """
        state = self.subject.state()
        stamp = self.subject.stamp()
        if self.report is None or stamp != self.stamp:
            self._read(stamp)
            state = self.subject.state()
        assert self.report is not None
        heading = "Still training." if state.running else ""
        running = Running(_sentence(state), state.done, self.refresh, heading=heading)
        tag = hashlib.sha256(repr((self.report, running)).encode(errors="replace")).hexdigest()
        if self.served is None or self.served.tag != tag:
            found = replace(self.report, running=replace(running, tag=tag))
            self.served = Page(page(found), tag)
        return state

    def _read(self, stamp: object) -> None:
        try:
            self.report = self.subject.report()
            self.stamp, self.told = stamp, ""
        except UserError as error:
            line = f"{error.on_command_line().rstrip('.')}; the page shows what was there before."
            if line != self.told:
                self.say(f"note: {line}")
                self.told = line
            last = self.report or Report("Nothing to show yet", Answer("Nothing can be read yet."))
            notes = [note for note in last.notes if not note.endswith("what was there before.")]
            self.report = replace(last, notes=[*notes, line])


def _sentence(state: State) -> str:
    return f"{state.text[:1].upper()}{state.text[1:]}."

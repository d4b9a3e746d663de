"""Named stages of a training step, so that a profiler can time the step that is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

__all__ = ["observe_stages", "stage"]

_Observer = Callable[[str], AbstractContextManager[Any]]
_observer: _Observer | None = None


def stage(name: str) -> AbstractContextManager[Any]:
    """A context whose code is a stage of the step: views, mixture, forward or optimizer.

    Stages may be nested: a mixture is applied within forward. Without an observer it does nothing.
    """
    return nullcontext() if _observer is None else _observer(name)


@contextmanager
def observe_stages(observer: _Observer) -> Iterator[None]:
    """Enter `observer(name)` around every stage of the steps that are taken within."""
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before

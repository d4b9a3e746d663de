"""The frozen teacher of a run, for methods that learn from one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from unmix.config import Settings
from unmix.config.compatibility import check_teacher
from unmix.config.teacher import TeacherSettings
from unmix.errors import UserError, renamed
from unmix.methods import Teacher
from unmix.weights import Trained, open_weights, trained_network

__all__ = ["RunTeacher", "teacher_of"]

_SETTINGS = {
    "init": "teacher", "init_sha256": "teacher_sha256", "backbone": "teacher_backbone",
    "size": "teacher_size", "mean": "teacher_mean", "std": "teacher_std",
}  # fmt: skip


@dataclass(frozen=True)
class RunTeacher:
    """A teacher of a run.

    Attributes:
        trained: The network, and how its images are prepared.
        settings: What was said of it.
        sha256: Of the file of its weights.
    """

    trained: Trained
    settings: TeacherSettings
    sha256: str

    @property
    def mean(self) -> tuple[float, ...]:
        """By which its images are normalized."""
        return self.settings.teacher_mean or self.trained.preparation.mean

    @property
    def std(self) -> tuple[float, ...]:
        """By which its images are normalized."""
        return self.settings.teacher_std or self.trained.preparation.std

    def module(self, view_mean: Sequence[float], view_std: Sequence[float]) -> nn.Module:
        """The network as it sees views that are normalized by these numbers."""
        return Teacher(
            self.trained.network, size=self.trained.size, mean=self.mean, std=self.std,
            view_mean=view_mean, view_std=view_std,
        )  # fmt: skip

    def notes(self, size: int, mean: Sequence[float], std: Sequence[float]) -> tuple[str, ...]:
        """What the teacher is, and how it sees the views.

        Args:
            size: Side of the views.
            mean: By which they are normalized.
            std: By which they are normalized.
        """
        trained = self.trained
        millions = sum(p.numel() for p in trained.network.parameters()) / 1e6
        sees = f"resized from {size} to {trained.size} px" * (trained.size != size)
        pairs = zip((*self.mean, *self.std), (*mean, *std), strict=True)
        if any(abs(a - b) > 1e-4 for a, b in pairs):
            given = [n for n in ("teacher_mean", "teacher_std") if getattr(self.settings, n)]
            source = "as given" if len(given) == 2 else trained.preparation.source
            words = (" ".join(f"{value:.4g}" for value in each) for each in (self.mean, self.std))
            own = "normalized by mean {}, std {} ({})".format(*words, source)
            sees = f"{sees}, {own}" if sees else own
        return (
            f"teacher: {trained.title}, {millions:.1f} M parameters, {trained.feature_dim} "
            f"features, frozen; {trained.loaded}; it sees the views {sees or 'as they are'}",
        )


def teacher_of(settings: Settings) -> RunTeacher | None:
    """The teacher of a run; None if its method has none.

    Raises:
        UserError: if none is given, it cannot be opened, is not that of an earlier start of the
            run, or cannot see the views.
    """
    if not settings.teacher:
        return None
    check_teacher(settings)
    chosen = TeacherSettings(**settings.teacher)
    assert chosen.teacher is not None
    with _named():
        weights = open_weights(chosen.teacher, chosen.teacher_sha256)
        trained = trained_network(
            weights, backbone=chosen.teacher_backbone, size=chosen.teacher_size
        )
    return RunTeacher(trained, chosen, weights.sha256)


@contextmanager
def _named() -> Iterator[None]:
    """Name the parameters of weights as those of the teacher; others are what its file says."""
    try:
        with renamed(_SETTINGS):
            yield
    except UserError as error:
        if error.parameter in (None, *_SETTINGS.values()):
            raise
        raise UserError(f"{error.parameter}: {error.message}", parameter="teacher") from None

"""The settings of a frozen teacher: of methods that learn from one."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from unmix.errors import UserError, check_given, check_number

__all__ = ["TEACHER", "TeacherSettings"]


@dataclass(frozen=True)
class TeacherSettings:
    """The trained network that a student learns from.

    Args:
        teacher: Its weights: a run folder, a checkpoint of another project, timm:NAME or
            torchvision:NAME.
        teacher_sha256: SHA-256 that the file of these weights must have; recorded when a run
            starts.
        teacher_backbone: Its network, such as timm:NAME, if the file does not say; by default by
            the shapes of the tensors.
        teacher_size: Side in pixels to which the views are resized for it; by default its own.
        teacher_mean: RGB mean in [0, 1] by which its images were normalized; by default as its
            source says, else ImageNet's.
        teacher_std: RGB standard deviation, likewise.
    """

    teacher: str | None = None
    teacher_sha256: str | None = None
    teacher_backbone: str | None = None
    teacher_size: int | None = None
    teacher_mean: tuple[float, float, float] | None = None
    teacher_std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        check_given("teacher", self.teacher)
        check_given("teacher_backbone", self.teacher_backbone)
        for name in TEACHER[1:]:
            if self.teacher is None and getattr(self, name) is not None:
                raise UserError("applies to `teacher`; give it too.", parameter=name)
        if self.teacher_sha256 is not None and not re.fullmatch(
            r"[0-9a-f]{64}", self.teacher_sha256
        ):
            raise UserError(
                f"{self.teacher_sha256!r} is not a SHA-256; it has 64 hexadecimal digits.",
                parameter="teacher_sha256",
            )
        if self.teacher_size is not None:
            check_number("teacher_size", self.teacher_size, at_least=1)
        for value in self.teacher_mean or ():
            check_number("teacher_mean", value, at_least=0, at_most=1)
        for value in self.teacher_std or ():
            check_number("teacher_std", value, above=0, at_most=1)


TEACHER = tuple(field.name for field in fields(TeacherSettings))
"""The names of these settings; the first is the teacher itself."""

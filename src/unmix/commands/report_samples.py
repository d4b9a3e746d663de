"""Mixtures as the runs of a report draw them: of their own images, with their own settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from unmix.commands.preview import mixture_figure
from unmix.config import Settings
from unmix.data.fingerprint import Fingerprint
from unmix.display import counted
from unmix.errors import UserError
from unmix.figures.report_content import Picture
from unmix.figures.saving import inline
from unmix.names import in_words
from unmix.training.run.data_record import DataRecord
from unmix.training.run.folder import RunFolder
from unmix.training.run.parts import load_split, native_size

__all__ = ["mixture_samples"]

_IMAGES = 6
_MOST = 6


def mixture_samples(runs: Mapping[str, Path]) -> tuple[list[Picture], list[str]]:
    """A figure for each mixture, and why there is none where it cannot be drawn.

    Args:
        runs: For each condition the folder of one of its runs; those without a mixture are left
            out.
    """
    groups: dict[str, dict[str, tuple[Path, Settings]]] = {}
    notes = []
    for name, folder in runs.items():
        try:
            settings = RunFolder(folder).settings()
        except UserError as error:
            notes.append(f"No samples of the mixture of {name}: {error}")
            continue
        if settings.mixture.IM or settings.mixture.unmix:
            run = settings.run
            key = repr((settings.mixture, run.data, run.data_dir, run.size, run.limit))
            groups.setdefault(key, {})[name] = folder, settings
    pictures = []
    for members in list(groups.values())[:_MOST]:
        names = in_words(list(members))
        folder, settings = next(iter(members.values()))
        several = settings.mixture.mixtures if settings.mixture.unmix else ()
        for number in range(len(several)) if several[1:] else (None,):
            try:
                pictures.append(_picture(names, folder, settings, number))
            except UserError as error:
                notes.append(f"No samples of the mixture of {names}: {error}")
    if len(groups) > _MOST:
        notes.append(f"Samples are shown of {_MOST} of {counted(len(groups), 'mixture')}.")
    return pictures, notes


def _picture(name: str, folder: Path, settings: Settings, number: int | None) -> Picture:
    """Of the only mixture of a step, or of one of several."""
    run = replace(settings.run, download=False)
    seen: dict[str, Fingerprint] = {}
    images = load_split(run, "pretrain", seen)
    record = DataRecord.read(folder)
    if record is not None and (clause := record.difference(seen)) is not None:
        raise UserError(f"{clause}.")
    size = run.size or native_size(images)
    figure, title = mixture_figure(
        images, settings.mixture, n=_IMAGES, seed=run.seed, size=size, theme="inline", number=number
    )
    caption = f"{title.replace(chr(10), '; ')}. Whole images, before any augmentation."
    return Picture(name, inline(figure, f"{name}: {caption}"), caption)

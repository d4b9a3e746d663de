"""Prediction curves of runs: sorted feature values of a few images, softness over all."""

from __future__ import annotations

from unmix.commands.plots.drawn import Drawn, Request
from unmix.commands.plots.opened import images_of, open_runs
from unmix.commands.predictions import check_positive, split_word, spread_over_classes
from unmix.data import read_uint8
from unmix.errors import UserError
from unmix.evaluation import softness_summary
from unmix.figures.predictions import prediction_curves
from unmix.figures.widths import inches
from unmix.hardware.threads import CoreMeter
from unmix.training.console import quiet_libraries

__all__ = ["predicted"]

_IMAGES = 6
_LEAST = 5.0  # inches


def predicted(request: Request) -> Drawn:
    """Sorted feature values of a few images, of the test set if there is one; measures over all."""
    if len(request.runs) > 1 and inches(request.width) < _LEAST:
        raise UserError(
            "a column is too narrow for more than one run; leave it out.", parameter="width"
        )
    quiet_libraries()
    cores = CoreMeter()
    runs = open_runs(request)
    images = images_of(runs, request, "the figure predictions")[0]
    measured = {}
    for opened in runs:
        with opened.computing(request, cores):
            encode = opened.run.encoder.features
            measured[opened.label] = opened.run.features(encode, images.test, request.say)
            check_positive(opened.path, measured[opened.label].features)
    first = next(iter(measured.values()))
    few = spread_over_classes(first.labels, len(first.index), _IMAGES)
    side = max(opened.run.encoder.views.size for opened in runs)
    pictures, _ = read_uint8(images.test, first.index[few], side)
    curves = {label: found.features[few] for label, found in measured.items()}
    settings = {opened.label: opened.run.settings for opened in runs}
    figure = prediction_curves(
        pictures.cpu(),
        curves,
        {label: softness_summary(found.features) for label, found in measured.items()},
        methods={label: own.run.method for label, own in settings.items()},
        baselines=[label for label, own in settings.items() if own.mixture.name == "none"],
        split=split_word(images.test.split),
        theme=request.theme,
    )
    figure.set_figwidth(inches(request.width))
    if len(runs) > 3:
        for axes in figure.axes:
            axes.set_xlabel("sorted feature" if axes.get_xlabel() else "", fontsize=8)
    caption = (
        f"Pooled features of {len(few)} {images.words}, sorted by value; measures are over "
        f"{len(first.index):,}."
    )
    rows = [
        [label, int(index), rank, float(value)]
        for label, features in curves.items()
        for index, values in zip(first.index[few], features, strict=True)
        for rank, value in enumerate(values.sort().values, start=1)
    ]
    return Drawn(figure, ["run", "image", "rank", "value"], rows, caption)

"""Histograms of the weights of runs' encoders, before and after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unmix.commands.plots.drawn import Drawn, Request
from unmix.commands.plots.opened import checked_folders, labels_of
from unmix.errors import UserError
from unmix.evaluation.encoder import ENCODER_FILE, read_encoder
from unmix.figures.looks import looks_of
from unmix.figures.weights import BEFORE, binned, weight_histograms
from unmix.names import in_words, shown
from unmix.training.run.building import build_method, no_teacher
from unmix.training.run.folder import RunFolder
from unmix.training.run.initial import start_of

__all__ = ["before_training", "common_layers", "weights"]

_LAYERS = 6


def weights(request: Request) -> Drawn:
    """Histograms of the weights of a few layers."""
    paths = checked_folders(request.runs, alone=True)
    folders = [path for path in paths if path.is_dir()]
    names = dict(zip(folders, labels_of(folders), strict=True))
    names |= {path: shown(path.name) for path in paths if not path.is_dir()}
    if len(set(names.values())) < len(paths):
        names = {path: shown(path) for path in paths}
    states, kinds = {}, {}
    for path in paths:
        file = path / ENCODER_FILE if path.is_dir() else path
        state, facts = read_encoder(file)
        states[names[path]] = state
        mixture = RunFolder(path).settings().mixture.name if path.is_dir() else names[path]
        kinds[names[path]] = (str(facts["method"]), mixture)
    layers = _chosen(request.option("layers"), states)
    before = before_training(folders[0]) if folders else {}
    drawn: dict[str, dict[str, np.ndarray]] = {}
    for layer in layers:
        models = {name: state[layer].float().numpy() for name, state in states.items()}
        own = before.get(layer)
        if own is not None and own.shape == next(iter(models.values())).shape:
            models = {BEFORE: own.float().numpy(), **models}
        drawn[layer.removesuffix(".weight")] = models
    caption = (
        f"Weights of {len(layers)} of {len(common_layers(states))} layers, bins over the "
        "middle 99.9 %; std: standard deviation of all weights, in the order of the legend"
        + (f". Before training: the initial weights of {names[folders[0]]}" if before else "")
        + "."
    )
    figure = weight_histograms(drawn, looks_of(kinds), caption=caption, **request.how)
    rows = [
        [layer, name, float(low), float(high), float(value)]
        for layer, (edges, density) in binned(drawn).items()
        for name, values in density.items()
        for low, high, value in zip(edges, edges[1:], values, strict=False)
    ]
    return Drawn(figure, ["layer", "run", "from", "to", "density"], rows, caption)


def common_layers(states: Mapping[str, Mapping[str, torch.Tensor]]) -> list[str]:
    """Weights of convolutions and linear layers that all encoders have, in the same shape."""
    first, *others = ({name: w.shape for name, w in state.items()} for state in states.values())
    return [
        name
        for name, shape in first.items()
        if name.endswith(".weight")
        and len(shape) >= 2
        and all(other.get(name) == shape for other in others)
    ]


def _chosen(
    given: Sequence[str] | None, states: Mapping[str, Mapping[str, torch.Tensor]]
) -> list[str]:
    """The layers that were given, or some from the first to the last."""
    known = common_layers(states)
    if not known:
        raise UserError(
            f"the encoders of {in_words(list(states))} have no layer of the same name and shape; "
            "give runs of one architecture.",
            parameter="runs", flag="RUN",
        )  # fmt: skip
    if given is None:
        count = min(_LAYERS, len(known))
        at = np.linspace(0, len(known) - 1, count).round().astype(int)
        return [known[i] for i in at]
    short = [name.removesuffix(".weight") for name in known]
    for name in given:
        if name.removesuffix(".weight") not in short:
            from unmix.synonyms import nearest

            near = nearest(name, short)
            raise UserError(
                f"{name!r} is no layer with weights of these encoders"
                f"{f'; did you mean {near}?' if near else ': they have ' + ', '.join(short[:8])}",
                parameter="layers",
            )
    return [f"{name.removesuffix('.weight')}.weight" for name in dict.fromkeys(given)]


def before_training(folder: Path) -> Mapping[str, torch.Tensor]:
    """The weights with which a run began."""
    settings = RunFolder(folder).settings()
    start = start_of(settings.model)
    images = _enough(settings.method)  # a memory of the run's own number may be large
    method = build_method(settings, images, settings.run.size or 32, start, no_teacher())
    return method.backbone.state_dict()


def _enough(options: Mapping[str, Any]) -> int:
    """A number of images that a method of these options can be built for."""
    clusters = options.get("prototypes") or 1
    return 1 + max(
        options.get("negatives") or 1, *(clusters if isinstance(clusters, tuple) else (clusters,))
    )

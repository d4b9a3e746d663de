"""t-SNE and UMAP of the features of runs."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np
from torch.nn.functional import normalize

from unmix.commands.plots.drawn import Drawn, Request
from unmix.commands.plots.opened import OpenRun, images_of, open_runs
from unmix.errors import UserError, check_choice, check_number
from unmix.evaluation import LabeledFeatures
from unmix.figures.embedding import embedding
from unmix.hardware.threads import CoreMeter
from unmix.training.console import quiet_libraries

__all__ = ["tsne", "umap"]

_IMAGES = 2000


def tsne(request: Request) -> Drawn:
    """t-SNE of the features (van der Maaten and Hinton 2008), by class."""
    perplexity = request.option("perplexity", 30.0)
    check_number("perplexity", perplexity, at_least=1)
    least = int(3 * perplexity) + 2
    return _drawn(request, "t-SNE", least, "perplexity", perplexity)


def umap(request: Request) -> Drawn:
    """UMAP of the features (McInnes et al. 2018), by class."""
    neighbors, distance = request.option("neighbors", 15), request.option("min_dist", 0.1)
    check_number("neighbors", neighbors, at_least=2)
    check_number("min_dist", distance, at_least=0, at_most=1)
    if find_spec("umap") is None:
        raise UserError(
            "the figure umap needs the package umap-learn: pip install 'unmix[umap]'; the figure "
            "tsne needs no other package."
        )
    return _drawn(request, "UMAP", neighbors + 2, "neighbors", neighbors)


def _drawn(request: Request, title: str, least: int, parameter: str, value: float) -> Drawn:
    most, seed = request.option("images", _IMAGES), request.option("seed", 0)
    check_number("images", most, at_least=1)
    check_number("seed", seed, at_least=0, at_most=2**32 - 1)
    kind = check_choice(
        "features", request.option("features", "backbone"), ("backbone", "projector")
    )
    quiet_libraries()
    cores = CoreMeter()
    runs = open_runs(request)
    images = images_of(runs, request, title)
    shown_images, where = images[0].test.evenly(most), images[0].test.evenly_spaced(most)
    _check_count(title, len(shown_images), least, parameter, value, len(images[0].test))
    panels, found = {}, None
    for opened in runs:
        with opened.computing(request, cores):
            found = _encoded(opened, shown_images, kind, request)
            _check_count(title, len(found.index), least, parameter, value, len(found.index))
            request.say(f"{title} of {len(found.index):,} images for {opened.label}")
            unit = normalize(found.features, dim=1).numpy()
            panels[opened.label] = _embedded(title, unit, request, seed)
    assert found is not None
    labels = None if found.labels is None else found.labels.numpy()
    classes = images[0].classes or ()
    caption = _caption(title, len(found.index), images[0].words, kind, request, seed)
    figure = embedding(panels, labels, classes, caption=caption, **request.how)
    rows = [
        [
            label,
            int(where[index]),
            "" if labels is None else classes[int(labels[i])],
            *map(float, point),
        ]
        for label, points in panels.items()
        for i, (index, point) in enumerate(zip(found.index, points, strict=True))
    ]
    return Drawn(figure, ["run", "image", "class", "x", "y"], rows, caption)


def _encoded(opened: OpenRun, images: Any, kind: str, request: Request) -> LabeledFeatures:
    subject = opened.run.subject(kind)
    return opened.run.features(subject.encode, images, request.say)


def _check_count(
    title: str, count: int, least: int, parameter: str, value: float, there: int
) -> None:
    if count >= least:
        return
    if count < there:
        raise UserError(
            f"{count} are too few for {title} with `{parameter}={value:g}`, which needs {least} or "
            "more.",
            parameter="images",
        )
    fitting = max(1, (count - 2) // 3) if parameter == "perplexity" else max(2, count - 2)
    if fitting + 2 > count:
        raise UserError(
            f"{title}: there are {count} images, which are too few; it needs {least} or more."
        )
    raise UserError(
        f"{value:g} needs {least} images or more, and there are {count}; give {fitting} or less.",
        parameter=parameter,
    )


def _embedded(title: str, features: np.ndarray, request: Request, seed: int) -> np.ndarray:
    """Points (N, 2) of unit vectors (N, D)."""
    # Random numbers follow from the seed alone in one thread.
    if title == "t-SNE":
        from sklearn.manifold import TSNE

        model = TSNE(
            perplexity=float(request.option("perplexity", 30.0)), init="pca", random_state=seed,
            learning_rate="auto", n_jobs=1,
        )  # fmt: skip
        return np.asarray(model.fit_transform(features))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, and of numba
        from umap import UMAP

        model = UMAP(
            n_neighbors=request.option("neighbors", 15), min_dist=request.option("min_dist", 0.1),
            random_state=seed, n_jobs=1,
        )  # fmt: skip
        return np.asarray(model.fit_transform(features))


def _caption(title: str, count: int, words: str, kind: str, request: Request, seed: int) -> str:
    if title == "t-SNE":
        how = (
            f"perplexity {request.option('perplexity', 30.0):g}, 1,000 iterations, start by "
            "principal components"
        )
    else:
        how = (
            f"{request.option('neighbors', 15)} neighbors, minimum distance "
            f"{request.option('min_dist', 0.1):g}"
        )
    return (
        f"{title} of {count:,} {words}: {kind} features, L2-normalized; {how}, seed {seed}. "
        "Distances between groups and sizes of groups have no meaning."
    )

"""The figures of `unmix plot`: what each shows, what it needs, and the flags that it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unmix.errors import UserError, check_choice
from unmix.names import in_words

__all__ = ["FIGURES", "FigureFacts", "check_figure", "checked", "figures_text", "list_figures"]


@dataclass(frozen=True)
class FigureFacts:
    """A figure of `unmix plot`.

    Attributes:
        about: What it shows.
        paper: The published figure of this kind; empty without one.
        needs: What runs must have for it.
        options: The options that it takes beside those of every figure.
        most: How many runs it takes at most.
    """

    about: str
    paper: str
    needs: str
    options: tuple[str, ...] = ()
    most: int | None = None


_IM, _UNMIX = "Shen et al. 2020", "Un-Mix"
_ENCODED = ("device", "threads", "data_dir")

FIGURES: dict[str, FigureFacts] = {
    "accuracy": FigureFacts(
        "top-1 accuracy against epochs or time, mean and band over seeds", f"{_IM}, Figure 2",
        "finished runs with a kNN or linear accuracy", ("protocol", "against"),
    ),
    "loss": FigureFacts(
        "training loss against epochs", f"{_UNMIX}, Figure 2", "finished runs",
    ),
    "knn": FigureFacts(
        "kNN accuracy against epochs", f"{_UNMIX}, Figure 2", "finished runs with kNN accuracies",
    ),
    "predictions": FigureFacts(
        "sorted feature values of single images, and how flat they are", f"{_IM}, Figure 3",
        "finished runs on the same images, of encoders that end in a ReLU", _ENCODED,
        4,
    ),
    "softmax": FigureFacts(
        "softmax over images, of clean and mixed images, before and after training",
        f"{_IM}, Figure 1", "runs of a contrastive method on the same images, with checkpoints",
        ("images", "weight", "seed", *_ENCODED), 3,
    ),
    "tsne": FigureFacts(
        "t-SNE of the features, by class", f"{_UNMIX}, Figure 4", "finished runs",
        ("images", "perplexity", "seed", "features", "data", *_ENCODED), 6,
    ),
    "umap": FigureFacts(
        "UMAP of the features, by class", f"{_UNMIX}, Figure 4",
        "finished runs, and the package umap-learn",
        ("images", "neighbors", "min_dist", "seed", "features", "data", *_ENCODED), 6,
    ),
    "weights": FigureFacts(
        "histograms of the weights of layers", f"{_UNMIX}, Figure 5",
        "runs or encoder files of one architecture", ("layers",), 6,
    ),
    "neighbors": FigureFacts(
        "nearest training images of test images", "", "finished runs on the same images",
        ("images", "k", "seed", "features", "data", *_ENCODED), 4,
    ),
    "attention": FigureFacts(
        "where encoders look in images", "",
        "finished runs on the same images, of transformers or convolutional networks",
        ("images", "seed", "data", *_ENCODED), 4,
    ),
    "patches": FigureFacts(
        "which positions of images have similar features: principal components as colors",
        "DINOv2, Figure 1",
        "finished runs on the same images, of transformers or convolutional networks",
        ("images", "seed", "data", *_ENCODED), 4,
    ),
    "views": FigureFacts(
        "views and mixtures by a run's settings, with their weights", "", "one run",
        ("images", "seed", "data_dir"), 1,
    ),
    "confusion": FigureFacts(
        "which classes are confused with which", "", "finished runs, and images with classes",
        ("protocol", "features", "data", *_ENCODED), 4,
    ),
}  # fmt: skip
"""By name."""

_SYNONYMS = {
    "neighbours": "neighbors", "nearest": "neighbors", "t-sne": "tsne", "histograms": "weights",
    "histogram": "weights", "mixtures": "views", "confusion_matrix": "confusion", "curves": "loss",
    "attention_map": "attention", "attention_maps": "attention", "saliency": "attention",
    "pca": "patches", "components": "patches", "softness": "predictions",
    "figure1": "softmax", "figure2": "accuracy",
    "figure3": "predictions",
}  # fmt: skip


def check_figure(name: str, runs: int, options: Mapping[str, Any]) -> str:
    """Check a figure's name, the number of runs, and that the options given apply to it.

    Args:
        name: Of the figure, also by another name of it.
        runs: How many are given.
        options: Those that only some figures take; None is not given.

    Returns:
        The figure's name.

    Raises:
        UserError: if a check fails.
    """
    folded = name.lower().replace(" ", "_").strip()
    name = _SYNONYMS.get(folded, _SYNONYMS.get(folded.replace("-", "_"), name))
    facts = FIGURES[check_choice("name", name, FIGURES, flag="NAME")]
    for option, value in options.items():
        if value is not None and option not in facts.options:
            others = [other for other, of in FIGURES.items() if option in of.options]
            raise UserError(
                f"does not apply to the figure {name}; leave it out, or plot "
                f"{in_words(others, 'or')}.",
                parameter=option,
            )
    if not runs:
        raise UserError(
            "no run was given; give one run folder or more.", parameter="runs", flag="RUN"
        )
    if facts.most is not None and runs > facts.most:
        what = "one run" if facts.most == 1 else f"at most {facts.most} runs"
        raise UserError(
            f"the figure {name} takes {what}, and {runs} were given.", parameter="runs", flag="RUN"
        )
    return name


def checked(given: dict[str, Any]) -> dict[str, Any]:
    """What is given on the command line, checked before anything slow is imported.

    Raises:
        UserError: as by `check_figure`.
    """
    own = ("name", "runs", "out", "overwrite", "dark", "width")
    options = {name: value for name, value in given.items() if name not in own}
    check_figure(given["name"], len(given["runs"]), options)
    return given


def figures_text() -> str:
    """The figures, one a line, for the help."""
    width = max(map(len, FIGURES))
    lines = [f"  {name:<{width}}  {facts.about}" for name, facts in FIGURES.items()]
    return "\n".join(["figures:", *lines])


def list_figures() -> str:
    """What `unmix plot list` prints."""
    parts = []
    for name, facts in FIGURES.items():
        flags = " ".join(f"--{option}" for option in facts.options)
        parts.append(
            "\n".join(
                [
                    f"{name}: {facts.about}",
                    *([f"    paper  {facts.paper}"] if facts.paper else []),
                    f"    needs  {facts.needs}",
                    *([f"    flags  {flags}"] if flags else []),
                ]
            )
        )
    return "\n".join(parts)

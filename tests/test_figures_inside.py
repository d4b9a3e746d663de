"""Nothing of a figure is cut off or hidden, with the names that runs and classes have."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, fontManager

from unmix.figures import (
    Condition,
    accuracy_against_epochs,
    accuracy_against_time,
    confusion_matrix,
    curves,
    embedding,
    mixtures,
    weight_histograms,
)
from unmix.figures.paired import Panel, paired_dots
from unmix.figures.saving import render
from unmix.results import Evaluation, RunResults

NAMES = (
    "MoCo, augmentation crop-flip",
    "MoCo + Un-Mix, augmentation crop-flip",
    "MoCo + i-Mix, augmentation full, lr 0.03, temperature 0.2",
)
CLASSES = [f"a long name of a class {i}" for i in range(28)]


def conditions(epochs: int = 5, names: tuple[str, ...] = NAMES) -> list[Condition]:
    """Of three seeds each, trained on a busy machine."""
    found = []
    for i, name in enumerate(names):
        runs = {}
        for seed in range(3):
            rows = tuple(
                Evaluation("knn", e, 50.0 + 3 * e + i + seed)
                for e in range(1 if epochs > 1 else 5, 6)
            )
            runs[seed] = RunResults(
                f"{i}-{seed}", "moco", "none" if i == 0 else "Un-Mix", "photos", "resnet18", 1.0,
                32, 5, seed, "", rows, {"seconds": 500.0, "cores_taken_by_others": 1.5},
                {"cores": 2},
            )  # fmt: skip
        metrics = {seed: {"loss": {e: 9.0 - e for e in range(1, 6)}} for seed in range(3)}
        found.append(Condition(name, runs, metrics))
    return found


def some(*size: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=size)


def of_models(count: int) -> dict[str, np.ndarray]:
    return {f"{NAMES[1]}, seed {i}": some(84, 2) for i in range(count)}


def labels(count: int) -> np.ndarray:
    return np.arange(84) % count


DRAWN: dict[str, Callable[[str], Figure]] = {
    "accuracy": lambda w: accuracy_against_epochs(conditions(), "knn", {"raw pixels": 48}, width=w),
    "time": lambda w: accuracy_against_time(conditions(), "knn", width=w),
    "loss": lambda w: curves(conditions(), accuracy="none", width=w),
    "embedding": lambda w: embedding(of_models(4), labels(28), CLASSES, caption="c", width=w),
    "weights": lambda w: weight_histograms(
        {f"layer{i}": of_models(4) for i in range(6)}, caption="c", width=w
    ),
    "confusion": lambda w: confusion_matrix(
        {f"{name}: 71.3 %": np.ones((28, 28)) for name in of_models(3)}, CLASSES, caption="c",
        width=w,
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("width", ["column", "page"])
@pytest.mark.parametrize("name", DRAWN)
def test_every_word_is_inside_and_the_axes_keep_their_room(name: str, width: str) -> None:
    figure = DRAWN[name](width)
    render(figure, "png")
    figure.draw_without_rendering()
    whole, drawn = figure.bbox_inches.padded(0.02), figure.get_tightbbox()
    assert (drawn.x0 >= whole.x0, drawn.x1 <= whole.x1) == (True, True)
    assert (drawn.y0 >= whole.y0, drawn.y1 <= whole.y1) == (True, True)
    axes = [each for each in figure.axes if each.axison]
    assert min(each.get_window_extent().width for each in axes) >= 0.9 * figure.dpi
    # Titles lie neither on each other nor on what is written below the axes above them.
    words = [text for each in axes for text in (each.title, each.xaxis.label) if text.get_text()]
    boxes = [text.get_window_extent() for text in words]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_a_column_has_the_key_below_with_every_name_whole() -> None:
    figure = accuracy_against_time(conditions(), "knn", {"raw pixels": 48.0}, width="column")
    (key,) = figure.legends
    found = [text.get_text().replace("\n", " ") for text in key.get_texts()]
    assert found == [*NAMES[::-1], "raw pixels 48.0"]  # as high as their lines
    label = figure.axes[0].get_xlabel()
    assert label.replace("\n", " ").endswith("evaluations (minutes); some on a busy machine")
    assert figure.get_figwidth() == 3.35


def test_points_of_one_epoch_stand_beside_each_other_with_their_bars() -> None:
    (axes,) = accuracy_against_epochs(conditions(1), "knn").axes
    xs = [float(bar.lines[0].get_xdata()[0]) for bar in axes.containers]
    assert xs == pytest.approx([5 - (xs[1] - xs[0]), 5, 5 + xs[1] - xs[0]])
    assert xs[1] - xs[0] > 0
    assert list(axes.get_xticks()) == [5]
    assert axes.get_title(loc="left") == "mean over seeds; bar: ± standard deviation"


@pytest.mark.parametrize("value", [39.5, 80.0])
def test_a_baseline_is_seen_also_where_it_is_better_than_every_condition(value: float) -> None:
    figure = paired_dots({"": {"kNN": Panel({"a": {0: 50.0, 1: 52.0}}, {"raw pixels": value})}})
    (axes,) = (each for each in figure.axes if each.axison)
    left, right = axes.get_xlim()
    assert left < value < right
    assert f"raw pixels {value}" in [text.get_text() for text in axes.texts]


def test_a_panel_has_all_of_its_names_or_none() -> None:
    """One name beside six lines was read as that of all."""
    known = conditions()
    first = known[0]
    metrics = {
        condition.name: {"loss": {1: 3.0, 2: 2.0}, "knn": {1: 40.0, 2: 50.0}}
        for condition in known[1:]
    }
    left, right = curves({first.name: {"loss": {1: 3.5, 2: 1.0}}, **metrics}).axes
    assert sorted(len(axes.texts) for axes in (left, right)) == [2, 3]


def test_rows_of_mixtures_are_equally_long() -> None:
    pictures = np.zeros((9, 3, 8, 8), np.uint8)
    grid = mixtures(pictures, pictures, pictures, [0.5] * 9).axes[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == (6, 5)


def test_letters_that_the_font_lacks_are_of_another_that_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Here a font of Matplotlib itself stands for one with Chinese letters."""
    file = next(f.fname for f in fontManager.ttflist if f.fname.endswith("STIXGeneral.ttf"))
    other = FontEntry(fname=file, name="Noto Sans CJK SC", weight=400, size="scalable")
    monkeypatch.setattr(fontManager, "ttflist", [*fontManager.ttflist, other])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        render(confusion_matrix({"m": np.eye(2)}, ["\u24b6", "b"]), "png")
    assert said == []  # Matplotlib names letters that no font has

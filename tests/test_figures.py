"""Figures: what the artists hold, not how they look; `separate_labels` keeps labels apart."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation
from PIL import Image
from sklearn.isotonic import IsotonicRegression

from unmix.busy import machine_of
from unmix.display import method_name, run_label
from unmix.errors import UserError
from unmix.figures import (
    accuracy_against_epochs,
    accuracy_against_time,
    curves,
    mixtures,
    prediction_curves,
    read_metrics,
    save,
)
from unmix.figures.series import conditions_of
from unmix.figures.style import color_of, separate_labels, shorten
from unmix.names import shown
from unmix.results import Evaluation, RunResults

PAPER = {
    ("moco", "none"): [73.4, 76.1, 77.5, 78.2],
    ("moco", "IM"): [74.1, 76.9, 78.7, 79.8],
    ("cmc", "none"): [75.4, 77.7, 78.5, 78.7],
    ("cmc", "IM"): [75.9, 78.6, 79.5, 80.0],
}
EPOCHS = [240, 400, 600, 800]


def made(
    name: str, points: Sequence[tuple[int, float]], protocol: str = "linear", **changes: Any
) -> RunResults:
    fields: dict[str, Any] = {
        "method": "moco",
        "mixture": "none",
        "data": "photos",
        "backbone": "resnet18",
        "width": 0.5,
        "size": 32,
        "epochs": max((epoch for epoch, _ in points), default=1),
        "seed": 0,
        "command": "unmix pretrain",
        **changes,
    }
    rows = tuple(Evaluation(protocol, epoch, top1) for epoch, top1 in points)
    return RunResults(name=name, evaluations=rows, **fields)


def paper() -> list[RunResults]:
    return [
        made(f"{method}-{mixture}-{epoch}", [(epoch, top1)], method=method, mixture=mixture)
        for (method, mixture), values in PAPER.items()
        for epoch, top1 in zip(EPOCHS, values, strict=True)
    ]


def labels(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts if isinstance(text, Annotation)]


def drawn(line: Line2D) -> list[tuple[float, float]]:
    """Return a line's points."""
    xs, ys = (np.asarray(values).tolist() for values in (line.get_xdata(), line.get_ydata()))
    return list(zip(xs, ys, strict=True))


def test_runs_that_differ_only_in_epochs_are_one_curve_in_the_method_s_colour() -> None:
    axes = accuracy_against_epochs(paper()[::-1]).axes[0]
    lines = {
        (to_hex(line.get_color()).upper(), line.get_linestyle()): line for line in axes.get_lines()
    }
    assert len(lines) == 4
    for (method, mixture), values in PAPER.items():
        line = lines[color_of(method).upper(), ":" if mixture == "none" else "-"]
        np.testing.assert_array_equal(line.get_xdata(), EPOCHS)
        np.testing.assert_array_equal(line.get_ydata(), values)
        assert line.get_marker() not in ("", "None")
    assert sorted(labels(axes)) == ["CMC", "CMC + IM", "MoCo", "MoCo + IM"]


def test_a_run_that_was_evaluated_often_is_a_curve() -> None:
    points = [(1, 40.0), (2, 50.0), (3, 55.0)]
    axes = accuracy_against_epochs([made("a", points, "knn")], "knn").axes[0]
    (line,) = axes.get_lines()
    assert drawn(line) == points


def test_a_mean_is_over_the_epochs_that_all_seeds_measured() -> None:
    """One seed at each epoch and one at every fifth gave 44, 55, 46, 47, 48, 49, 60."""
    runs = [
        made(f"a{seed}", [(e, off + e) for e in range(every, 21, every)], "knn", seed=seed)
        for seed, every, off in ((0, 1, 40.0), (1, 5, 60.0))
    ]
    axes = accuracy_against_epochs(runs, "knn").axes[0]
    (line,) = axes.get_lines()
    assert drawn(line) == [(e, 50.0 + e) for e in (5, 10, 15, 20)]
    assert "Lines are at the epochs that all seeds measured." in axes.get_title(loc="left")
    (condition,) = conditions_of(runs)
    assert [point.seeds for point in condition.accuracies("knn").points()] == [2] * 4


def test_a_seed_that_is_behind_counts_as_far_as_it_came_and_the_figure_says_so() -> None:
    runs = [
        made(f"a{seed}", [(e, 50.0 + e) for e in range(1, last + 1)], "knn", seed=seed, epochs=9)
        for seed, last in ((0, 9), (1, 4))
    ]
    axes = accuracy_against_epochs(runs, "knn").axes[0]
    assert [x for x, _ in drawn(axes.get_lines()[0])] == list(range(1, 10))
    assert "goes on with fewer seeds" in axes.get_title(loc="left")


def test_times_of_other_machines_have_no_mean_and_the_figure_names_them() -> None:
    def on(name: str, seed: int, hardware: dict[str, Any], **changes: Any) -> RunResults:
        return made(
            name, [(10, 50.0), (20, 60.0)], "knn", seed=seed, hardware=hardware,
            training={"seconds": 60.0}, **changes,
        )  # fmt: skip

    cpu, gpu = {"cpu": "A", "threads": 1}, {"cpu": "B", "gpu": "H100"}
    mixed = [on("a", 0, cpu), on("b", 1, gpu)]
    other = on("c", 0, gpu, mixture="IM")
    axes = accuracy_against_time([*mixed, other], "knn").axes[0]
    assert len(axes.get_lines()) == 1
    assert axes.get_xlabel().endswith("; on different hardware")
    (text,) = accuracy_against_time(mixed, "knn").axes[0].texts
    assert "on different hardware" in " ".join(text.get_text().split())
    alike = accuracy_against_time([on("a", 0, cpu), on("b", 1, cpu)], "knn").axes[0]
    assert "hardware" not in alike.get_xlabel()


def test_a_machine_is_its_devices_and_their_number_as_far_as_it_is_known() -> None:
    gpu, mac = {"cpu": "B", "gpu": "H100", "threads": 4}, {"cpu": "M3", "threads": 4}
    assert machine_of({}) == ""
    assert machine_of({**gpu, "devices": 8}) == "8 x H100"
    assert machine_of({**gpu, "devices": 1}) == machine_of(gpu) == "H100"
    kinds = [machine_of({**mac, "device": device}) for device in ("cpu", "mps")]
    assert kinds == ["M3, 4 threads", "M3, mps"]


def test_a_run_among_others_of_more_epochs_counts_with_its_last_evaluation() -> None:
    runs = [made("a", [(4, 50.0), (12, 60.0)]), made("b", [(24, 70.0)])]
    (line,) = accuracy_against_epochs(runs).axes[0].get_lines()
    assert drawn(line) == [(12, 60.0), (24, 70.0)]


def test_runs_whose_difference_is_not_named_keep_their_own_names() -> None:
    axes = accuracy_against_epochs([made("lr1", [(12, 70.0)]), made("lr2", [(12, 71.0)])]).axes[0]
    assert sorted(labels(axes)) == ["MoCo, lr1", "MoCo, lr2"]


def test_settings_that_differ_are_in_the_labels() -> None:
    runs = [made("a", [(12, 70.0)]), made("b", [(12, 71.0)], seed=1, width=1.0)]
    axes = accuracy_against_epochs(runs).axes[0]
    assert sorted(labels(axes)) == ["MoCo, width 0.5", "MoCo, width 1"]


def test_references_are_lines_with_their_number() -> None:
    axes = accuracy_against_epochs(paper(), references={"raw pixels": 39.5}).axes[0]
    assert "raw pixels 39.5" in labels(axes)
    assert any((np.asarray(line.get_ydata()) == 39.5).all() for line in axes.get_lines())
    low, high = axes.get_ylim()
    assert low < 39.5 < 80 < high


def test_small_differences_do_not_fill_the_axis() -> None:
    runs = [made("a", [(12, 70.00)]), made("b", [(12, 70.01)], mixture="IM")]
    low, high = accuracy_against_epochs(runs).axes[0].get_ylim()
    assert high - low >= 2


@pytest.mark.parametrize("runs", [[], [made("u", [])], [made("k", [(1, 50.0)], "knn")]])
def test_without_an_evaluation_the_figure_says_so(runs: list[RunResults]) -> None:
    axes = accuracy_against_epochs(runs).axes[0]
    assert "linear" in axes.texts[0].get_text()
    assert not axes.get_lines()


def test_twenty_labels_do_not_overlap_and_stay_inside_the_figure() -> None:
    runs = [
        made("run with a very long name " * 3 + str(i), [(12, 70 + i * 0.01)]) for i in range(20)
    ]
    figure = accuracy_against_epochs(runs)
    figure.draw_without_rendering()
    texts = [text for text in figure.axes[0].texts if isinstance(text, Annotation)]
    # An annotation's extent has its arrow in it; the text alone is what must be apart.
    boxes = [super(Annotation, text).get_window_extent() for text in texts]
    boxes.sort(key=lambda box: box.y0)
    assert len(boxes) == 20
    assert all(a.y1 <= b.y0 + 1 for a, b in itertools.pairwise(boxes))
    assert max(box.x1 for box in boxes) <= figure.bbox.x1


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=12),
    st.floats(0.01, 0.3),
)
def test_spread_keeps_order_gap_and_bounds(positions: list[float], gap: float) -> None:
    moved = separate_labels(positions, gap, 0.0, 1.0)
    gap = min(gap, 1 / max(len(positions) - 1, 1))
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    assert all(moved[b] - moved[a] >= gap - 1e-9 for a, b in itertools.pairwise(order))
    assert min(moved) >= -1e-9
    assert max(moved) <= 1 + 1e-9


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.3))
def test_spread_moves_as_little_as_isotonic_regression(positions: list[float], gap: float) -> None:
    ordered = np.sort(positions)
    steps = gap * np.arange(len(ordered))
    least = IsotonicRegression().fit_transform(np.arange(len(ordered)), ordered - steps) + steps
    np.testing.assert_allclose(separate_labels(list(ordered), gap, -9.0, 9.0), least, atol=1e-9)


def test_labels_that_are_far_apart_do_not_move() -> None:
    assert separate_labels([0.9, 0.1, 0.5], 0.2, 0.0, 1.0) == pytest.approx([0.9, 0.1, 0.5])


def test_colors_are_those_of_the_paper() -> None:
    for method, channel in (("moco", 0), ("cmc", 2), ("insdis", 1)):
        red_green_blue = matplotlib.colors.to_rgb(color_of(method))
        assert int(np.argmax(red_green_blue)) == channel
    assert color_of("moco-v2") == color_of("MoCo")
    assert color_of("something new") == color_of("something new")


def test_method_names_are_those_of_the_literature() -> None:
    assert run_label("insdis", "none") == "InsDis"
    assert run_label("barlow", "Un-Mix") == "Barlow Twins + Un-Mix"
    assert method_name("something new") == "something new"


@given(st.text(max_size=80), st.integers(3, 40))
def test_shortened_texts_fit_and_short_ones_stay(text: str, length: int) -> None:
    short = shorten(text, length)
    assert len(short) <= length
    visible = shown(text)  # control characters as escapes
    assert short == visible if len(visible) <= length else "…" in short


@pytest.fixture
def photos() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 3, 16, 16), dtype=np.uint8)


def test_prediction_curves_are_sorted_and_each_column_has_its_own_scale(
    photos: np.ndarray,
) -> None:
    """CMC's features are a hundred times MoCo's, which beside them would be a flat line."""
    random = np.random.default_rng(0)
    features = {"MoCo": random.gamma(0.4, 0.02, (3, 1000)), "MoCo + IM": random.random((3, 50))}
    figure = prediction_curves(photos, features, baselines=["MoCo"])
    cells = np.concatenate(
        [np.array(figure.axes[:3])[:, None], np.array(figure.axes[3:]).reshape(2, 3).T], axis=1
    )
    assert "its own scale" in figure.get_suptitle()
    for row in range(3):
        for column, (label, values) in enumerate(features.items(), start=1):
            low, high = cells[row, column].get_ylim()
            assert (low, high) == cells[0, column].get_ylim()
            assert values.max() < high <= 1.3 * values.max()
            curve, maximum = cells[row, column].get_lines()
            heights = np.asarray(curve.get_ydata())
            assert (np.diff(heights) >= 0).all()
            assert (heights[0], heights[-1]) == (values[row].min(), values[row].max())
            assert curve.get_linestyle() == (":" if label == "MoCo" else "-")
            assert maximum.get_linestyle() == "--"
            assert list(maximum.get_ydata()) == [values[row].max()] * 2
            assert any(isinstance(item, PolyCollection) for item in cells[row, column].collections)


def test_prediction_curves_name_the_measures_under_their_models(photos: np.ndarray) -> None:
    measures = {"MoCo": {"entropy": (6.9, 0.2), "max / sum": (0.0123, 0.003)}}
    features = {"MoCo": np.ones((3, 8)), "CMC": np.zeros((3, 8))}
    figure = prediction_curves(photos, features, measures)
    heads, moco, cmc = ([text.get_text() for text in axes.texts] for axes in figure.axes[-3:])
    assert heads == ["test set, mean ± std", "entropy", "max / sum"]
    assert moco[1:] == ["6.90 ± 0.20", "0.0123 ± 0.0030"]
    assert cmc[1:] == ["–", "–"]


@pytest.mark.parametrize(
    ("images", "features", "says"),
    [
        ((2, 1, 4, 4), {"a": np.ones((2, 3))}, "images: shape"),
        ((0, 3, 4, 4), {"a": np.ones((0, 3))}, "at least 1"),
        ((2, 3, 4, 4), {}, "no model"),
        ((2, 3, 4, 4), {"a": np.ones((3, 3))}, r"'a' has shape \(3, 3\)"),
        ((2, 3, 4, 4), {"a": np.ones((2, 0))}, "'a' has shape"),
    ],
)
def test_prediction_curves_refuse_what_does_not_fit(
    images: tuple[int, ...], features: dict[str, np.ndarray], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        prediction_curves(np.zeros(images, np.uint8), features)


def test_the_title_of_few_mixtures_is_whole(photos: np.ndarray) -> None:
    """It was cut off at both sides of a figure of two or three images."""
    title = "one weight and one coin per batch; every column is from a different batch"
    figure = mixtures(photos[:2], photos[1:3], photos[:2], [0.5, 0.5], title=title)
    FigureCanvasAgg(figure).draw()
    (written,) = figure.texts
    box = written.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width


def test_mixtures_show_weights_and_outline_only_real_boxes(photos: np.ndarray) -> None:
    boxes = np.array([[2, 3, 10, 15], [4, 4, 4, 9], [0, 0, 0, 0]])
    figure = mixtures(photos, photos[::-1], photos, [0.625, 1.0, 0.3], boxes)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["weight 0.62", "weight 1.00", "weight 0.30"]
    frames = [
        {(item.get_x(), item.get_y(), item.get_width(), item.get_height())}
        for axes in figure.axes
        for item in axes.patches
        if isinstance(item, Rectangle)
    ]
    assert frames
    assert set.union(*frames) == {(2.5, 1.5, 12.0, 8.0)}


def test_mixtures_put_each_image_into_its_row(photos: np.ndarray) -> None:
    figure = mixtures(photos, photos // 2, photos // 3, [0.5] * 3)
    shown = [np.asarray(axes.images[0].get_array()).transpose(2, 0, 1) for axes in figure.axes]
    expected = [
        stack[sample] for sample in range(3) for stack in (photos, photos // 2, photos // 3)
    ]
    np.testing.assert_array_equal(shown, expected)


def test_more_than_eight_mixtures_go_into_further_rows(photos: np.ndarray) -> None:
    many = photos[np.arange(11) % 3]
    assert len(mixtures(many, many, many, [0.5] * 11).axes) == 33


@pytest.mark.parametrize("count", [0, 2])
def test_mixtures_refuse_unequal_numbers(photos: np.ndarray, count: int) -> None:
    with pytest.raises(UserError, match="same number"):
        mixtures(photos[:count], photos[:count], photos[:count], [0.5] * (3 if count else 0))


def test_metrics_are_read_as_lightning_writes_them(tmp_path: Path) -> None:
    """Sparse rows: losses each step, kNN each second epoch; the first epoch is complete at 1."""
    logger = CSVLogger(tmp_path, name="", version="")
    for step in range(8):
        logger.log_metrics({"loss": 8.0 - step, "epoch": step // 2}, step)
    for epoch in (1, 3):
        logger.log_metrics({"knn": 50.0 + epoch, "epoch": epoch}, 2 * epoch + 1)
    logger.save()
    metrics = read_metrics(tmp_path / "metrics.csv")
    assert metrics["loss"] == {1: 7.5, 2: 5.5, 3: 3.5, 4: 1.5}
    assert metrics["knn"] == {2: 51.0, 4: 53.0}


def test_a_half_written_row_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,loss\n0,1,5.0\n,2,4.0\n1,3,x\n1,3,3.0,9\n2")
    assert read_metrics(path)["loss"] == {1: 5.0, 2: 3.0}


@pytest.mark.parametrize("content", [b"", b"step,loss\n1,2\n", b"\xff\xfe\x00", None])
def test_what_is_no_metrics_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.csv: (has no column|cannot be read)"):
        read_metrics(tmp_path / "metrics.csv")


def test_curves_show_loss_and_accuracy() -> None:
    metrics = {
        "a": {"loss": {1: 5.0, 2: 4.0}, "knn": {2: 50.0}},
        "b": {"loss_epoch": {1: 6.0, 2: float("nan")}},
    }
    figure = curves(metrics, [made("a", [], method="cmc")])
    left, right = figure.axes
    assert (sorted(labels(left)), labels(right)) == (["CMC", "b"], ["CMC"])
    first = left.get_lines()[0]
    assert drawn(first) == [(1, 5.0), (2, 4.0)]
    assert (first.get_color(), first.get_linestyle()) == (color_of("cmc"), ":")


def test_curves_without_accuracy_have_one_panel_and_without_anything_say_so() -> None:
    (only,) = curves({"a": {"loss": {1: 5.0}}}).axes
    assert only.get_ylabel() == "Training loss"
    (empty,) = curves({"a": {}}).axes
    assert "No run has" in empty.texts[0].get_text()


def test_save_writes_both_files_beside_each_other_and_the_same_each_time(tmp_path: Path) -> None:
    paths = save(accuracy_against_epochs(paper()), tmp_path / "new" / "lr0.03")
    assert [path.name for path in paths] == ["lr0.03.png", "lr0.03.svg"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [p.name for p in paths]
    with Image.open(paths[0]) as image:
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
    again = save(accuracy_against_epochs(paper()), tmp_path / "b")
    assert [p.read_bytes() for p in paths] == [p.read_bytes() for p in again]


def test_figures_leave_the_users_matplotlib_as_it_was() -> None:
    """No pyplot, no changed rcParams: a script's own figures stay as they were."""
    before = dict(matplotlib.rcParams)
    figure = accuracy_against_epochs(paper())
    assert isinstance(figure, Figure)
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


def test_a_name_with_dollar_signs_is_no_formula(tmp_path: Path) -> None:
    runs = [made(name, [(12, 70.0)]) for name in (r"$\frac$", "b")]
    figure = accuracy_against_epochs(runs)
    assert r"MoCo, $\frac$" in labels(figure.axes[0])
    assert len(save(figure, tmp_path / "a")) == 2

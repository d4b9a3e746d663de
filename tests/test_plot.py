"""`unmix plot`: every figure, the numbers behind it, and one line for what cannot be drawn."""

from __future__ import annotations

import csv
import importlib
import json
import math
import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from runs import TINY_RUN
from unmix.backbones import build
from unmix.commands import load_method, plot
from unmix.commands.plot import Plot
from unmix.commands.plots.instances import Instances, probabilities_of
from unmix.commands.plots.registry import DRAW
from unmix.commands.plots.softmax import without_softmax
from unmix.commands.plots.weights import before_training, common_layers
from unmix.config.catalog import catalog
from unmix.config.figures import FIGURES, check_figure
from unmix.data import load
from unmix.display import method_name
from unmix.errors import UserError
from unmix.evaluation import load_encoder
from unmix.figures.widths import WIDTHS
from unmix.hardware.devices import Machine
from unmix.methods import METHODS
from unmix.randomness import generator_for
from unmix.training import RunFolder, pretrain
from unmix.training.console import silent
from unmix.training.run.building import no_teacher
from unmix.training.run.parts import build_method, load_split
from unmix.training.run.pretrain import settings_for

SMALL: dict[str, Any] = {**TINY_RUN, "batch_size": 40, "knn_every": 5, "knn_k": 20}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on digits: moco without and with Un-Mix, and insdis."""
    root = tmp_path_factory.mktemp("plot")
    common = {**SMALL, "data": "digits", "limit": 120}
    moco = {"method": "moco", "queue_size": 64, "bn_splits": 1}
    pretrain(run=str(root / "plain"), **moco, **common)
    pretrain(run=str(root / "mixed"), unmix=True, **moco, **common)
    pretrain(run=str(root / "insdis"), method="insdis", **common)
    return root


@pytest.fixture(scope="session")
def unlabeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 24 files without classes."""
    root = tmp_path_factory.mktemp("plot_unlabeled")
    (root / "images").mkdir()
    pixels = load("digits", "train").images[:24]  # type: ignore[attr-defined]
    for i, digit in enumerate(pixels):
        Image.fromarray(digit.permute(1, 2, 0).numpy()).save(root / "images" / f"{i:02d}.png")
    pretrain(
        method="byol", data=str(root / "images"), run=str(root / "run"),
        **{**SMALL, "batch_size": 8, "hidden": 16, "dim": 8},
    )  # fmt: skip
    return root / "run"


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not drawn into their files, which takes a second each."""
    # By name: the package's attribute `plot` is the function.
    module = importlib.import_module("unmix.commands.plot")
    monkeypatch.setattr(module, "_rendered", lambda figure, kind: b"")


def drawn(tmp_path: Path, name: str, *runs: Path, **options: Any) -> Plot:
    return plot(name, *runs, out=tmp_path / "figure.png", say=silent, **options)


def table(found: Plot) -> list[dict[str, str]]:
    with found.files[-1].open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def words(figure: Figure) -> str:
    import matplotlib.text

    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))  # type: ignore[attr-defined]


# --- all figures ------------------------------------------------------------------------------


def test_every_figure_that_is_listed_is_drawn_by_a_function():
    assert set(DRAW) == set(FIGURES)


@pytest.mark.usefixtures("unrendered")
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", [name for name in FIGURES if name not in ("tsne", "umap")])
def test_every_figure_has_its_width_and_numbers(runs: Path, tmp_path: Path, name: str, width: str):
    one = name == "views" or (name, width) == ("predictions", "column")
    own = [runs / "mixed"] if one else [runs / "plain", runs / "mixed"]
    found = drawn(tmp_path, name, *own, width=width, dark=width == "column")
    assert found.figure.get_figwidth() == pytest.approx(WIDTHS[width])
    assert found.caption
    assert [path.name for path in found.files] == ["figure.png", "figure.csv"]
    assert table(found)
    if name != "views":
        assert "MoCo + Un-Mix" in " ".join(words(found.figure).split())


def test_without_an_ending_png_and_svg_are_written(runs: Path, tmp_path: Path):
    found = plot("loss", runs / "plain", out=tmp_path / "lr0.03", say=silent)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "lr0.03.csv", "lr0.03.png", "lr0.03.svg"
    ]  # fmt: skip
    assert Image.open(tmp_path / "lr0.03.png").width == pytest.approx(300 * 6.9, abs=1)
    again = plot("loss", runs / "plain", out=tmp_path / "again", say=silent)
    for one, other in zip(found.files, again.files, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_by_default_files_are_in_plots_beside_the_runs(runs: Path, tmp_path: Path):
    run = shutil.copytree(runs / "plain", tmp_path / "a" / "plain")
    plot("loss", run, say=silent)
    assert (tmp_path / "a" / "plots" / "loss.csv").is_file()


def test_a_dark_figure_has_light_ink_on_dark_paper(runs: Path, tmp_path: Path):
    found = drawn(tmp_path, "weights", runs / "plain", dark=True)
    corner = np.asarray(Image.open(found.files[0]).convert("L"))[0, 0]
    assert corner < 40
    assert np.asarray(Image.open(found.files[0]).convert("L")).max() > 200


# --- the softmax over images ------------------------------------------------------------------


def instances(run: Path, count: int) -> tuple[Instances, Any]:
    settings = RunFolder(run).settings()
    images = load_split(settings.run, "pretrain")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(3))
    return Instances(images, order[:count], order[count:], 8, 0.5, 0), settings


CPU = Machine(torch.device("cpu"), "32-true", channels_last=False, workers=0)


@pytest.mark.parametrize("name", ["plain", "insdis"])
def test_probabilities_are_the_softmax_of_the_methods_own_similarities(runs: Path, name: str):
    """Computed again from features, keys and rows."""
    some, settings = instances(runs / name, 16)
    method: Any = load_method(runs / name)
    clean, mixed = probabilities_of(method, some, settings, CPU, trained=True)
    method = load_method(runs / name)
    views = some.views(settings, method.views, method.color_space)
    made = views(some.pixels, generator_for(0, "plot", "views"))
    with torch.inference_mode():
        if name == "insdis":
            rows = torch.cat([some.index, some.others])
            classes, T, encode = method.contrast.bank.rows[rows], method.T, method.f
            assert clean.shape == (16, 120)
            whole = slice(None)
        else:
            classes, T, encode = method.f_k(made[1]), method.T, method.f_q
            assert clean.shape == (16, 16 + 64)
            whole = slice(16)
        for given, p in ((made[0], clean), (some.mixed(made[0]), mixed)):
            expected = (encode(given) @ classes.T / T).double().softmax(dim=1)
            own = p[:, whole] / p[:, whole].sum(dim=1, keepdim=True)
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-7)


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("name", ["cmc", "pirl", "simclr", "nnclr", "mocov3", "densecl"])
def test_the_softmax_of_each_method_is_its_formula(name: str):
    """exp(s / T) over its sum, s the cosines that the method's paper has, written out."""
    small = {"dim": 16, "hidden": 16, "predictor_hidden": 8, "queue_size": 64, "negatives": 12,
             "bn_splits": 1}  # fmt: skip
    own = {key: small[key] for key in small if key in catalog().methods[name].parameters}
    words = {"method": name, "data": "digits", **SMALL, "backbone": "resnet10", **own}
    settings, _ = settings_for({**words, "size": 8})
    images = load("digits", "train")
    some = Instances(images, torch.arange(8), torch.arange(8, 20), 8, 0.5, 0)
    method: Any = build_method(settings, 40, 8).eval().requires_grad_(False)
    clean, mixed = probabilities_of(method, some, settings, CPU, trained=True)
    views = some.views(settings, method.views, method.color_space)
    made = views(some.pixels, generator_for(0, "plot", "views"))
    rows = torch.cat([some.index, some.others])

    def p(query: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        exponents = (query @ classes.T).double() / method.T
        return exponents.exp() / exponents.exp().sum(dim=1, keepdim=True)

    def expected(view: torch.Tensor) -> torch.Tensor:
        if name == "cmc":  # Tian et al.: l with the rows of ab, and ab with those of l
            l, ab = method.f(view)
            of_l, of_ab = unit(method.head_l(l)), unit(method.head_ab(ab))
            rows_l, rows_ab = method.memory_l.bank.rows[rows], method.memory_ab.bank.rows[rows]
            return (p(of_l, rows_ab) + p(of_ab, rows_l)) / 2
        if name == "pirl":  # Misra and van der Maaten, Eq. 5: f(v_I) with the rows m
            return p(method.f(view), method.contrast.bank.rows[rows])
        if name == "densecl":  # Wang et al., Eq. 1: of the global heads, against their own queue
            of = [
                unit(e.head(e.backbone(x))) for e, x in ((method.f_q, view), (method.f_k, made[1]))
            ]
            return p(of[0], torch.cat([of[1], method.queue.keys]))
        if name == "simclr":  # Chen et al., Eq. 1, of one direction; without an image's own view
            return p(unit(z(view)), unit(z(made[1])))
        q = unit(method.h(method.g(method.f(view)) if name == "mocov3" else z(view)))
        if name == "mocov3":  # Chen et al., Alg. 1: q with the keys of the other view
            return p(q, unit(method.g_k(method.f_k(made[1]))))
        queue = method.Q.keys  # Dwibedi et al., Eq. 3: the nearest neighbors of the other view
        return p(q, queue[(unit(z(made[1])) @ queue.T).argmax(dim=1)])

    def z(view: torch.Tensor) -> torch.Tensor:
        return method.g(method.f(view))

    classes = len(some.index) if name in ("simclr", "nnclr", "mocov3") else len(rows)
    assert clean.shape == mixed.shape == (8, classes)
    with torch.inference_mode():
        mixture = 0.5 * made[0] + 0.5 * made[0][[1, 0, 3, 2, 5, 4, 7, 6]]
        for view, found in ((made[0], clean), (mixture, mixed)):
            torch.testing.assert_close(found, expected(view), rtol=1e-4, atol=1e-7)
    if name == "nnclr":  # the queue has the other images and these, by the present weights
        assert len(method.Q.keys) == 20
        assert method.Q.fill == 1


def test_before_training_no_class_is_a_random_vector(runs: Path):
    """With a random memory, an untrained network would prefer some random rows."""
    some, settings = instances(runs / "insdis", 16)
    method = build_method(settings, 120, 8).eval()
    clean, _ = probabilities_of(method, some, settings, CPU, trained=False)
    method = build_method(settings, 120, 8).eval()
    random, _ = probabilities_of(method, some, settings, CPU, trained=True)

    def entropy(p: torch.Tensor) -> float:
        return float(-(p * p.log()).sum(dim=1).mean())

    assert entropy(random) < entropy(clean) <= math.log(120)


@pytest.mark.usefixtures("unrendered")
def test_the_table_of_the_softmax_says_what_the_figure_shows(runs: Path, tmp_path: Path):
    found = drawn(tmp_path, "softmax", runs / "plain", runs / "mixed", images=20, seed=1)
    rows = table(found)
    kinds = {(row["run"], row["weights"], row["input"]) for row in rows}
    # Runs of one seed begin with the same weights, which are shown once.
    assert len(kinds) == 6
    assert len(rows) == 6 * 20
    for row in rows:
        assert 0 < float(row["entropy"]) <= math.log(int(row["classes"])) + 1e-6
        assert float(row["max"]) == float(row["p1"]) >= float(row["p2"])
        assert (row["mixed_with"] == "") == (row["input"] == "clean")
    text = words(found.figure)
    shown = [row for row in rows if f"max {float(row['max']):.2g}" in text]
    assert shown
    assert f"ln {rows[0]['classes']}" in text
    assert "before training" in text


@pytest.mark.usefixtures("unrendered")
def test_without_a_softmax_over_images_there_is_one_line(unlabeled: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"BYOL has a loss that .* and no softmax in which each im"):
        drawn(tmp_path, "softmax", unlabeled)
    assert list(tmp_path.iterdir()) == []


# Whose softmax is compared with a formula above.
IMAGES_ARE_CLASSES = {
    "moco", "insdis", "cmc", "pirl", "simclr", "nnclr", "mocov3", "densecl",
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_the_softmax_or_says_what_it_has_instead(name: str):
    line = without_softmax(name)
    assert (line is None) == (name in IMAGES_ARE_CLASSES)
    if line is not None:
        assert line.startswith(f"{method_name(name)} has a")
        assert "another loss" not in line
        assert set(re.findall(r"\w+", line.split("give a run of")[1])) - {"or"} == (
            IMAGES_ARE_CLASSES
        )


# --- features ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("unrendered")
def test_tsne_is_repeated_by_its_seed_and_says_its_parameters(runs: Path, tmp_path: Path):
    options = {"images": 60, "perplexity": 8.0, "overwrite": True}
    one, again = (drawn(tmp_path, "tsne", runs / "plain", seed=3, **options) for _ in range(2))
    assert one.rows == again.rows
    for part in ("t-SNE of 60 test images of digits", "perplexity 8", "seed 3", "backbone"):
        assert part in one.caption
    assert "seed 3" in words(one.figure).replace("\n", " ")
    assert {row["class"] for row in table(one)} == {str(digit) for digit in range(10)}


@pytest.mark.usefixtures("unrendered")
def test_umap_needs_its_package(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("unmix.commands.plots.embedded.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"umap-learn: pip install 'unmix\[umap\]'"):
        drawn(tmp_path, "umap", runs / "plain")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unrendered")
def test_umap_is_that_of_its_package_on_unit_features(runs: Path, tmp_path: Path):
    from sklearn.manifold import trustworthiness
    from umap import UMAP

    found = drawn(tmp_path, "umap", runs / "plain", images=40, neighbors=6, min_dist=0.2, seed=5)
    rows = table(found)
    test = load_split(RunFolder(runs / "plain").settings().run, "test")
    shown = test.images[[int(row["image"]) for row in rows]]  # type: ignore[attr-defined]
    features = unit(load_encoder(runs / "plain").encode(shown)).numpy()
    model = UMAP(n_neighbors=6, min_dist=0.2, random_state=5, n_jobs=1)
    expected = model.fit_transform(features)
    points = np.array([[float(row["x"]), float(row["y"])] for row in rows])
    # Layouts amplify the last digits of features: compare how well they keep neighbors (Venna and
    # Kaski 2001), which for points in any order is about 0.5.
    kept = [trustworthiness(features, layout, n_neighbors=6) for layout in (points, expected)]
    assert kept[0] == pytest.approx(kept[1], abs=0.06)
    assert kept[0] > 0.75 > trustworthiness(features, points[::-1], n_neighbors=6) + 0.1
    assert len(rows) == 40
    for part in ("UMAP of 40 test images of digits", "6 neighbors", "distance 0.2", "seed 5"):
        assert part in found.caption


@pytest.mark.usefixtures("unrendered")
def test_few_images_are_too_few(unlabeled: Path, runs: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"perplexity.*needs 92 .*there are 24; give 7 or less"):
        drawn(tmp_path, "tsne", unlabeled)
    with pytest.raises(UserError, match=r"3 are too few for t-SNE with `perplexity=30`"):
        drawn(tmp_path, "tsne", runs / "plain", images=3)


@pytest.mark.usefixtures("unrendered")
def test_neighbors_are_the_most_similar_training_images(runs: Path, tmp_path: Path):
    found = drawn(tmp_path, "neighbors", runs / "plain", images=3, k=4)
    settings = RunFolder(runs / "plain").settings().run
    train, test = (load_split(settings, split) for split in ("train", "test"))
    encoder = load_encoder(runs / "plain")
    bank = torch.nn.functional.normalize(encoder.encode(train.images), dim=1)  # type: ignore[attr-defined]
    rows = table(found)
    assert len(rows) == 12
    for start in range(0, 12, 4):
        query = encoder.encode(test.images[int(rows[start]["image"])][None])  # type: ignore[attr-defined]
        cosines = (torch.nn.functional.normalize(query, dim=1) @ bank.T)[0]
        best = cosines.topk(4)
        got = [float(row["cosine"]) for row in rows[start : start + 4]]
        assert got == pytest.approx(best.values.tolist(), abs=1e-4)
        for row in rows[start : start + 4]:
            index = int(row["neighbor"])
            assert float(cosines[index]) == pytest.approx(float(row["cosine"]), abs=1e-4)
            assert train.classes is not None
            assert train.labels is not None
            assert row["class_of_neighbor"] == train.classes[int(train.labels[index])]


@pytest.mark.usefixtures("unrendered")
def test_without_classes_an_image_is_not_its_own_neighbor(unlabeled: Path, tmp_path: Path):
    rows = table(drawn(tmp_path, "neighbors", unlabeled, images=5, k=3))
    assert len(rows) == 15
    assert all(row["image"] != row["neighbor"] for row in rows)
    assert all(row["class"] == "" for row in rows)


@pytest.mark.usefixtures("unrendered")
def test_a_confusion_matrix_agrees_with_the_accuracy_of_the_run(runs: Path, tmp_path: Path):
    found = drawn(tmp_path, "confusion", runs / "plain", protocol="knn")
    rows = table(found)
    right = sum(int(r["images"]) for r in rows if r["true_class"] == r["predicted_class"])
    total = sum(int(row["images"]) for row in rows)
    known = json.loads((runs / "plain" / "results.json").read_text())["evaluations"]
    assert 100 * right / total == pytest.approx(
        next(row["top1"] for row in known if row["protocol"] == "knn")
    )
    k = next(row["k"] for row in known if row["protocol"] == "knn")
    assert f"kNN (k {k}, T 0.1)" in found.caption  # of all training images, if they are fewer
    for name in {row["true_class"] for row in rows}:
        shares = [float(row["percent_of_class"]) for row in rows if row["true_class"] == name]
        assert sum(shares) == pytest.approx(100, abs=1e-3)


# --- weights, views ---------------------------------------------------------------------------


@pytest.mark.usefixtures("unrendered")
def test_weights_are_compared_with_those_before_training(runs: Path, tmp_path: Path):
    found = drawn(tmp_path, "weights", runs / "plain", runs / "mixed", layers=("conv1",))
    rows = table(found)
    assert {row["run"] for row in rows} == {"before training", "MoCo", "MoCo + Un-Mix"}
    for name in {row["run"] for row in rows}:
        own = [row for row in rows if row["run"] == name]
        area = sum(float(r["density"]) * (float(r["to"]) - float(r["from"])) for r in own)
        assert 0.97 < area <= 1.0001
    settings = RunFolder(runs / "plain").settings()
    start = build_method(settings, 120, 8).backbone.state_dict()["conv1.weight"]
    assert f"{float(start.std(correction=0)):.3f}" in words(found.figure)


def test_weights_of_other_shapes_are_not_compared():
    """A wider encoder begins with smaller weights, whatever is learned."""

    def weights(width: float) -> dict[str, torch.Tensor]:
        return build("resnet10", width=width, size=16).state_dict()

    assert len(common_layers({"a": weights(0.125), "b": weights(0.125)})) == 12
    assert common_layers({"a": weights(0.125), "b": weights(0.25)}) == []


@pytest.mark.parametrize("name", METHODS)
def test_the_weights_before_training_are_those_that_a_method_began_with(name: str, tmp_path: Path):
    """Also of a method that needs many images for its negatives or clusters."""
    vit = {"backbone": "timm:vit_tiny_patch16_224", "patch": 1, "depth": 1, "width": 1.0}
    few = {"prototypes": (20, 10), "negatives": 30, "queue_size": 64}
    known = catalog().methods[name].parameters
    own = {key: few[key] for key in few if key in known}
    if name in ("swav", "nnclr"):
        own.pop("prototypes", None)
    if name == "distill":
        own["teacher"] = "torchvision:resnet18"
    words = {"method": name, "data": "digits", **SMALL, **own}
    if name in ("mae", "ibot", "ijepa", "simmim"):
        words |= vit
    settings, _ = settings_for(words)
    run = RunFolder(tmp_path)
    run.write_settings(settings)
    found = before_training(tmp_path)
    began = build_method(settings, 100, 8, teacher=no_teacher()).backbone.state_dict()
    assert set(found) == set(began)
    assert all(torch.equal(found[key], began[key]) for key in began)


@pytest.mark.usefixtures("unrendered")
def test_an_encoder_file_alone_has_weights_and_no_images(
    runs: Path, tmp_path: Path, refuse: Callable[..., str]
):
    file = shutil.copy(runs / "plain" / "encoder.safetensors", tmp_path / "mine.safetensors")
    assert {row["run"] for row in table(drawn(tmp_path, "weights", Path(file)))} == {
        "mine.safetensors"
    }
    line = refuse("plot", "tsne", file)
    assert line.endswith("whose settings and images the figure needs; give the run folder.")


@pytest.mark.usefixtures("unrendered")
def test_views_are_mixed_as_in_the_run(runs: Path, tmp_path: Path):
    found = drawn(tmp_path, "views", runs / "mixed", images=4)
    assert "Un-Mix" in found.caption
    text = words(found.figure)
    for part in ("image", "view 1", "view 2", "partner", "mixture"):
        assert part in text.split("\n")
    for row in table(found):
        assert f"weight {float(row['weight_of_image']):.2f}" in text
    plain = drawn(tmp_path, "views", runs / "plain", images=4, overwrite=True)
    assert "mixture" not in words(plain.figure).split("\n")


# --- bad input --------------------------------------------------------------------------------


def test_mistakes_are_one_line_and_write_nothing(
    runs: Path, unlabeled: Path, tmp_path: Path, refuse: Callable[..., str]
):
    out, run = tmp_path / "x.png", runs / "plain"
    lines = {
        ("tsn", run): "NAME: 'tsn' is unknown. Did you mean 'tsne'?",
        ("tsne",): "RUN is required",
        ("tsne", run, "--k", "3"): "--k: does not apply to the figure tsne; leave it out, or plot "
        "neighbors.",
        ("views", run, runs / "mixed"): "RUN: the figure views takes one run, and 2 were given.",
        ("tsne", tmp_path / "none"): "there is no such run folder.",
        ("tsne", tmp_path): "config.yaml",
        ("loss", run, run): "is given 2 times; give each run once.",
        ("loss", run, "--width", "wide"): "--width: 'wide' is unknown.",
        ("confusion", unlabeled): "has no classes, and a confusion matrix needs them",
        ("accuracy", unlabeled): "no run has an accuracy",
        ("tsne", run, unlabeled): "is of other images than",
        ("softmax", run, "--weight", "2"): "--weight: 2 is out of range",
        ("weights", run, "--layers", "conv2"): "--layers: 'conv2' is no layer",
        ("loss", run, unlabeled): "is on other data",
        ("accuracy", run, "--protocol", "moco"): "--protocol: 'moco' is unknown.",
        ("accuracy", run, "--against", "steps"): "--against: 'steps' is unknown.",
    }
    for given, expected in lines.items():
        assert expected in refuse("plot", *given, "--out", out), given
    assert list(tmp_path.iterdir()) == []
    assert "must end in .png" in refuse("plot", "loss", run, "--out", tmp_path / "x.jpg")


@pytest.mark.usefixtures("unrendered")
def test_a_file_that_exists_is_replaced_only_if_asked(
    runs: Path, tmp_path: Path, refuse: Callable[..., str]
):
    (tmp_path / "x.csv").write_text("mine")
    line = refuse("plot", "loss", runs / "plain", "--out", tmp_path / "x.png")
    assert "x.csv exists; give another name, or --overwrite to replace it." in line
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]
    assert (tmp_path / "x.csv").read_text() == "mine"
    plot("loss", runs / "plain", out=tmp_path / "x.png", overwrite=True, say=silent)
    assert (tmp_path / "x.csv").read_text().startswith("condition,seed,epoch")


def test_a_run_that_is_being_trained_is_told(
    runs: Path, tmp_path: Path, refuse: Callable[..., str]
):
    run = shutil.copytree(runs / "plain", tmp_path / "run")
    owner = {"host": socket.gethostname(), "process": os.getpid()}
    (run / ".owner.json").write_text(json.dumps(owner))
    for name in ("tsne", "loss", "weights"):
        assert "is still training" in refuse("plot", name, run, "--out", tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.usefixtures("unrendered")
def test_curves_are_of_conditions_and_all_their_seeds(runs: Path, tmp_path: Path):
    """Runs that differ in the seed alone are one condition, named by what differs."""
    run = shutil.copytree(runs / "mixed", tmp_path / "other")
    for name in ("config.yaml", "results.json"):
        text = (run / name).read_text()
        (run / name).write_text(
            text.replace("seed: 0", "seed: 1").replace('"seed": 0', '"seed": 1')
        )
    found = drawn(tmp_path, "accuracy", runs / "plain", runs / "mixed", run, against="time")
    rows = table(found)
    assert {(row["condition"], row["seed"]) for row in rows} == {
        ("MoCo", "0"), ("MoCo + Un-Mix", "0"), ("MoCo + Un-Mix", "1")
    }  # fmt: skip
    assert all(float(row["seconds"]) > 0 for row in rows)
    assert "Training time" in words(found.figure)


@pytest.mark.usefixtures("unrendered")
def test_prediction_curves_of_images_without_classes_are_not_called_those_of_a_test_set(
    tmp_path: Path, unlabeled: Path
):
    found = drawn(tmp_path, "predictions", unlabeled)
    texts = [text.get_text() for axes in found.figure.axes for text in axes.texts]
    assert "training images, mean ± std" in texts
    assert "training images of" in found.caption
    assert not any("test set" in text or "test images" in text for text in [*texts, found.caption])


def test_other_names_of_a_figure_are_known():
    assert check_figure("neighbours", 1, {}) == "neighbors"
    assert check_figure("t-SNE", 1, {}) == "tsne"


def test_the_list_names_every_figure(capsys: pytest.CaptureFixture[str]):
    from unmix.cli import main

    assert main(["plot", "list"]) == 0
    text = capsys.readouterr().out
    for name, facts in FIGURES.items():
        assert f"{name}: {facts.about}" in text

"""The published linear protocols have their published numbers and train as they say."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from unmix.errors import UserError
from unmix.evaluation import (
    PROTOCOLS,
    AugmentedImages,
    LabeledFeatures,
    Prediction,
    Protocol,
    SGDSettings,
    Task,
    cmc_settings,
    evaluate,
    evaluate_features,
    extract,
    moco_settings,
    train_classifier,
)
from unmix.evaluation.published import whitening_settings
from unmix.evaluation.selection import best
from unmix.evaluation.sgd import SGDProbe


def test_moco_has_its_published_numbers():
    found = moco_settings("imagenet")
    assert (found.epochs, found.batch_size, found.lr) == (100, 256, 30.0)
    assert (found.milestones, found.gamma, found.weight_decay) == ((60, 80), 0.1, 0.0)


@pytest.mark.parametrize(
    ("data", "color_space", "width", "lr", "augmentation", "crop"),
    [
        ("imagenet100", "RGB", 1.0, 10.0, "moco-v1", 0.2),
        ("imagenet", "RGB", 1.0, 30.0, "moco-v1", 0.08),
        ("photos", "RGB", 1.0, 0.1, "moco-v1", 0.2),
        ("imagenet100", "Lab", 0.5, 30.0, "cmc", 0.2),
        ("imagenet100", "YCbCr", 1.0, 30.0, "cmc", 0.2),
        ("imagenet", "Lab", 2.0, 50.0, "cmc", 0.08),
    ],
)
def test_cmc_has_its_published_numbers(data, color_space, width, lr, augmentation, crop):
    found = cmc_settings(data, color_space, width)
    assert (found.epochs, found.batch_size, found.weight_decay) == (60, 256, 0.0)
    assert (found.milestones, found.gamma) == ((30, 40, 50), 0.2)
    assert (found.lr, found.augmentation, found.crop_scale_min) == (lr, augmentation, crop)


def test_shortening_moves_the_milestones_in_proportion():
    short = cmc_settings("photos").shortened(12)
    assert (short.epochs, short.milestones) == (12, (6, 8, 10))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: moco_settings("photos").shortened(0), "epochs must be at least 1, got 0"),
        (lambda: replace(moco_settings("photos"), lr=0), "lr must be greater than 0, got 0"),
        (
            lambda: replace(moco_settings("photos"), batch_size=0),
            "batch_size must be at least 1, got 0",
        ),
    ],
)
def test_mistakes_are_told(call, message: str):
    with pytest.raises(UserError) as caught:
        call()
    assert str(caught.value).startswith(message)


class _Task:
    """Two separable classes of 2-pixel images, and an encoder whose batch norm must stay frozen."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.labels = torch.arange(64) % 2
        self.images = torch.randn(64, 1, 1, 2, generator=generator)
        self.images[:, 0, 0, 0] += 4.0 * self.labels - 2.0
        self.encoder = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(2), nn.Dropout(0.9))
        self.epochs: list[int] = []

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        self.epochs.append(epoch)
        assert not self.encoder.training
        yield from zip(self.images.split(16), self.labels.split(16), strict=True)

    def run(self, settings: SGDSettings, **options) -> dict[str, float]:
        return train_classifier(
            settings,
            self.encoder,
            self.batches,
            extract(self.encoder, [self.images], device="cpu"),
            self.labels,
            classes=2,
            generator=torch.Generator().manual_seed(0),
            **options,
        )


def test_classifier_learns_on_each_epochs_batches_and_leaves_the_encoder_alone():
    task = _Task()
    before = {name: value.clone() for name, value in task.encoder.state_dict().items()}
    result = task.run(cmc_settings("photos"), epochs=6)
    assert result["top1"] > 90
    assert (result["epochs"], result["lr"]) == (6, 0.1)
    assert task.epochs == [0, 1, 2, 3, 4, 5]
    assert task.encoder.training
    assert all(
        torch.equal(before[name], value) for name, value in task.encoder.state_dict().items()
    )


def test_training_equals_sgd_written_out():
    """Four epochs of momentum SGD with a milestone after the second, against a plain loop."""
    task = _Task()
    settings = SGDSettings(4, 16, 0.05, (2,), 0.1, 0.01, "none", 0.2, "this test")
    weight = torch.empty(2, 2).normal_(0.0, 0.01, generator=torch.Generator().manual_seed(0))
    weight, bias = weight.requires_grad_(), torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=0.05, momentum=0.9, weight_decay=0.01)
    features = extract(task.encoder, [task.images], device="cpu")
    for epoch in range(4):
        optimizer.param_groups[0]["lr"] = 0.05 if epoch < 2 else 0.005
        for x, y in zip(features.split(16), task.labels.split(16), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(x @ weight.T + bias, y).backward()
            optimizer.step()
    # Test features that read the classifier out: class 0 wins where their score is positive.
    difference = (weight[0] - weight[1]).detach()
    offset = (bias[0] - bias[1]).detach()
    along = difference / difference.square().sum()
    probes = torch.stack([along * (-offset + gap) for gap in (0.002, -0.002)])
    result = train_classifier(
        settings,
        task.encoder,
        task.batches,
        probes,
        torch.tensor([0, 1]),
        classes=2,
        generator=torch.Generator().manual_seed(0),
    )
    assert result["top1"] == 100.0


def test_console_stays_quiet_and_loggers_get_their_levels_back(capfd, recwarn):
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    _Task().run(cmc_settings("photos"), epochs=1)
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""
    assert not [warning for warning in recwarn if "lightning" in str(warning.filename)]
    assert logger.level == level


def test_global_generator_is_not_touched():
    task = _Task()
    before = torch.get_rng_state()
    task.run(cmc_settings("photos"), epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_protocol_of_ones_own_is_one_class_and_one_line(monkeypatch):
    """Nearest class mean, a dozen lines: it gets a row as every other, and asks for no images."""

    class NearestMean(Protocol):
        def predict(self, task: Task) -> Prediction:
            train, labels, test, _ = task.splits
            means = torch.stack([train[labels == c].mean(dim=0) for c in range(task.classes)])
            return Prediction(torch.cdist(test, means).argsort(dim=1), {})

    monkeypatch.setitem(PROTOCOLS, "mean", NearestMean())
    labels = torch.arange(6) % 2
    features = LabeledFeatures(labels[:, None] * 2.0, labels, torch.arange(6))
    generator = torch.Generator()
    found = evaluate_features(features, features, 2, ("mean", "knn"), generator=generator)
    rows = [each.row for each in found]
    assert all(each.correct.all() and len(each.correct) == 6 for each in found)
    assert [row["protocol"] for row in rows] == ["mean", "knn"]
    assert rows[0] == {
        "protocol": "mean", "top1": 100.0, "top5": 100.0, "train_images": 6, "test_images": 6
    }  # fmt: skip
    with pytest.raises(
        UserError,
        match=r"protocol: 'moco' is unknown.*Known: knn, linear, whitening, knn-euclidean, mean",
    ):
        evaluate_features(features, features, 2, ("moco",), generator=generator)
    with pytest.raises(UserError, match=r"protocol: 'mocco' is unknown\. Did you mean 'moco'"):
        evaluate("mocco", Task(lambda: features, lambda: features, 2, generator=generator))


def test_features_are_encoded_when_a_protocol_first_reads_them():
    read: list[str] = []
    labels = torch.arange(4) % 2
    found = LabeledFeatures(torch.eye(4), labels, torch.arange(4))
    task = Task(
        lambda: read.append("train") or found, lambda: read.append("test") or found, 2,
        generator=torch.Generator(), k=1,
    )  # fmt: skip
    assert read == []
    evaluate("knn", task)
    evaluate("knn", task)
    assert sorted(read) == ["test", "train"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("swav", (100, 256, 0.3, 1e-6, "sgd", "cosine")),
        ("barlow", (100, 256, 0.3, 1e-6, "sgd", "cosine")),
        ("vicreg", (100, 256, 0.02, 1e-6, "sgd", "cosine")),
        ("dino", (100, 256, 0.001, 0.0, "sgd", "cosine")),
        ("whitening", (500, 1000, 0.01, 5e-6, "adam", "exponential")),
    ],
)
def test_the_other_protocols_have_their_published_numbers(name, expected):
    found = PROTOCOLS[name].published("imagenet", "RGB", 1.0)
    words = ("epochs", "batch_size", "lr", "weight_decay", "optimizer", "schedule")
    assert tuple(getattr(found, word) for word in words) == expected
    assert PROTOCOLS[name].needs_images == (name != "whitening")


def _separable(n: int = 90, classes: int = 3) -> LabeledFeatures:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(n) % classes
    centers = 2 * torch.randn(classes, 5, generator=generator)
    features = centers[labels] + torch.randn(n, 5, generator=generator)
    return LabeledFeatures(features, labels, torch.arange(n))


def test_whitening_equals_adam_written_out():
    """Five epochs of two batches of features, against a plain loop with an exponential rate."""
    train = _separable()
    settings = replace(whitening_settings("photos"), epochs=5, batch_size=64)
    task = Task(lambda: train, lambda: train, 3, generator=torch.Generator().manual_seed(2))
    found = SGDProbe(lambda *_: settings).predict(task)
    generator = torch.Generator().manual_seed(2)
    weight = torch.empty(3, 5).uniform_(-(5**-0.5), 5**-0.5, generator=generator)
    bias = torch.empty(3).uniform_(-(5**-0.5), 5**-0.5, generator=generator)
    weight.requires_grad_()
    bias.requires_grad_()
    optimizer = torch.optim.Adam([weight, bias], lr=1e-2, weight_decay=5e-6)
    for epoch in range(5):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1e-6 / 1e-2) ** (epoch / 5)
        for index in torch.randperm(90, generator=generator).split(64):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(
                train.features[index] @ weight.T + bias, train.labels[index]
            )
            loss.backward()
            optimizer.step()
    expected = (train.features @ weight.T + bias).argsort(dim=1, descending=True)
    assert torch.equal(found.ranking, expected)
    assert found.details["lr"] == 1e-2


def test_rate_and_decay_are_chosen_without_the_test_images():
    """Test labels that are all wrong change neither the choice nor the classifier."""
    train = _separable()
    wrong = replace(train, labels=(train.labels + 1) % 3)
    found = []
    for test in (train, wrong):
        images = AugmentedImages(lambda x: x, lambda *_: [], 90, "photos", epochs=30, select=True)
        task = Task(
            lambda: train, lambda t=test: t, 3,
            generator=torch.Generator().manual_seed(2), images=images,
        )  # fmt: skip
        found.append(evaluate("whitening", task))
    first, second = (each.row for each in found)
    assert first["chosen"] == second["chosen"]
    assert first["selected"] == "lr, weight_decay"
    assert "lr" not in first
    assert set(first["chosen"]) == {"lr", "weight_decay"}
    assert first["top1"] > 80 > 20 > second["top1"]


def test_the_choice_is_that_of_the_best_candidate_and_the_first_of_equal_ones():
    asked: list[int] = []
    scores = {1: 0.5, 2: 0.7, 3: 0.7}
    assert best([1, 2, 3], lambda c: asked.append(c) or scores[c]) == (2, 0.7)
    assert asked == [1, 2, 3]
    assert best([1, 2], lambda c: scores[c], known=0.9) == (1, 0.9)

"""The weighted kNN ranks as the published code and scikit-learn do, in blocks of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from unmix.errors import UserError
from unmix.evaluation import knn_accuracy, knn_predict


def _random(generator: torch.Generator, n: int = 60, m: int = 20, d: int = 8, classes: int = 4):
    bank = torch.randn(n, d, generator=generator)
    queries = torch.randn(m, d, generator=generator)
    return bank, torch.randint(classes, (n,), generator=generator), queries


def test_agrees_with_the_published_implementation(golden):
    values = golden("knn_weighted")
    ranking = knn_predict(
        values["bank"],
        values["labels"],
        values["query"],
        classes=values["predicted"].shape[1],
        k=int(values["k"]),
        temperature=float(values["temperature"]),
    )
    assert torch.equal(ranking, values["predicted"])


def test_agrees_with_scikit_learn_on_digits():
    """scikit-learn takes cosine distance, and the weights as a function of it."""
    images, labels = load_digits(return_X_y=True)
    bank, queries = images[:1000], images[1000:1300]
    judge = KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.1)
    ).fit(bank, labels[:1000])
    ranking = knn_predict(
        torch.as_tensor(bank),
        torch.as_tensor(labels[:1000]),
        torch.as_tensor(queries),
        classes=10,
        k=20,
    )
    assert (ranking[:, 0].numpy() == judge.predict(queries)).mean() > 0.995
    result = knn_accuracy(
        torch.as_tensor(bank),
        torch.as_tensor(labels[:1000]),
        torch.as_tensor(queries),
        torch.as_tensor(labels[1000:1300]),
        classes=10,
        k=20,
    )
    expected = 100 * judge.score(queries, labels[1000:1300])
    assert result["top1"] == pytest.approx(expected, abs=0.5)


@settings(max_examples=30, deadline=None)
@given(budget=st.integers(1, 20_000), k=st.integers(1, 80), seed=st.integers(0, 1000))
def test_blocks_do_not_change_the_ranking(budget: int, k: int, seed: int):
    bank, labels, queries = _random(torch.Generator().manual_seed(seed))
    whole = knn_predict(bank, labels, queries, classes=4, k=k)
    parts = knn_predict(bank, labels, queries, classes=4, k=k, memory_budget=budget)
    assert torch.equal(whole, parts)


def test_k_is_capped_at_the_bank(generator):
    bank, labels, queries = _random(generator)
    everyone = knn_predict(bank, labels, queries, classes=4, k=60)
    assert torch.equal(knn_predict(bank, labels, queries, classes=4, k=10_000), everyone)


def test_scale_of_features_does_not_matter(generator):
    bank, labels, queries = _random(generator)
    scale = torch.rand(len(bank), 1, generator=generator) + 0.5
    expected = knn_predict(bank, labels, queries, classes=4)
    assert torch.equal(knn_predict(bank * scale, labels, queries * 7, classes=4), expected)


def test_low_temperature_is_the_nearest_neighbour_without_overflow(generator):
    """exp(1 / 0.001) is beyond float32; the ranking must still follow the nearest one."""
    bank, labels, queries = _random(generator)
    nearest = torch.nn.functional.cosine_similarity(queries[:, None], bank[None], dim=2).argmax(1)
    ranking = knn_predict(bank, labels, queries, classes=4, temperature=0.001)
    assert torch.equal(ranking[:, 0], labels[nearest])


def test_every_class_is_ranked_once_and_those_without_votes_last(generator):
    bank, labels, queries = _random(generator)
    ranking = knn_predict(bank, labels, queries, classes=6)
    assert ranking.dtype == torch.int64
    assert torch.equal(ranking.sort(dim=1).values, torch.arange(6).expand(20, 6))
    assert set(ranking[:, 4:].flatten().tolist()) == {4, 5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "--knn_k: 0 "),
        ({"temperature": 0}, "--knn_temperature: 0 "),
        ({"classes": 2}, "train split: labels go from 0 to 3"),
        ({"queries": torch.zeros(2, 5)}, "test split: features"),
        ({"bank": torch.zeros(2, 8)}, "train split: features"),
    ],
)
def test_mistakes_are_told(arguments: dict, message: str, generator):
    bank, labels, queries = _random(generator)
    given = {"bank": bank, "labels": labels, "queries": queries, "classes": 4, **arguments}
    with pytest.raises(UserError) as caught:
        knn_predict(**given)
    assert str(caught.value).startswith(message)

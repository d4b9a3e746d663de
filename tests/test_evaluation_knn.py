"""The weighted kNN ranks as the published code and scikit-learn do, in blocks of any size."""

from __future__ import annotations

import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch.profiler import ProfilerActivity, profile

from unmix.errors import UserError
from unmix.evaluation import (
    LabeledFeatures,
    Task,
    euclidean_knn_predict,
    evaluate,
    knn,
    knn_accuracy,
    knn_predict,
)


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
    # The published code goes on with the classes without a vote, by their index.
    voted = ranking >= 0
    assert torch.equal(ranking[voted], values["predicted"][voted])
    assert torch.equal(voted.sum(dim=1), _voters(values).sum(dim=1))


def _voters(values: dict[str, torch.Tensor]) -> torch.Tensor:
    """Which classes are among the k nearest of each query, bool (M, classes)."""
    unit = torch.nn.functional.normalize
    similarity = unit(values["query"].float()) @ unit(values["bank"].float()).T
    nearest = similarity.topk(int(values["k"]), dim=1).indices
    voted = torch.zeros(values["predicted"].shape, dtype=torch.bool)
    return voted.scatter_(1, values["labels"][nearest], True)


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


def _plain(bank, labels, queries, classes: int, k: int, temperature: float = 0.1) -> torch.Tensor:
    """Every similarity at once, all of them sorted."""
    unit = torch.nn.functional.normalize
    nearest, index = (unit(queries) @ unit(bank).T).sort(dim=1, descending=True)
    votes = (nearest[:, :k] / temperature).exp()
    scores = torch.zeros(len(queries), classes).scatter_add_(1, labels[index[:, :k]], votes)
    ranking = scores.argsort(dim=1, descending=True, stable=True)
    return ranking.masked_fill(scores.gather(1, ranking) == 0, -1)


def _least(bank, labels, queries, **settings) -> int:
    """The smallest budget, as the message for a smaller one says it."""
    with pytest.raises(UserError, match=r"^memory_budget: 1 bytes are too few; .* at least ") as e:
        knn_predict(bank, labels, queries, memory_budget=1, **settings)
    return int(str(e.value).rsplit(" ", 1)[1].replace(",", ""))


@settings(max_examples=30, deadline=None)
@given(more=st.integers(0, 60_000), k=st.integers(1, 80), seed=st.integers(0, 1000))
def test_blocks_do_not_change_the_ranking(more: int, k: int, seed: int):
    """From the smallest budget, one query against one image, to one that needs no blocks."""
    given = _random(torch.Generator().manual_seed(seed))
    budget = _least(*given, classes=4, k=k) + more
    parts = knn_predict(*given, classes=4, k=k, memory_budget=budget)
    assert torch.equal(parts, _plain(*given, 4, k))


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 25), columns=st.integers(1, 70), seed=st.integers(0, 1000))
def test_blocks_of_any_size_give_the_same_ranking(rows: int, columns: int, seed: int):
    bank, labels, queries = _random(torch.Generator().manual_seed(seed))
    sizes = knn._Sizes(rows, min(columns, len(bank)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn, "_block_sizes", lambda *_: sizes)
        parts = knn_predict(bank, labels, queries, classes=4, k=9)
    assert torch.equal(parts, _plain(bank, labels, queries, 4, 9))


def test_the_smallest_budget_is_enough_and_one_byte_less_is_not(generator):
    given = _random(generator)
    least = _least(*given, classes=4, k=5)
    knn_predict(*given, classes=4, k=5, memory_budget=least)
    with pytest.raises(UserError, match=f"memory_budget: {least - 1:,} bytes are too few"):
        knn_predict(*given, classes=4, k=5, memory_budget=least - 1)


@pytest.mark.parametrize(
    ("n", "m", "d", "k", "classes"),
    [(5000, 400, 64, 20, 10), (300, 200, 8, 300, 4), (300, 50, 500, 5, 3), (800, 90, 4, 9, 900)],
)
@pytest.mark.parametrize("share", [0.3, 1.0, 10.0])
def test_tensors_take_no_more_than_the_budget(n, m, d, k, classes, share, generator):
    """As PyTorch's allocator tells; from a third of the features on top of the least, to ten times.

    Where the features, the neighbors, or the scores of the classes are most of it.
    """
    bank, labels, queries = _random(generator, n, m, d, classes)
    given = {"classes": classes, "k": k, "top": min(5, classes)}
    budget = _least(bank, labels, queries, **given) + int(share * 4 * n * d)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        knn_predict(bank, labels, queries, **given, memory_budget=budget)
    results = profiler.profiler.kineto_results.events()
    changes = [event.nbytes() for event in results if event.name() == "[memory]"]
    assert len(changes) > 10
    assert max(accumulate(changes)) <= budget


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells peak memory so")
@pytest.mark.parametrize("budget", [24, 64])
def test_a_process_grows_by_no_more_than_the_budget(budget: int):
    """In megabytes: 41 of a bank whose normalized copy is as large, and 320 of similarities.

    A process of its own, because what another test gave back to the allocator could be used again.
    The 16 megabytes beside the budget are for the matrix library's own buffers and the gaps that
    the allocator leaves. The least of three counts: pages that the kernel took back before the
    measurement, on a busy machine, look like growth.
    """
    grown = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", _GROWTH, str(budget * 10**6)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        grown.append(int(done.stdout))
        if grown[-1] <= (budget + 16) * 10**6:
            return
    raise AssertionError(grown)


_GROWTH = """
import sys
from pathlib import Path
import torch
from unmix.evaluation import knn_accuracy

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
bank = torch.randn(40_000, 256, generator=generator)
labels = torch.randint(10, (40_000,), generator=generator)
queries = torch.randn(2_000, 256, generator=generator)
few = bank[:2000], labels[:2000], queries[:50], labels[:50]
knn_accuracy(*few, classes=10)  # whatever is loaded on first use
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = status("VmRSS")
knn_accuracy(bank, labels, queries, labels[:2000], classes=10, memory_budget=int(sys.argv[1]))
print(status("VmHWM") - before)
"""


def test_k_is_capped_at_the_bank(generator):
    bank, labels, queries = _random(generator)
    everyone = knn_predict(bank, labels, queries, classes=4, k=60)
    assert torch.equal(knn_predict(bank, labels, queries, classes=4, k=10_000), everyone)


def test_scale_of_features_does_not_matter(generator):
    bank, labels, queries = _random(generator)
    scale = torch.rand(len(bank), 1, generator=generator) + 0.5
    expected = knn_predict(bank, labels, queries, classes=4)
    assert torch.equal(knn_predict(bank * scale, labels, queries * 7, classes=4), expected)


def test_low_temperature_is_the_nearest_neighbor_without_overflow(generator):
    """exp(1 / 0.001) is beyond float32; the ranking must still follow the nearest one."""
    bank, labels, queries = _random(generator)
    nearest = torch.nn.functional.cosine_similarity(queries[:, None], bank[None], dim=2).argmax(1)
    ranking = knn_predict(bank, labels, queries, classes=4, temperature=0.001)
    assert torch.equal(ranking[:, 0], labels[nearest])


def test_top_gives_the_first_classes_alone(generator):
    given = _random(generator)
    whole = knn_predict(*given, classes=4)
    assert torch.equal(knn_predict(*given, classes=4, top=2), whole[:, :2])
    assert torch.equal(knn_predict(*given, classes=4, top=9), whole)


def test_half_precision_features_are_compared_in_float32(generator):
    bank, labels, queries = _random(generator)
    half = bank.bfloat16()
    expected = knn_predict(half.float(), labels, queries, classes=4)
    assert torch.equal(knn_predict(half, labels, queries, classes=4), expected)


def test_every_class_with_a_vote_is_ranked_once_and_the_others_are_no_prediction(generator):
    bank, labels, queries = _random(generator)
    ranking = knn_predict(bank, labels, queries, classes=6)
    assert ranking.dtype == torch.int64
    assert torch.equal(ranking[:, :4].sort(dim=1).values, torch.arange(4).expand(20, 4))
    assert (ranking[:, 4:] == -1).all()


@pytest.mark.parametrize("k", [1, 2, 3, 5, 20])
def test_top5_is_scikit_learns_over_the_classes_that_have_votes(k: int):
    """Top-5 with one neighbor is top-1; where fewer than five classes vote, only those count."""
    images, labels = load_digits(return_X_y=True)
    bank, queries, wanted = images[:300], images[300:800], labels[300:800]
    judge = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.1)
    ).fit(bank, labels[:300])
    chances = judge.predict_proba(queries)
    best = np.argsort(-chances, axis=1, kind="stable")[:, :5]
    hit = (best == wanted[:, None]) & (np.take_along_axis(chances, best, axis=1) > 0)
    given = map(torch.as_tensor, (bank, labels[:300], queries, wanted))
    found = knn_accuracy(*given, classes=10, k=k)
    assert found["top5"] == pytest.approx(100 * hit.any(axis=1).mean(), abs=0.3)
    assert found["top1"] == pytest.approx(100 * judge.score(queries, wanted), abs=0.3)
    if k == 1:
        assert found["top5"] == found["top1"]


def test_a_vote_too_light_for_float32_is_one_still(generator):
    """At a temperature of 1e-5 all but the nearest weigh 0; their classes are voted for still."""
    bank, labels, queries = _random(generator)
    ranking = knn_predict(bank, labels, queries, classes=6, temperature=1e-5)
    assert torch.equal(ranking[:, :4].sort(dim=1).values, torch.arange(4).expand(20, 4))
    assert (ranking[:, 4:] == -1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"temperature": 0}, "temperature must be greater than 0, got 0"),
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


@pytest.mark.parametrize("k", [1, 5, 9])
def test_euclidean_neighbors_are_those_of_scikit_learn(k: int):
    """`KNeighborsClassifier` with uniform weights, on features that are not normalized."""
    generator = torch.Generator().manual_seed(k)
    bank = torch.randn(150, 6, generator=generator) * torch.tensor([1.0, 3, 1, 1, 0.1, 1])
    labels = torch.randint(4, (150,), generator=generator)
    queries = torch.randn(70, 6, generator=generator)
    expected = KNeighborsClassifier(k).fit(bank.numpy(), labels.numpy()).predict(queries.numpy())
    for budget in (2**28, 16 * 150 * 8):
        found = euclidean_knn_predict(bank, labels, queries, classes=5, k=k, memory_budget=budget)
        assert found[:, 0].tolist() == expected.tolist()
        assert (found[:, -1] == -1).all()  # the fifth class has no image


def test_k_and_temperature_are_chosen_on_training_images():
    """One class of three lies in small clumps: a large k would outvote it."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 90 + [1] * 10)
    features = torch.nn.functional.one_hot(labels, 2) + 0.3 * torch.randn(
        100, 2, generator=generator
    )
    split = LabeledFeatures(features, labels, torch.arange(100))
    for name, keys in (("knn", {"k", "temperature"}), ("knn-euclidean", {"k"})):
        task = Task(lambda: split, lambda: split, 2, generator=generator, select=True)
        row = evaluate(name, task).row
        assert set(row["chosen"]) == keys
        assert row["chosen"]["k"] <= 90
        assert row["top1"] > 95
        assert "k" not in row

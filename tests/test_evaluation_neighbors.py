"""Nearest neighbors by cosine similarity, in blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from unmix.errors import UserError
from unmix.evaluation import nearest_neighbors


@pytest.mark.parametrize("budget", [2**28, 12_000])
def test_neighbors_are_those_of_all_similarities(budget: int, generator: torch.Generator) -> None:
    bank = torch.randn(101, 12, generator=generator)
    queries = torch.randn(37, 12, generator=generator)
    expected = (normalize(queries, dim=1) @ normalize(bank, dim=1).T).topk(7, dim=1)
    found = nearest_neighbors(bank, queries, 7, memory_budget=budget)
    torch.testing.assert_close(found.similarity, expected.values)
    assert torch.equal(found.index, expected.indices)


@pytest.mark.parametrize("budget", [2**28, 12_000])
def test_a_query_of_the_bank_is_not_its_own_neighbor(
    budget: int, generator: torch.Generator
) -> None:
    bank = torch.randn(50, 6, generator=generator)
    bank[31] = 2 * bank[4]
    itself = torch.arange(50)
    found = nearest_neighbors(bank, bank, 49, exclude=itself, memory_budget=budget)
    assert not (found.index == itself[:, None]).any()
    assert found.similarity.isfinite().all()
    assert found.index[4, 0] == 31
    torch.testing.assert_close(found.similarity[4, 0], torch.tensor(1.0))
    some = nearest_neighbors(bank, bank[:2], 49, exclude=torch.tensor([0, 7]))
    assert set(some.index[1].tolist()) == set(range(50)) - {7}


def test_a_bank_may_be_a_mapped_file(tmp_path: Path, generator: torch.Generator) -> None:
    bank = torch.randn(30, 5, generator=generator)
    np.save(tmp_path / "bank.npy", bank.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "bank.npy", mmap_mode="c"))
    expected = nearest_neighbors(bank, bank[:4], 3)
    assert torch.equal(nearest_neighbors(mapped, mapped[:4], 3).index, expected.index)


def test_what_cannot_be_searched() -> None:
    bank = torch.randn(5, 4)
    with pytest.raises(UserError, match=r"k: 5 neighbors were asked for, and there are 4 other"):
        nearest_neighbors(bank, bank, 5, exclude=torch.arange(5))
    with pytest.raises(UserError, match="same number of columns"):
        nearest_neighbors(bank, torch.randn(2, 3), 1)
    with pytest.raises(UserError, match="memory_budget"):
        nearest_neighbors(bank, bank, 1, memory_budget=10)

"""Who is mixed with whom."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmix.mixtures import DirichletMixture, UnMix
from unmix.mixtures.sampling import cyclic_owners, nearest_neighbors, partners


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_reverse_halves_and_second_view_are_what_they_say():
    assert partners("reverse", 5).tolist() == [4, 3, 2, 1, 0]
    assert partners("halves", 6).tolist() == [3, 4, 5]
    assert partners("halves", 7).tolist() == [3, 4, 5]
    assert partners("second_view", 3).tolist() == [0, 1, 2]


def test_a_permutation_is_that_of_the_generator():
    assert torch.equal(
        partners("permutation", 9, seeded(4)), torch.randperm(9, generator=seeded(4))
    )


@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 2**31))
def test_the_neighbour_is_the_nearest_other_by_the_cosine(n, dim, seed):
    features = torch.randn(n, dim, generator=seeded(seed), dtype=torch.float64)
    found = nearest_neighbors(features)
    for i in range(n):
        cosines = [
            -2.0
            if i == j
            else float(torch.nn.functional.cosine_similarity(features[i], features[j], dim=0))
            for j in range(n)
        ]
        assert found[i] != i
        assert cosines[found[i]] == pytest.approx(max(cosines), abs=1e-5)


def test_neighbours_are_found_in_full_precision_under_autocast():
    features = torch.randn(64, 128, generator=seeded()).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = nearest_neighbors(features)
    assert torch.equal(found, nearest_neighbors(features))
    assert not found.requires_grad


def test_a_draw_by_neighbours_mixes_with_them():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.1, 0.9]])
    x = torch.randn(4, 3, 6, 6, generator=seeded())
    draw = UnMix(1.0, pairing="neighbor").draw(x.shape, seeded(), features)
    assert draw.partner.tolist() == [2, 3, 0, 1]
    lam = draw.weight[0]
    torch.testing.assert_close(draw.apply(x), lam * x + (1 - lam) * x[[2, 3, 0, 1]])


@pytest.mark.parametrize("features", [None, torch.zeros(3, 2)])
def test_neighbours_without_features_of_the_batch_are_refused(features):
    with pytest.raises(
        ValueError, match=r"4 images with nearest neighbors needs their features \(N, D\)"
    ):
        UnMix(pairing="neighbor").draw((4, 3, 6, 6), seeded(), features)


@given(st.integers(2, 12), st.integers(2, 6), st.integers(0, 2**31))
def test_cyclic_owners_differ_and_every_image_is_in_as_many_mixtures(n, k, seed):
    owners = cyclic_owners(n, k, seeded(seed))
    assert owners[:, 0].tolist() == list(range(n))
    assert torch.equal(owners.flatten().bincount(minlength=n), torch.full((n,), k))
    if k <= n:
        assert all(len(set(row)) == k for row in owners.tolist())


def test_a_batch_smaller_than_a_mixture_comes_round_again():
    draw = DirichletMixture(images=4).draw((2, 3, 4, 4), seeded())
    assert draw.owners.tolist() == [[0, 1, 0, 1], [1, 0, 1, 0]]
    assert draw.apply(torch.ones(2, 3, 4, 4)).allclose(torch.ones(2, 3, 4, 4))

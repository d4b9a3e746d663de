"""Random numbers depend only on the given generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from unmix.randomness import beta, generator_for, on_device, uniform

words = st.text("abcdefgh_", min_size=1, max_size=6)
places = st.lists(st.one_of(words, st.integers(0, 10**6)), max_size=3).map(tuple)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(0, 2**31), places)
def test_a_place_has_one_stream_whatever_else_was_drawn(
    seed: int, place: tuple[int | str, ...]
) -> None:
    first = torch.rand(5, generator=generator_for(seed, *place))
    torch.rand(3)
    np.random.random(3)
    assert torch.equal(torch.rand(5, generator=generator_for(seed, *place)), first)


@given(st.tuples(st.integers(0, 99), places), st.tuples(st.integers(0, 99), places))
def test_different_places_have_different_seeds(
    one: tuple[int, tuple[int | str, ...]], other: tuple[int, tuple[int | str, ...]]
) -> None:
    same = (
        generator_for(one[0], *one[1]).initial_seed()
        == generator_for(other[0], *other[1]).initial_seed()
    )
    assert same == (one == other)


def test_streams_are_those_of_earlier_versions() -> None:
    """Fixed values: a run of an earlier version is resumed with the same draws."""
    assert generator_for(0, "step", 17).initial_seed() == 9168107782540815465
    assert generator_for(3, "order", 0).initial_seed() == 4917129201955457761


def test_first_draws_of_consecutive_steps_are_uniform_and_uncorrelated() -> None:
    draws = torch.stack([torch.rand(2, generator=generator_for(0, "step", i)) for i in range(4000)])
    assert stats.kstest(draws[:, 0].numpy(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 4 / 4000**0.5


@pytest.mark.parametrize("draw", [lambda g: uniform((6,), g), lambda g: beta(0.3, 2.0, (6,), g)])
def test_global_generators_are_neither_read_nor_advanced(draw) -> None:  # type: ignore[no-untyped-def]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    first = draw(seeded(4))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # type: ignore[index, arg-type]
    torch.rand(1)
    np.random.random()
    assert torch.equal(draw(seeded(4)), first)


@pytest.mark.parametrize(
    ("a", "b"), [(1.0, 1.0), (0.1, 0.1), (0.5, 0.5), (2.0, 2.0), (0.3, 2.0), (8.0, 1.0)]
)
def test_beta_matches_scipys_distribution_and_moments(a: float, b: float) -> None:
    n = 50_000
    numbers = beta(a, b, (n,), seeded(0)).double().numpy()
    exact = stats.beta(a, b)
    assert numbers.min() >= 0
    assert numbers.max() <= 1
    assert numbers.mean() == pytest.approx(exact.mean(), abs=4 * exact.std() / n**0.5)
    assert numbers.var() == pytest.approx(exact.var(), rel=0.03)
    # float32 piles the values within 3e-8 of 1 up there, which the test takes for a step.
    assert stats.kstest(numbers, exact.cdf).statistic < 0.01 + exact.sf(1 - 2**-24)


def test_beta_depends_on_its_generator_and_advances_it() -> None:
    generator = seeded(5)
    first, second = beta(0.5, 0.5, (4,), generator), beta(0.5, 0.5, (4,), generator)
    assert torch.equal(first, beta(0.5, 0.5, (4,), seeded(5)))
    assert not torch.equal(first, second)
    assert not torch.equal(first, beta(0.5, 0.5, (4,), seeded(6)))


@pytest.mark.parametrize("a", [1.0, 0.5])
@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_shapes_and_types(a: float, shape: tuple[int, ...]) -> None:
    for numbers in (uniform(shape, seeded(0)), beta(a, a, shape, seeded(0))):
        assert numbers.shape == shape
        assert numbers.dtype == torch.float32


def test_a_generator_on_the_device_is_returned_unchanged() -> None:
    generator = seeded(0)
    state = generator.get_state()
    assert on_device(generator, torch.device("cpu")) is generator
    assert torch.equal(generator.get_state(), state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_generator_for_another_device_is_seeded_from_the_given_one() -> None:
    device = torch.device("cuda")
    first, again, other = (
        torch.rand(4, generator=on_device(seeded(seed), device), device=device)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)

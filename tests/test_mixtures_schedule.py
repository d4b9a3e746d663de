"""A mixture from an epoch on, with a rising probability."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import unmix
from harness import N, build, views_of
from runs import MOCO_RUN, TINY_RUN
from unmix.config import Settings
from unmix.config.earlier import current
from unmix.errors import UserError
from unmix.mixtures import MixtureSchedule
from unmix.studies.cost import (
    Cost,
    epochs_for,
    forward_equivalents,
    measure_cost,
    measured_step,
    unscheduled,
)
from unmix.studies.plan import Study
from unmix.training import RunFolder, pretrain, profiling
from unmix.training.loop.module import Pretraining
from unmix.training.loop.records import Records


@given(st.integers(0, 5), st.integers(0, 5), st.integers(1, 12), st.integers(1, 40))
def test_the_probability_rises_from_0_to_1_by_step(start, ramp, epochs, per_epoch):
    schedule = MixtureSchedule(start, ramp)
    p = [schedule.probability(step, per_epoch) for step in range(epochs * per_epoch)]
    assert all(a <= b for a, b in pairwise(p))
    assert not any(p[: start * per_epoch])
    assert all(each == 1 for each in p[(start + ramp) * per_epoch :])
    # By steps, the line is half a step above that of the integral.
    assert schedule.share(epochs) == pytest.approx(sum(p) / len(p), abs=0.5 / per_epoch + 1e-9)


def test_a_ramp_of_four_steps_is_a_quarter_more_each():
    schedule = MixtureSchedule(1, 2)
    assert [schedule.probability(s, 2) for s in range(8)] == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert MixtureSchedule(1).share(4) == 0.75
    assert MixtureSchedule(1, 2).share(2) == pytest.approx(0.125)


def test_a_step_is_mixed_as_often_as_its_probability_says():
    schedule = MixtureSchedule(0, 2)
    half = schedule.probability(499, 500)
    assert half == pytest.approx(0.5)
    mixed = [schedule.mixes(499, 500, seed) for seed in range(400)]
    assert 150 < sum(mixed) < 250
    assert mixed == [schedule.mixes(499, 500, seed) for seed in range(400)]


def run(path: Path, **words: Any) -> list[dict[str, Any]]:
    pretrain(**{**MOCO_RUN, "evaluate": False, "run": str(path), **words})
    return Records(RunFolder(path).metrics).read()


@pytest.mark.parametrize(
    "mixture",
    [{"unmix": True, "IM": True, "g_prob": 0.9}, {"unmix": True, "unmix_rule": "imix"}],
    ids=["un-mix-and-im", "i-mix"],
)
def test_before_the_start_a_run_is_the_clean_run_bit_for_bit(
    mixture: dict[str, Any], tmp_path: Path
) -> None:
    """Then the loss of the mixture joins it, or replaces it."""
    words = {"epochs": 2, "checkpoint_every": 1, "checkpoint_steps": 0}
    clean = run(tmp_path / "clean", **words)
    late = run(tmp_path / "late", **words, **mixture, mix_from_epoch=1)
    assert late[0]["loss"] == clean[0]["loss"] == late[0]["loss_clean"]
    assert "loss_mixed" not in late[0]
    assert float(late[1]["loss_mixed"]) > 0
    assert late[1]["loss"] != clean[1]["loss"]
    if "unmix_rule" in mixture:
        assert late[1]["loss"] == late[1]["loss_mixed"]
        assert "loss_clean" not in late[1]
    else:
        both = float(late[1]["loss_clean"]) + float(late[1]["loss_mixed"])
        assert float(late[1]["loss"]) == pytest.approx(both, rel=1e-6)


def test_means_are_over_the_steps_that_have_the_loss(tmp_path: Path) -> None:
    """In the ramp an epoch has steps of both kinds; i-Mix's have no clean loss."""
    schedule = MixtureSchedule(0, 4)
    mixed = [schedule.mixes(step, 10, 1) for step in range(10)]
    assert 0 < sum(mixed) < 10
    row = run(
        tmp_path / "a", batch_size=10, epochs=1, seed=1, unmix=True, unmix_rule="imix",
        mix_ramp_epochs=4,
    )[0]  # fmt: skip
    share = sum(mixed) / len(mixed)
    mean = share * float(row["loss_mixed"]) + (1 - share) * float(row["loss_clean"])
    assert float(row["loss"]) == pytest.approx(mean, rel=1e-5)


class StopError(Exception):
    pass


def test_a_run_that_is_stopped_in_the_ramp_ends_as_if_it_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: dict[str, Any] = {
        "batch_size": 20, "epochs": 3, "unmix": True, "unmix_rule": "imix", "mix_from_epoch": 1,
        "mix_ramp_epochs": 1, "accumulate": 2, "checkpoint_steps": 1,
    }  # fmt: skip
    whole = run(tmp_path / "whole", **words)
    step = Pretraining.training_step

    def stopping(self: Pretraining, *args: Any) -> Any:
        if self.global_step == 8:
            raise StopError
        return step(self, *args)

    monkeypatch.setattr(Pretraining, "training_step", stopping)
    with pytest.raises(StopError):
        run(tmp_path / "stopped", **words)
    monkeypatch.undo()
    again = run(tmp_path / "stopped", **words)
    rows = [{k: v for k, v in r.items() if k != "images_per_second"} for r in whole]
    assert [{k: v for k, v in r.items() if k != "images_per_second"} for r in again] == rows
    ours, theirs = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("stopped", "whole")
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_run_that_is_extended_is_mixed_when_it_said(tmp_path: Path) -> None:
    """The start counts from the run's first epoch, not from its last end."""
    words: dict[str, Any] = {"unmix": True, "mix_from_epoch": 2}
    run(tmp_path / "a", epochs=3, **words)
    rows = run(tmp_path / "a", epochs=4, extend=True, **words)
    assert ["loss_mixed" in row for row in rows] == [False, False, True, True]


def test_a_stepper_mixes_from_its_epoch_on() -> None:
    def losses(**words: Any) -> list[tuple[bool, float]]:
        step = unmix.Stepper(build("moco"), steps_per_epoch=2, epochs=3, **words)
        found = []
        for number in range(6):
            index = torch.arange(N)
            loss = step(views_of(step.method, number), index)
            loss.backward()
            found.append((step.mixed is not None, loss.item()))
        return found

    image_space = unmix.ImageMixture(g_prob=1)
    mixtures: dict[str, Any] = {"mixture": unmix.UnMix(), "image_space": image_space}
    clean, late = losses(), losses(**mixtures, mix_from_epoch=2)
    assert [mixed for mixed, _ in late] == [False] * 4 + [True] * 2
    assert late[:4] == clean[:4]
    assert losses(**mixtures, mix_ramp_epochs=0) == losses(**mixtures)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"mix_from_epoch": 1}, "mix_from_epoch: is for a mixture; give one"),
        ({"mixture": unmix.UnMix(), "mix_from_epoch": 3}, "mix_from_epoch: after 3 epochs of 2"),
        ({"mixture": unmix.UnMix(), "mix_ramp_epochs": -1}, "mix_ramp_epochs must be at least 0"),
    ],
)
def test_a_stepper_refuses_a_schedule_that_mixes_nothing(words, message):
    with pytest.raises(UserError, match=message):
        unmix.Stepper(build("moco"), steps_per_epoch=2, epochs=3, **words)


MISTAKES: list[tuple[list[str], str]] = [
    (
        ["--unmix", "--mix_from_epoch", "4"],
        "--mix_from_epoch: 4 of --epochs 4 would leave no step for the mixture; it must be at most "
        "3.",
    ),
    (
        ["--IM", "--unmix_from_epoch", "9"],
        "--mix_from_epoch: 9 of --epochs 4 would leave no step for the mixture; it must be at most "
        "3.",
    ),
    (
        ["--mix_ramp_epochs", "2"],
        "--mix_ramp_epochs: does nothing without a mixture; add --IM or --unmix, or leave it out.",
    ),
    (
        ["--unmix", "--mix_from_epoch", "-1"],
        "--mix_from_epoch: -1 is out of range; it must be at least 0.",
    ),
    (["--unmix", "--mix_ramp_epochs", "0.5"], "--mix_ramp_epochs: '0.5' is not an integer."),
]


@pytest.mark.parametrize(("words", "wanted"), MISTAKES, ids=[" ".join(w) for w, _ in MISTAKES])
def test_a_schedule_that_cannot_be_is_refused_in_one_line(
    words: list[str], wanted: str, refuse: Callable[..., str], tmp_path: Path
) -> None:
    run_ = ["--method", "moco", "--data", "digits", "--epochs", "4", "--run", tmp_path / "nowhere"]
    assert wanted in refuse("pretrain", *run_, *words)


def test_the_names_of_un_mix_are_other_names() -> None:
    """On the command line, in Python and in YAML; both names at once are a mistake."""
    assert current({"unmix_from_epoch": 3, "unmix_ramp_epochs": 2}) == {
        "mix_from_epoch": 3, "mix_ramp_epochs": 2,
    }  # fmt: skip
    with pytest.raises(UserError, match="unmix_from_epoch: is another name of mix_from_epoch"):
        current({"unmix_from_epoch": 3, "mix_from_epoch": 2})


SMALL: dict[str, Any] = {**TINY_RUN, "method": "simsiam", "data": "digits", "limit": 64,
                         "batch_size": 32, "dim": 16, "hidden": 16, "epochs": 8}  # fmt: skip


def test_a_plan_counts_clean_and_mixed_steps_by_their_shares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(profiling, "matmul_rate", lambda *_: 1e12)
    always = Settings.of({**SMALL, "unmix": True})
    late = Settings.of({**SMALL, "unmix": True, "mix_from_epoch": 3, "mix_ramp_epochs": 2})
    share = late.mixture.schedule().share(8)
    assert share == pytest.approx(0.5)
    mixed, clean = (forward_equivalents(s, 64) for s in (always, Settings.of(SMALL)))
    assert forward_equivalents(late, 64) == pytest.approx((mixed + clean) / 2)
    assert clean < mixed
    step, whole = (measured_step(s, 32, 64, 0) for s in (late, always))
    assert step.footprint == whole.footprint
    plain = measured_step(Settings.of(SMALL), 32, 64, 0)
    assert step.flops_per_image == pytest.approx(
        (whole.flops_per_image + plain.flops_per_image) / 2
    )
    assert unscheduled(always) is None
    cost = measure_cost(late.with_changes(epochs=4))
    assert cost.forwards(4) == pytest.approx(
        4 * 64 * (clean + MixtureSchedule(3, 2).share(4) * (mixed - clean)), rel=1e-3
    )


def test_equal_cost_of_a_late_mixture_is_found() -> None:
    """Its cost is not proportional to its epochs."""
    like = {"unmix": True, "mix_from_epoch": 10, "same_compute_as": "plain"}
    study = Study.of({"conditions": {"plain": {}, "late": like}, "seeds": "0-5"}, "a")
    plain = Cost(4.0, 0.1, 10, 40, 32)
    late = Cost(8.0, 0.2, 10, 40, 32, clean=(4.0, 0.1), schedule=(10, 0))
    assert late.forwards(25) == plain.forwards(40)
    assert late.seconds(25) == pytest.approx(plain.seconds(40))
    assert late.per_epoch(20)["forward_equivalents"] == 6.0
    assert epochs_for(study, {"plain": plain, "late": late}) == {"plain": 40, "late": 25}

"""The plan of a training: its arithmetic, published trainings, what is measured, and mistakes."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from runs import MOCO_RUN
from unmix.cli import main
from unmix.commands import plan
from unmix.commands.plan import dry_run
from unmix.config import Settings
from unmix.errors import UserError
from unmix.studies.cost import Step, measured_step
from unmix.studies.planning import Footprint, Plan, Speed
from unmix.studies.published import DEVICES, RUNS
from unmix.training import pretrain
from unmix.training.console import silent
from unmix.training.run.parts import build_parts
from unmix.training.run.pretrain import settings_for

# By name: the package's attribute `plan` is the function.
MODULE = importlib.import_module("unmix.commands.plan")
TINY: dict[str, Any] = {
    "data": "digits", "limit": 64, "backbone": "resnet10", "width": 0.125, "size": 8,
    "batch_size": 16, "epochs": 2, "queue_size": 32, "bn_splits": 1, "device": "cpu",
    "precision": "32",
}  # fmt: skip

PLAN = Plan(
    images=1_000_000, epochs=10, batch=1024, gpus=16, machines=2,
    speed=Speed(100.0, "measured", "a GPU", 10e9),
    footprint=Footprint(weights=200e6, gradients=100e6, optimizer=100e6, activations=50e6),
    price=2.0,
)  # fmt: skip


def test_time_memory_and_cost_follow_from_a_step():
    # 64 images at 100 images/s; a ring sends 2 * 15/16 of 100 MB, hidden behind the backward pass.
    assert PLAN.compute_seconds == pytest.approx(0.64)
    assert PLAN.communication_seconds == pytest.approx(2 * 15 / 16 * 100e6 / 10e9)
    assert (PLAN.step_seconds, PLAN.bottleneck) == (pytest.approx(0.64), "compute")
    assert PLAN.seconds == pytest.approx(1e6 * 10 / (16 * 100))
    assert PLAN.gpu_hours == pytest.approx(1e7 / 100 / 3600)
    assert PLAN.cost == pytest.approx(2 * 1e7 / 100 / 3600)
    assert PLAN.memory == pytest.approx(400e6 + 64 * 50e6)
    assert PLAN.efficiency == pytest.approx(1)
    assert PLAN.fitting == 192


def test_the_bottleneck_is_what_takes_longest():
    slow_disk = replace(PLAN, loading=400.0)  # 800 images/s in all, of 1600
    assert slow_disk.bottleneck == "loading"
    assert slow_disk.seconds == pytest.approx(1e7 / 800)
    assert slow_disk.efficiency == pytest.approx(0.5)
    slow_net = replace(PLAN, bandwidth=100e6)  # 1.875 s, of which 2/3 of 0.64 s are hidden
    assert slow_net.bottleneck == "communication"
    assert slow_net.step_seconds == pytest.approx(0.64 + 1.875 - 2 / 3 * 0.64)
    alone = replace(PLAN, gpus=1, batch=64)
    assert alone.communication_seconds == 0
    text = "\n".join(slow_disk.lines())
    for part in ("bottleneck: loading", "2 machines", "50% of 16 alone", "400 images/s", "cost: "):
        assert part in text


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_published_trainings_are_predicted_by_those_that_calibrate(run: Any):
    """Within a factor of two; those that calibrate exactly. docs/scaling.md has the table."""
    flops = DEVICES[run.device].flops[run.kind]
    speed = Speed(flops / (1e9 * run.gflops), "", run.device)
    found = Plan(
        run.images, int(run.epochs), run.gpus * 32, run.gpus, 1, speed,
        Footprint(0.0, 0.0, 0.0, 1.0),
    )  # fmt: skip
    ratio = found.seconds / 3600 / run.hours
    if run.calibrates:
        assert ratio == pytest.approx(1)
    assert 0.5 < ratio < 2


def test_a_step_is_measured_without_data():
    settings, _ = settings_for({**TINY, "data": "imagenet", "data_dir": "nowhere"})
    step = measured_step(settings, 16, 1000, 2)
    assert len(step.seconds) == 2
    assert all(s > 0 for s in step.seconds)
    assert (step.batch, step.kind, step.device) == (16, "convnet", torch.device("cpu"))
    assert step.footprint.gradients == step.footprint.optimizer > 0
    assert step.footprint.weights > 2 * step.footprint.gradients  # a key encoder and a queue
    # Twice the images need twice the activations.
    again = measured_step(settings, 8, 1000, 0)
    assert again.footprint.activations == pytest.approx(step.footprint.activations, rel=0.1)
    assert again.seconds == []


def test_a_bank_is_counted_for_all_images():
    words = {k: v for k, v in TINY.items() if k not in ("queue_size", "bn_splits")}
    settings = Settings.of({**words, "method": "insdis"})
    few, many = (measured_step(settings, 16, n, 0).footprint for n in (1000, 1_000_000_000))
    rows = (10**9 - 1000) * 128 * 4
    assert many.weights - few.weights == pytest.approx(rows, rel=0.01)


def test_the_plan_has_the_images_of_the_data_and_its_json_every_number(tmp_path: Path):
    lines: list[str] = []
    found = plan(json=str(tmp_path / "plan.json"), steps=1, price=1.5, say=lines.append, **TINY)
    assert found == json.loads((tmp_path / "plan.json").read_text())
    assert (found["images"], found["gpus"], found["batch"], found["epochs"]) == (64, 1, 16, 2)
    assert found["cost"] == pytest.approx(1.5 * found["gpu_hours"])
    assert "for 64 images, 2 epochs, 1 device" in lines[1]
    assert any("1 step of 16 images measured here" in line for line in lines)
    other = plan(images=1.28e6, gpus=4, on="v100", bandwidth=1e15, say=silent, **TINY)
    assert other["speed"]["device"] == "v100"
    assert other["gpu_hours"] == pytest.approx(
        1.28e6 * 2 / other["speed"]["images_per_second"] / 3600
    )


def test_a_dry_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    found = dry_run(say=lines.append, **TINY, run="r")
    assert found is not None
    assert found.images == 64
    assert lines[1].startswith("time: ")
    assert list(Path().iterdir()) == []


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The sizes of the views that are measured; the steps are made up."""
    found: list[int | None] = []
    step = Step([1.0], 16, 1.0, Footprint(1.0, 1.0, 1.0, 1.0), "convnet", torch.device("cpu"))

    def measure(settings: Settings, *_: Any) -> Step:
        found.append(settings.run.size)
        return step

    monkeypatch.setattr(MODULE, "measured_step", measure)
    return found


def test_the_views_that_are_timed_are_those_of_the_run(sizes: list[int | None]):
    """Without --size the steps of 8 px were timed at 224 px."""
    lines: list[str] = []
    words = {name: value for name, value in TINY.items() if name != "size"}
    dry_run(say=lines.append, **words)
    plan(say=lines.append, **words)
    dry_run(say=lines.append, **{**words, "size": 12})
    plan(say=lines.append, images=100, **words)
    assert sizes == [8, 8, 12, 224]
    heads = [line.split(", ")[2] for line in lines if line.startswith("moco, ")]
    assert heads[:3] == ["views of 8 px", "views of 8 px", "views of 12 px"]
    assert heads[3:] == ["views of 224 px (assumed; give --size)"]


def test_a_dry_run_of_a_run_is_of_what_is_left_and_refuses_what_the_run_does(
    sizes: list[int | None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = str(tmp_path / "a")
    pretrain(**{**MOCO_RUN, "run": run, "evaluate": False, "lr": 0.06})
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    lines: list[str] = []
    found = dry_run(say=lines.append, run=run, epochs=3, extend=True)
    assert found is not None
    assert (found.epochs, found.seconds) == (2, 2 * found.images / 16)
    assert lines[1] == "1 of 3 epochs done before; the rest is planned"
    with pytest.raises(UserError, match=r"its lr is 0\.06, not 0\.5"):
        dry_run(say=silent, run=run, lr=0.5)
    with pytest.raises(UserError, match=r"epochs: .+ has ended after its 1 epoch"):
        dry_run(say=silent, run=run, epochs=3)
    capsys.readouterr()
    assert main(["pretrain", "--run", run, "--dry_run"]) == 0
    assert "a is complete; nothing to do" in capsys.readouterr().out
    assert main(["pretrain", "--run", run, "--epochs", "2", "--extend", "--dry_run"]) == 0
    assert "for 100 images, 1 epoch" in capsys.readouterr().out
    # Between the last save and the evaluation, no epoch is left.
    (tmp_path / "a" / "results.json").unlink()
    files.pop(tmp_path / "a" / "results.json")
    found = dry_run(say=silent, run=run)
    assert found is not None
    assert (found.epochs, found.seconds) == (0, 0)
    assert files == {path: path.stat().st_mtime_ns for path in files}


def test_what_pretrain_calls_devices_has_that_name_in_its_dry_run(
    sizes: list[int | None], monkeypatch: pytest.MonkeyPatch, refuse: Callable[..., str]
):
    flags = [f"--{name}={value}" for name, value in TINY.items()]
    words = refuse("pretrain", *flags, "--devices", "3", "--dry_run")
    assert words.startswith("--devices: a batch of 16 images cannot be divided among 3 devices")
    assert refuse("plan", *flags, "--gpus", "3").startswith("--gpus: a batch of 16 images")
    monkeypatch.setattr(MODULE, "free_memory", lambda device: 8.0)
    assert "or --devices 4." in refuse("pretrain", *flags, "--dry_run")
    assert "or --gpus 4." in refuse("plan", *flags)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"images": 0}, "images"),
        ({"gpus": 0}, "gpus"),
        ({"on": "h100"}, "there are here (this machine) and v100, v100-fp32"),
        ({"gpus": 3}, "multiple of 3, such as 18"),
        ({"gpus": 32}, "multiple of 32, such as 32"),
        ({"price": -1}, "price"),
        ({"loading": 0}, "loading"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    words: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(MODULE, "measured_step", None)
    with pytest.raises(UserError) as error:
        plan(**{**TINY, **words}, say=silent)
    assert says in str(error.value)


def test_too_little_memory_says_which_batch_fits(monkeypatch: pytest.MonkeyPatch):
    whole = plan(steps=1, say=silent, **TINY)
    fixed = sum(whole["footprint"][k] for k in ("weights", "gradients", "optimizer"))
    has = fixed + 5.5 * whole["footprint"]["activations"]
    monkeypatch.setattr(MODULE, "free_memory", lambda device: has)
    fit = r"5 fit: --accumulate 4 \(4 images at a time\), --batch_size 5, or --gpus 4"
    with pytest.raises(UserError, match=fit) as error:
        plan(steps=1, say=silent, **TINY)
    assert error.value.on_command_line().startswith("--batch_size: ")
    in_parts = plan(steps=1, say=silent, accumulate=4, **TINY)
    assert in_parts["memory"] == fixed + 4 * whole["footprint"]["activations"]
    monkeypatch.setattr(MODULE, "free_memory", lambda device: fixed / 2)
    with pytest.raises(UserError, match="weights, gradients and optimizer alone take"):
        plan(steps=1, say=silent, **TINY)


def test_a_batch_that_is_halved_to_be_measured_may_have_any_number_of_parts(
    monkeypatch: pytest.MonkeyPatch,
):
    """Of 16 images 4 were measured, which have no 8 parts: an error about a batch of 4."""
    monkeypatch.setattr("unmix.studies.cost._QUICK", 1e6)
    assert (
        measured_step(Settings.of({**TINY, "method": "moco", "accumulate": 8}), 16, 64, 0).batch < 8
    )


def test_sharded_weights_go_with_a_schedule_of_mixtures():
    words: dict[str, Any] = {
        **TINY, "method": "simclr", "backbone": "timm:test_vit", "patch": 8, "size": 16,
        "width": 1.0, "unmix": True, "mix_from_epoch": 1, "strategy": "fsdp",
    }  # fmt: skip
    for name in ("queue_size", "bn_splits"):
        words.pop(name)
    assert measured_step(Settings.of(words), 4, 64, 0, 2).exchanged


def test_on_the_command_line(refuse: Callable[..., str], capsys: pytest.CaptureFixture[str]):
    assert "--images" in refuse("plan", "--images", "0")
    assert "--on" in refuse("plan", "--on", "h100")
    assert "writes no run folder" in refuse("plan", "--run", "x")
    assert main(["plan", "--help"]) == 0
    assert "--price" in capsys.readouterr().out


def test_a_busy_machine_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("unmix.hardware.threads.CoreMeter.taken", lambda self: 100.0)
    found = plan(steps=1, say=silent, **TINY)
    assert "other processes took 100.0 of" in found["speed"]["source"]


def test_sharded_weights_take_less_memory_and_more_communication(
    capsys: pytest.CaptureFixture[str],
):
    """Of 4 devices each holds a quarter of weights, gradients and optimizer, and gathers groups."""
    words: dict[str, Any] = {
        **TINY, "method": "byol", "backbone": "timm:test_vit", "patch": 8, "size": 16, "width": 1.0,
        "optimizer": "adamw", "lr": 1e-3, "dim": 8, "hidden": 16,
    }  # fmt: skip
    for name in ("queue_size", "bn_splits"):
        words.pop(name)
    whole = measured_step(Settings.of(words), 4, 64, 0, 4)
    shared = measured_step(Settings.of({**words, "strategy": "fsdp"}), 4, 64, 0, 4)
    method = build_parts(Settings.of(words)).module.method
    parameters = sum(p.nbytes for p in method.parameters())
    buffers, trained = whole.footprint.weights - parameters, whole.footprint.gradients
    block = sum(p.nbytes for p in method.backbone.blocks[0].parameters())
    assert shared.footprint.weights == pytest.approx(parameters / 4 + buffers + 2 * block)
    assert shared.footprint.gradients == pytest.approx(trained / 4 + block)
    assert shared.footprint.optimizer == pytest.approx(trained / 2)
    assert shared.footprint.activations == whole.footprint.activations
    # Two views: each gathered, again for the backward pass, and gradients; targets gathered alone.
    assert shared.exchanged == pytest.approx(2 * 3 * trained + 2 * (parameters - trained))
    assert whole.exchanged is None
    found = replace(PLAN, exchanged=6e9)
    assert found.communication_seconds == pytest.approx(15 / 16 * 6e9 / 10e9)
    assert "weights are gathered and gradients summed at" in "\n".join(found.lines())
    argv = ["plan", *[f"--{k}={v}" for k, v in words.items()], "--strategy", "fsdp"]
    assert main([*argv, "--images", "64", "--gpus", "4", "--steps", "1"]) == 0
    assert "weights are gathered" in capsys.readouterr().out
    assert main([*argv, "--images", "64", "--gpus", "1"]) == 2
    assert "--strategy: fsdp shares the weights among several devices" in capsys.readouterr().err

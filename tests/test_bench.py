"""`unmix bench`: every stage is measured, the numbers fit together, mistakes cost no minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unmix.cli import main
from unmix.commands.bench import table
from unmix.figures.bench import step_chart
from unmix.training import profiling
from unmix.training.profiling import Times, count_flops, measure_stages, whole_steps
from unmix.training.run.parts import build_parts
from unmix.training.run.pretrain import settings_for

TINY = {
    "method": "moco", "data": "digits", "backbone": "resnet10", "width": 0.25, "size": 8,
    "batch_size": 16, "queue_size": 64, "bn_splits": 1, "device": "cpu", "workers": 0,
}  # fmt: skip
FLAGS = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of 40 pictures of several sizes, of which three are broken."""
    rng = np.random.default_rng(0)
    place = tmp_path / "pictures"
    place.mkdir()
    for i in range(40):
        path = place / f"{i:02d}.jpg"
        Image.fromarray(rng.integers(0, 256, (12 + i % 3, 16, 3), dtype=np.uint8)).save(path)
        if i % 13 == 5:
            path.write_bytes(path.read_bytes()[:200])
    return place


def measured(**words: Any) -> dict[str, Any]:
    return measure_stages(build_parts(settings_for({**TINY, **words})[0]), steps=2, warmup=1)


def test_medians_and_bounds_of_rates():
    times = Times()
    for seconds in (2.0, 1.0, 4.0):
        times.add("views", seconds, 8)
    assert times.rates("views") == {"median": 4.0, "min": 2.0, "max": 8.0}
    assert times.per_image("views") == 0.25
    assert times.per_image("read") == 0


def test_images_on_the_device_need_no_reading():
    assert set(measured()["times"].seconds) == {"views", "forward", "backward", "optimizer", "step"}


@pytest.mark.parametrize("words", [{"IM": True}, {"unmix": True}])
def test_a_mixture_is_a_stage(words):
    times = measured(**words)["times"]
    assert len(times.seconds["mixture"]) == 2
    assert all(len(seconds) == 2 for seconds in times.seconds.values())


def test_files_are_read_decoded_and_loaded(folder):
    parts = build_parts(settings_for({**TINY, "data": str(folder)})[0])
    times = measure_stages(parts, steps=2)["times"]
    assert list(times.seconds)[:3] == ["read", "decode", "load"]
    # Of the 40 files 37 can be read.
    assert times.images["read"] == times.images["decode"] == 37
    assert len(parts.train.skipped) > 0


def test_operations_match_published_costs():
    """MoCo encodes a query (forward and backward) and a key; Un-Mix one query more: 7 for 4."""
    plain, mixed, both = (
        measured(**words)["flops_per_image"]
        for words in ({}, {"unmix": True}, {"unmix": True, "symmetric": True})
    )
    assert mixed / plain == pytest.approx(7 / 4, rel=0.05)
    assert both / plain == pytest.approx(11 / 4, rel=0.05)


def test_counting_operations_does_not_train(monkeypatch):
    """The weights after counting are those before it."""
    seen: list[bool] = []

    def watched(module: Any, *others: Any) -> int:
        before = {k: v.clone() for k, v in module.method.f_q.head.state_dict().items()}
        count = count_flops(module, *others)
        after = module.method.f_q.head.state_dict()
        seen.append(all(torch.equal(before[k], after[k]) for k in before))
        assert all(p.grad is None for p in module.parameters())
        return count

    monkeypatch.setattr(profiling, "count_flops", watched)
    measured()
    assert seen == [True]


def test_the_stages_are_those_of_the_steps_that_are_trained():
    """Nothing is drawn beside them, and their mixture is a stage of its own."""
    parts = build_parts(settings_for({**TINY, "unmix": True})[0])
    applied: list[int] = []
    ((operator, rule),) = parts.module.mixing
    draw = operator.draw

    class Watched(type(operator)):
        def draw(self, *args: Any) -> Any:
            applied.append(parts.module.global_step)
            return draw(*args)

    parts.module.mixing = [(Watched(), rule)]
    found = measure_stages(parts, steps=3, warmup=1)["times"]
    # Warm-up and whole steps, as many steps for the stages, and one for the operations.
    assert applied == [*range(1 + 2 * 3), 1 + 2 * 3]
    assert {name: len(seconds) for name, seconds in found.seconds.items()} == dict.fromkeys(
        ["views", "mixture", "forward", "backward", "optimizer", "step"], 3
    )


@pytest.mark.parametrize("accumulate", [1, 4])
def test_operations_are_counted_on_as_many_images_as_are_encoded_at_a_time(
    accumulate: int, monkeypatch: pytest.MonkeyPatch
):
    sizes: list[int] = []
    count = profiling.count_flops
    monkeypatch.setattr(
        profiling, "count_flops",
        lambda module, batch, dtype: sizes.append(len(batch.index)) or count(module, batch, dtype),
    )  # fmt: skip
    assert measured(accumulate=accumulate)["flops_per_image"] > 0
    assert sizes == [16 // accumulate]


def test_stages_of_several_devices_are_those_of_their_parts_of_a_batch():
    parts = build_parts(settings_for(TINY)[0])
    parts = replace(parts, settings=parts.settings.with_changes(devices=2))
    times = Times()
    clock = profiling._StageClock(parts, times, 1)
    clock.found, clock.stack, clock.images = {"backward": 0.25, "": 0.0}, [""], 8
    clock.on_train_batch_end(None)
    assert times.per_image("backward") == 0.25 / 16


def test_whole_steps_continue_over_epochs():
    """32 images are two batches an epoch; five steps need three epochs."""
    parts = build_parts(settings_for({**TINY, "limit": 32, "epochs": 1})[0])
    assert len(whole_steps(parts, 4, warmup=1)) == 4


def test_the_command_writes_consistent_numbers(tmp_path, capsys):
    out, chart = tmp_path / "b.json", tmp_path / "b.png"
    # An odd number of runs: then the median of the rates is that of the seconds.
    words = [*FLAGS, "--IM", "--steps", "3", "--json", str(out), "--chart", str(chart)]
    assert main(["bench", *words]) == 0
    said = capsys.readouterr().out
    found = json.loads(out.read_text())
    for stage, row in found["stages"].items():
        rate = row["images_per_second"]
        assert rate["min"] <= rate["median"] <= rate["max"]
        assert row["milliseconds_per_step"] == pytest.approx(16e3 / rate["median"])
        assert f"\n{stage} " in said
    model = sum(found["stages"][s]["milliseconds_per_step"] for s in ("forward", "backward")) / 16e3
    assert found["model_flops_per_second"] == pytest.approx(found["flops_per_image"] / model)
    share = found["model_flops_per_second"] / found["matmul_flops_per_second"]
    assert found["model_share_of_matmul_rate"] == pytest.approx(share)
    assert 0 <= found["outside_model_share"] < 1
    assert found["peak_memory_bytes"] > 2**20
    assert found["settings"]["IM"] is True
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert table(found) in said


def test_the_chart_has_a_bar_for_each_stage_and_the_limit(tmp_path):
    out = tmp_path / "b.json"
    assert main(["bench", *FLAGS, "--unmix", "--steps", "1", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    (axes,) = step_chart(found).axes
    widths = [bar.get_width() for bar in axes.patches]
    assert widths[:-1] == [row["milliseconds_per_step"] for row in found["stages"].values()]
    assert widths[-1] == pytest.approx(16e3 / found["images_per_second_at_matmul_rate"])
    assert axes.get_title(loc="left").startswith("MoCo + Un-Mix, resnet10, 8 px")


def test_broken_files_are_named(folder, capsys):
    assert main(["bench", *FLAGS, "--data", str(folder), "--steps", "1"]) == 0
    assert "image files that cannot be read" in capsys.readouterr().out


def test_a_folder_without_readable_images_is_refused(refuse, tmp_path):
    (tmp_path / "x").mkdir()
    assert refuse("bench", *FLAGS, "--data", tmp_path / "x").startswith(f"{tmp_path / 'x'}: this f")
    for i in range(4):
        (tmp_path / "x" / f"{i}.jpg").write_bytes(b"no image")
    line = refuse("bench", *FLAGS, "--data", tmp_path / "x")
    assert line.startswith(f"{tmp_path / 'x'}: no image could be read")


def test_too_few_readable_images_for_a_step_are_refused(refuse, folder):
    for path in sorted(folder.iterdir())[1:]:
        path.write_bytes(b"no image")
    line = refuse("bench", *FLAGS, "--data", folder, "--resident", "no")
    assert "images can be read; a step needs 2. Skipped" in line


def test_an_existing_output_is_not_overwritten(refuse, tmp_path):
    old = tmp_path / "old.json"
    old.write_text("mine")
    line = refuse("bench", *FLAGS, "--json", old)
    assert line == f"--json: {old} exists; give another name, or remove it."
    assert old.read_text() == "mine"


def test_an_output_that_cannot_be_written_is_an_error_before_measuring(
    refuse, tmp_path, monkeypatch
):
    # The package's attribute of that name is the function.
    module = sys.modules["unmix.commands.bench"]
    monkeypatch.setattr(module, "measure_stages", lambda *_, **__: 1 / 0)
    (tmp_path / "file").touch()
    line = refuse("bench", *FLAGS, "--json", tmp_path / "file" / "b.json")
    assert line.startswith(f"{tmp_path / 'file' / 'b.json'}: cannot be written")
    assert refuse("bench", *FLAGS, "--chart", "b.jpg") == "--chart: b.jpg must end in .png."
    assert refuse("bench", *FLAGS, "--run", "r").startswith(
        "--run: does not apply to unmix bench, which writes no run fol"
    )
    assert refuse("bench", *FLAGS, "--steps", "0").startswith("--steps: 0 is out of range")


def test_the_gpu_benchmark_needs_few_packages_and_its_checks_pass_on_a_cpu():
    """The machine that it is for has PyTorch, torchvision and Lightning, and little else."""
    absent = ("safetensors", "jinja2", "tensorboard", "skimage")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({absent}))
sys.path.insert(0, {str(Path(__file__).parents[1] / "benchmarks")!r})
import gpu, torch
torch.set_num_threads(1)
for words in gpu.KINDS.values():
    words.update(backbone="resnet10", width=0.25, device="cpu")
images, device = gpu.cifar(None), torch.device("cpu")
assert gpu.check_views(images, device)["passed"]
for name, found in gpu.check_fast_path(images, device).items():
    assert found["passed"], (name, found)
gpu.RULES = dict((rule, gpu.RULES[rule]) for rule in ("unmix", "mixco"))
gpu.METHODS = ("pirl", "swav")
cells = gpu.check_cells(images, device)
assert list(cells) == ["pirl unmix", "pirl mixco", "swav unmix"]
assert all(found["passed"] for found in cells.values()), cells
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]

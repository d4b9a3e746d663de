"""torch.compile: only where it pays, never in the way, and for full batches alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from unmix.config import Settings
from unmix.data import load
from unmix.methods import CMC, MoCo
from unmix.randomness import generator_for
from unmix.training import pretrain
from unmix.training.loading.loaders import build_loader
from unmix.training.loop import compiling
from unmix.training.loop.compiling import compile_encoders, compile_error, speedup
from unmix.training.run.parts import build_parts

TINY: dict[str, Any] = {
    "method": "moco", "data": "digits", "limit": 80, "backbone": "resnet10", "width": 0.25,
    "size": 8, "batch_size": 32, "epochs": 1, "knn_every": 0, "evaluate": False,
    "queue_size": 64, "bn_splits": 2, "unmix": True, "logger": "none", "device": "cpu",
    "precision": "32",
}  # fmt: skip
real_compile = torch.compile


@pytest.fixture
def eager_backend(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Compile with a backend that runs the graph as it is; gives the batch sizes it compiled."""
    seen: set[int] = set()

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
        seen.update(x.shape[0] for x in tensors if x.shape[1:] == (3, 8, 8))
        return graph.forward

    def compile_(model: Any, **options: Any) -> Any:
        return real_compile(model, backend=backend, **options)

    monkeypatch.setattr(torch, "compile", compile_)
    torch._dynamo.reset()
    return seen


def test_a_compiler_that_fails_is_told_in_one_line(monkeypatch):
    def fails(function: Any) -> Any:
        raise RuntimeError("no C++ compiler\nwas found. Look here")

    monkeypatch.setattr(torch, "compile", fails)
    assert compile_error(torch.device("cpu")) == "no C++ compiler was found"


def test_a_run_goes_on_without_a_compiler(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(compiling, "compile_error", lambda device: "no compiler here")
    results = pretrain(**TINY, compile="yes", run=str(tmp_path / "r"))
    assert "not compiled: no compiler here\n" in capsys.readouterr().out
    assert results.training["steps"] == 3


def test_a_run_goes_on_with_plain_views_where_they_cannot_be_compiled(
    monkeypatch, tmp_path, capsys
):
    def fails(function: Any, **_: Any) -> Any:
        def run(*_: Any) -> Any:
            raise RuntimeError("no kernel for these views. See the log")

        return run

    monkeypatch.setattr(compiling, "compile_error", lambda device: None)
    monkeypatch.setattr(compiling, "compile_encoders", lambda method: [])
    monkeypatch.setattr(torch, "compile", fails)
    results = pretrain(**TINY, compile="yes", run=str(tmp_path / "r"))
    assert "views: not compiled: no kernel for these views\n" in capsys.readouterr().out
    assert results.training["steps"] == 3


def test_auto_compiles_nothing_on_a_cpu(monkeypatch, tmp_path, capsys):
    def never(device: torch.device) -> str:
        raise AssertionError("asked for a compiler")

    monkeypatch.setattr(compiling, "compile_error", never)
    pretrain(**TINY, run=str(tmp_path / "r"))
    assert "compiled" not in capsys.readouterr().out


def test_a_compiled_run_learns_what_a_plain_one_does(eager_backend, monkeypatch, tmp_path, capsys):
    """80 images are two full batches and a short one, for which nothing is compiled."""
    monkeypatch.setattr(compiling, "timed", lambda run, device: run() is None or 1.0)
    compiled = pretrain(**TINY, compile="yes", run=str(tmp_path / "compiled"))
    said = capsys.readouterr().out
    plain = pretrain(**TINY, compile="no", run=str(tmp_path / "plain"))
    assert "views: not compiled, which would be 1.00 times as fast" in said
    assert "encoders: compiled" in said
    assert compiled.training["loss"] == pytest.approx(plain.training["loss"], rel=1e-4)
    assert eager_backend == {32}


def test_views_are_compiled_if_that_is_faster(eager_backend, monkeypatch, tmp_path, capsys):
    seconds = iter([2.0, 1.0] * 5)
    monkeypatch.setattr(compiling, "timed", lambda run, device: run() is None or next(seconds))
    quick = pretrain(**TINY, compile="yes", run=str(tmp_path / "quick"))
    assert "views: compiled, 2.00 times as fast" in capsys.readouterr().out
    plain = pretrain(**TINY, compile="no", run=str(tmp_path / "plain"))
    assert quick.training["loss"] == pytest.approx(plain.training["loss"], rel=1e-3)


@pytest.mark.parametrize("files", [False, True])
def test_views_are_compiled_once_for_each_size_not_for_each_view(files, monkeypatch, tmp_path):
    """10 views of two sizes are two programs; of the same numbers as without."""
    graphs: list[tuple[int, ...]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(tuple(next(x.shape for x in inputs if x.dtype == torch.uint8)))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(real_compile, backend=backend))
    torch._dynamo.reset()
    seconds = iter([2.0, 1.0] * 5)
    monkeypatch.setattr(compiling, "timed", lambda run, device: run() is None or next(seconds))
    words = {k: v for k, v in TINY.items() if k not in ("queue_size", "bn_splits")}
    words |= {"method": "swav", "prototypes": 4, "batch_size": 4}
    words |= {"local_crops": 8, "local_size": 4, "blur_p": 0.5}
    if files:
        for i, picture in enumerate(load("photos", "train").images[:4].permute(0, 2, 3, 1)):
            Image.fromarray(picture[i:].numpy()).save(tmp_path / f"{i}.jpg")
        words |= {"data": str(tmp_path), "limit": None}
    module = build_parts(Settings.of(words)).module
    loader = build_loader(
        module.images, module.views, module.order, resident=module.resident is not None, workers=0
    )
    batch = next(iter(loader))
    plain = module.make_views(batch, generator_for(0))
    assert "views: compiled, 2.00 times as fast" in compiling.compile_views(module)
    with torch.autocast("cpu", dtype=torch.float16):
        compiled = module.make_views(batch, generator_for(0))
    assert len(compiled) == 10
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(a, b)
    assert graphs == ([(4, 3, 8, 8), (4, 3, 4, 4)] if files else [(4, 3, 8, 8)] * 2)


def test_views_are_measured_on_the_images_of_one_device():
    module = build_parts(Settings.of({**TINY, "batch_size": 8})).module
    module.order = module.order.of_processes(4)
    assert {len(images) for images in compiling.example_images(module)} == {2}


def test_speedup_compares_medians_of_runs_in_turn():
    calls: list[str] = []
    seconds = {
        "plain": iter([3.0, 90.0, 3.0, 3.0, 3.0]),
        "compiled": iter([1.0, 1.0, 50.0, 1.0, 1.0]),
    }

    def clock(run: Callable[[], Any], device: torch.device) -> float:
        return next(seconds[run()])

    def form(name: str) -> Callable[[], str]:
        return lambda: (calls.append(name), name)[1]

    assert speedup(form("plain"), form("compiled"), torch.device("cpu"), clock) == 3.0
    assert calls == ["compiled", "plain"] + ["plain", "compiled"] * 5


def test_every_outermost_encoder_is_compiled_once_and_keeps_its_names():
    moco = MoCo(MoCo.build_backbone("resnet10", width=0.125, size=8), 32, queue_size=32)
    cmc = CMC(CMC.build_backbone("resnet10", width=0.125, size=8), 32, negatives=8)
    for method, count in ((moco, 2), (cmc, 1)):
        before = list(method.state_dict())
        encoders = compile_encoders(method)
        assert len(encoders) == count
        assert all(encoder._compiled_call_impl is not None for encoder in encoders)
        assert list(method.state_dict()) == before
        assert not any(isinstance(m, nn.Conv2d) and m._compiled_call_impl for m in method.modules())

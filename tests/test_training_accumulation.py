"""`--accumulate`: a batch in parts is the batch, where the loss of a sample is its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import unmix
from forked import program
from harness import OF_PATCHES, N, build, views_of
from unmix.cli import main
from unmix.config import Settings
from unmix.data import FileImages
from unmix.errors import UserError
from unmix.methods import IJEPA, METHODS, method_class
from unmix.methods.multiblock import MultiBlockMasks
from unmix.results import load_results
from unmix.training.loading.loaders import build_loader
from unmix.training.loop.accumulation import part_sizes
from unmix.training.loop.module import Pretraining
from unmix.training.run.parts import build_parts

TINY: dict[str, Any] = {
    "data": "digits", "limit": 44, "backbone": "timm:vit_tiny_patch16_224", "patch": 4, "heads": 1,
    "size": 8, "batch_size": 16, "epochs": 2, "device": "cpu", "precision": "32", "workers": 0,
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "moco": {"queue_size": 64, "bn_splits": 1, "symmetric": True, "shuffle_bn": False},
    "dino": {"dim": 24, "hidden": 16, "bottleneck": 8, "local_crops": 1, "local_size": 8,
             "freeze_last_epochs": 0},
    "insdis": {"negatives": 8, "contrast": "softmax"},
}  # fmt: skip


def module_of(method: str, **words: Any) -> Pretraining:
    settings = Settings.of({"method": method, **TINY, **OPTIONS.get(method, {}), **words})
    return build_parts(settings).module


def train(module: Pretraining) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=module.epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, build_loader(module.images, module.views, module.order))
    return trainer


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items() if isinstance(v, Tensor)}


@pytest.mark.parametrize("method", ["moco", "dino"])
def test_parts_of_a_batch_are_the_batch_where_a_sample_has_its_own_loss(method: str) -> None:
    """Weights, momentum encoder, queue and center, with a short last batch, after two epochs."""
    whole, parts = module_of(method), module_of(method, accumulate=4)
    start = state_of(whole)
    steps = [train(module).global_step for module in (whole, parts)]
    assert steps == [6, 6]
    one, other = state_of(whole), state_of(parts)
    moved = [name for name, value in one.items() if not torch.equal(value, start[name])]
    assert any("queue" in name or name.endswith(".c") for name in moved)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=2e-5, msg=name)
    assert parts.epoch_means()["loss"] == pytest.approx(whole.epoch_means()["loss"], rel=1e-4)
    assert whole.first_loss is not None
    assert parts.first_loss is not None
    assert parts.first_loss.item() == pytest.approx(whole.first_loss.item(), rel=1e-5)


def test_images_of_a_step_have_the_same_views_and_perturbations_in_parts() -> None:
    words = {"IM": True, "IM_type": "global", "g_prob": 1.0}
    whole, parts = module_of("moco", **words), module_of("moco", accumulate=2, **words)
    train(whole)
    train(parts)
    torch.testing.assert_close(
        parts.method.queue.keys, whole.method.queue.keys, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_method_says_truly_whether_its_loss_is_that_of_its_parts(method: str) -> None:
    """The gradient of two half-batches is that of the batch, or `across_samples` says what is not.

    Without batch norm. Negatives that are drawn are given by the same generator."""
    kind = build(method)
    for _name, module in list(kind.named_modules()):
        for child, layer in list(module.named_children()):
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                setattr(module, child, nn.Identity())
    if method == "wmse":
        kind.epsilon = 0.1
    index, views = torch.arange(N), views_of(kind)
    if method == "deepclusterv2":
        kind.assignments.copy_(torch.arange(24).repeat(2, 1) % 5)
    else:
        kind.begin_step(unmix.methods.Progress(30, 60, 3))

    def gradient(rows: slice) -> Tensor:
        kind.zero_grad()
        generator = torch.Generator().manual_seed(0)
        if kind.per_image and method != "deepclusterv2":  # the same negatives for both
            kind.targets = lambda views, q, i, g: {  # type: ignore[method-assign]
                0: torch.stack([i, *((i + n) % 24 for n in range(1, 13))], dim=1)
            }
        if method == "ijepa":  # the same masks for both
            masks = IJEPA.masks_of(kind, N, (4, 4))
            own = MultiBlockMasks(masks.context[rows], masks.targets[rows])
            kind.masks_of = lambda n, grid: own  # type: ignore[method-assign]
        elif method in OF_PATCHES:  # likewise
            keep = torch.rand(N, 16, generator=generator).argsort(dim=1)[rows, :4]
            kind.kept = lambda n, grid, device: keep  # type: ignore[method-assign]
            masked = torch.zeros(len(keep), 16, dtype=torch.bool).scatter(1, keep, True)
            kind.masked = lambda *_: masked.unflatten(1, (4, 4))  # type: ignore[method-assign]
        if method == "pirl":
            kind.begin_step(unmix.methods.Progress(30, 60, 3))
            kind.jigsaw = lambda view: kind.f(view)  # type: ignore[method-assign]
        if method == "moco":
            kind.shuffle_bn = False
        loss = unmix.objective(kind, [v[rows] for v in views], index[rows], generator).loss
        loss.backward()
        return torch.cat([p.grad.flatten() for p in kind.parameters() if p.grad is not None])

    whole = gradient(slice(0, N))
    halves = (gradient(slice(0, N // 2)) + gradient(slice(N // 2, N))) / 2
    equal = torch.allclose(whole, halves, rtol=1e-3, atol=1e-6)
    assert equal == (method_class(method).across_samples is None)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_whose_images_cannot_be_read_applies_no_gradient(parts: int, tmp_path: Path) -> None:
    """Not that of the step before, either, whose last part kept it from being reset."""
    for i in range(32):
        Image.fromarray(torch.randint(256, (8, 8, 3)).byte().numpy()).save(tmp_path / f"{i:02}.png")
    words = {"limit": None, "resident": "no", "evaluate": False, "epochs": 1, "accumulate": parts}
    module = module_of("moco", data=str(tmp_path), optimizer="sgd", momentum=0.0, **words)
    assert isinstance(module.images, FileImages)
    (_, first), (_, second) = module.order
    for i in second.tolist():
        Path(module.images.paths[i]).write_bytes(b"no longer an image")
    seen: list[dict[str, Tensor]] = []
    module.on_train_batch_start = (  # type: ignore[method-assign]
        lambda batch, batch_idx: seen.append(state_of(module))
    )
    trainer = train(module)
    assert (trainer.global_step, module.samples) == (2, len(first))
    start, after_one = seen
    moved = [name for name, value in state_of(module).items() if not value.equal(after_one[name])]
    assert any(not value.equal(start[name]) for name, value in after_one.items())
    assert moved == []


def test_sizes_of_parts_are_even_where_they_have_to_be_and_never_too_small() -> None:
    assert part_sizes(16, 4) == [4, 4, 4, 4]
    assert part_sizes(9, 4) == [3, 3, 3]
    assert part_sizes(5, 4, smallest=3) == [5]
    assert part_sizes(3, 1, smallest=2) == [3]
    assert part_sizes(10, 4, even=True) == [4, 4, 2]
    assert part_sizes(1, 4) == [1]
    for n in range(8, 60):
        for most in range(8, 20):
            sizes = part_sizes(n, most, smallest=8)
            assert sum(sizes) == n
            assert min(sizes) >= 8
            assert max(sizes) < most + 8


@pytest.mark.parametrize("method", ["simclr", "moco", "pirl"])
def test_a_run_says_what_is_of_a_part(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", "digits", "--limit", "40", "--backbone", "resnet10", "--width", "0.125",
             "--size", "8", "--batch_size", "16", "--epochs", "1", "--no-evaluate", "--device",
             "cpu", "--precision", "32", "--logger", "none", "--accumulate", "2", "--unmix",
             "--run", str(tmp_path / "run")]  # fmt: skip
    more = {"moco": ["--queue_size", "32", "--bn_splits", "2"], "pirl": ["--negatives", "8"]}
    assert main(["pretrain", "--method", method, *words, *more.get(method, [])]) == 0
    said = capsys.readouterr().out
    assert "the 16 images of a step are encoded in 2 parts of 8" in said
    negatives = "negatives, " if method == "simclr" else ""
    assert f"but for {negatives}statistics of batch norm and partners of mixtures" in said
    assert load_results(tmp_path / "run").training["steps"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"accumulate": 3}, "accumulate: `batch_size=16` has no 3 equal parts; use a multiple of"),
        ({"accumulate": 16}, "accumulate: 16 parts of `batch_size=16` are of 1 image"),
        ({"accumulate": 4, "devices": 3, "batch_size": 16}, "parts on 3 devices; use a multiple"),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"method": "wmse", "accumulate": 4, "batch_size": 128}, "With `accumulate=4` each of its"),
    ],
)
def test_parts_that_cannot_be_are_refused(words: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        build_parts(Settings.of({"method": "moco", **TINY, "limit": None, **words}))
    assert message in str(error.value)


def test_a_run_that_was_stopped_between_its_parts_steps_ends_with_the_same_bits(
    tmp_path: Path,
) -> None:
    words = {**TINY, "method": "byol", "backbone": "resnet10", "patch": None, "heads": None,
             "width": 0.125, "accumulate": 2, "logger": "none", "evaluate": False, "dim": 8,
             "hidden": 8, "threads": 1}  # fmt: skip
    words = {name: value for name, value in words.items() if value is not None}
    unmix.pretrain(**words, run=str(tmp_path / "a"))
    batch_end = Pretraining.on_after_backward
    seen: list[int] = []

    def kill(self: Pretraining) -> None:
        batch_end(self)
        seen.append(self.global_step)
        if len(seen) == 7:  # after the first part of the fourth step
            raise KeyboardInterrupt

    patch = pytest.MonkeyPatch()
    patch.setattr(Pretraining, "on_after_backward", kill)
    with pytest.raises(KeyboardInterrupt):
        unmix.pretrain(**words, run=str(tmp_path / "b"), checkpoint_steps=1)
    patch.undo()
    unmix.pretrain(run=str(tmp_path / "b"))
    first, second = (
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in "ab"
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_in_parts_are_two_processes(tmp_path: Path) -> None:
    """Gradients are exchanged once a step, and are those of all parts."""
    found = []
    for parts in (1, 2):
        run = tmp_path / str(parts)
        words = ["--method", "moco", "--data", "digits", "--limit", "32", "--size", "8",
                 "--backbone", "timm:vit_tiny_patch16_224", "--patch", "4", "--heads", "1",
                 "--batch_size", "16", "--epochs", "1", "--no-evaluate", "--device", "cpu",
                 "--precision", "32", "--logger", "none", "--queue_size", "64", "--bn_splits", "1",
                 "--no-shuffle_bn", "--accumulate", str(parts), "--devices", "2",
                 "--clip_grad", "0.1",
                 "--run", str(run)]  # fmt: skip
        said = tmp_path / f"said {parts}"
        assert program(["pretrain", *words], said, devices=2).wait() == 0, said.read_text()
        saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        found.append(saved["state_dict"])
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=2e-5, msg=name)


def test_a_stepper_keeps_what_one_batch_would_and_warns_of_the_rest() -> None:
    """The queue after two half-batches is the queue after the batch, and so are the gradients."""
    words: dict[str, Any] = {"steps_per_epoch": 3, "epochs": 2}
    options = {"bn_splits": 1, "shuffle_bn": False}
    steps = [
        unmix.Stepper(build("moco", **options).eval().train(), **words, accumulate=parts)
        for parts in (1, 2)
    ]
    views, index = views_of(steps[0].method), torch.arange(N)
    for step, size in zip(steps, (N, N // 2), strict=True):
        step.method.f_q.backbone.bn = step.method.f_k.backbone.bn = nn.Identity()
        for rows in torch.arange(N).split(size):
            loss = step([view[rows] for view in views], index[rows])
            (loss / step.accumulate).backward()
    one, two = steps
    torch.testing.assert_close(two.method.queue.keys, one.method.queue.keys)
    for a, b in zip(one.method.f_q.parameters(), two.method.f_q.parameters(), strict=True):
        if a.grad is not None and b.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6)
    with pytest.warns(UserWarning, match="the loss of simclr depends on negatives"):
        unmix.Stepper(build("simclr"), **words, accumulate=2)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("moco", {"bn_splits": 1}),
        ("densecl", {"bn_splits": 1, "backbone": "resnet10", "patch": None, "heads": None}),
        ("nnclr", {}),
        ("nnbyol", {}),
        ("ressl", {}),
        ("all4one", {"transformer_heads": 2}),
    ],
)
def test_a_queue_holds_the_keys_of_all_parts(method: str, words: dict[str, Any]) -> None:
    """It was compared with a part: accepted with --accumulate 4, and most keys never got in."""
    given = {**TINY, **words, "method": method, "dim": 8, "queue_size": 16, "limit": None}
    given = {name: value for name, value in given.items() if value is not None}
    for parts in (1, 4):
        with pytest.raises(UserError) as error:
            build_parts(Settings.of({**given, "batch_size": 64, "accumulate": parts}))
        assert str(error.value) == (
            "queue_size: 16 keys are fewer than `batch_size=64`; use a queue of at least 64."
        )


def test_a_steppers_queue_holds_the_keys_of_all_its_batches() -> None:
    method = build("moco", queue_size=4 * N - 1)
    step = unmix.Stepper(method, steps_per_epoch=1, epochs=1, accumulate=4)
    with pytest.raises(UserError, match=f"queue_size: {4 * N - 1} keys are fewer than"):
        step(views_of(method), torch.arange(N))

"""What one training step does, in which order, and with which numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from PIL import Image
from torch import Tensor

from unmix import step as step_file
from unmix import step_mixture as mixture_file
from unmix.config import IM_TYPES, Settings
from unmix.errors import UserError
from unmix.methods import MoCo, Progress
from unmix.mixtures import PairDraw, UnMix
from unmix.randomness import generator_for
from unmix.step import Objective, objective
from unmix.training.loading.loaders import Batch, build_loader
from unmix.training.loop import module as module_file
from unmix.training.loop.module import Pretraining
from unmix.training.run.parts import build_parts

TINY: dict[str, Any] = {
    "data": "digits",
    "limit": 50,
    "backbone": "resnet10",
    "width": 0.25,
    "size": 8,
    "batch_size": 16,
    "epochs": 2,
    "device": "cpu",
    "precision": "32",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "swav": {"prototypes": 8, "hidden": 16, "freeze_prototypes_steps": 0},
    "moco": {"queue_size": 64, "bn_splits": 1},
    "insdis": {"negatives": 16},
    "vicreg": {"dim": 16, "hidden": 16},
    "cmc": {"negatives": 16},
}
STEPS = 4
"""A short last batch of 2 among them."""
UNTOUCHED: dict[str, Any] = {
    "crop_scale_min": 1.0,
    "crop_ratio": (1.0, 1.0),
    "flip_p": 0.0,
    "jitter_p": 0.0,
    "gray_p": 0.0,
}
"""Views that are the images themselves."""


def module_of(method: str = "moco", **words: Any) -> Pretraining:
    words = {**TINY, **OPTIONS[method], **words}
    return build_parts(Settings.of({"method": method, **words})).module


def train(module: Pretraining) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=module.epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, build_loader(module.images, module.views, module.order))
    return trainer


def spy_on_objective(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[Any, ...], Objective]]:
    """The list that each step's arguments and result will be put into."""
    calls: list[tuple[tuple[Any, ...], Objective]] = []

    def spy(*arguments: Any, **options: Any) -> Objective:
        calls.append((arguments, objective(*arguments, **options)))
        return calls[-1][1]

    monkeypatch.setattr(module_file, "objective", spy)
    return calls


@pytest.mark.parametrize("im_type", [kind for kind in IM_TYPES if kind != "DACL"])
def test_an_image_space_mixture_is_the_same_for_both_views(im_type: str) -> None:
    """Partner, weight and box: two views that are equal are still equal when they are mixed."""
    always: dict[str, Any] = {
        "g_prob": 1.0,
        "r_prob": 1.0,
        "cutout_p": 1.0,
        "random_erasing_prob": 1.0,
    }
    batch = Batch(torch.arange(16))
    clean, equal = module_of(**UNTOUCHED).make_views(batch, generator_for(0))
    assert torch.equal(clean, equal)
    module = module_of(**UNTOUCHED, **always, IM=True, IM_type=im_type, mask_size=4)
    first, second = module.make_views(batch, generator_for(0))
    assert torch.equal(first, second)
    changed = (first != clean).flatten(1).any(dim=1)
    assert changed.float().mean() > 0.5


def test_the_noise_of_dacl_differs_between_views() -> None:
    """Verma et al. 2020, Sec. 3: each of the two positives is mixed with an image of its own."""
    module = module_of(**UNTOUCHED, IM=True, IM_type="DACL")
    first, second = module.make_views(Batch(torch.arange(16)), generator_for(0))
    assert not torch.equal(first, second)


class Doubling:
    """An image-space operator whose draw notes the sizes that it is used at."""

    def __init__(self, size: tuple[int, int] | None = None, notes: list[Any] | None = None) -> None:
        self.size, self.notes = size, [] if notes is None else notes

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Doubling:
        return Doubling((shape[2], shape[3]), self.notes)

    def resized(self, height: int, width: int) -> Doubling:
        assert self.size != (height, width)
        return Doubling((height, width), self.notes)

    def apply(self, images: Tensor) -> Tensor:
        self.notes.append((self.size, tuple(images.shape[2:])))
        return 2 * images


def test_an_image_space_draw_is_resized_for_local_crops_alone() -> None:
    module = module_of("swav", local_crops=2, local_size=4)
    batch = Batch(torch.arange(16))
    clean = module.make_views(batch, generator_for(0))
    module.image_space = operator = Doubling()
    mixed = module.make_views(batch, generator_for(0))
    assert [tuple(view.shape) for view in mixed] == [(16, 3, s, s) for s in (8, 8, 4, 4)]
    assert all(torch.equal(2 * a, b) for a, b in zip(clean, mixed, strict=True))
    assert operator.notes == [((s, s), (s, s)) for s in (8, 8, 4, 4)]


@pytest.mark.parametrize("where", ["device", "host", "files"])
def test_local_crops_are_made_wherever_the_images_are(where: str, tmp_path: Path) -> None:
    """Held, gathered by the host, or decoded by a worker: the same views in size and number."""
    words: dict[str, Any] = {"resident": "no" if where == "host" else "auto"}
    if where == "files":
        pixels = torch.randint(0, 256, (6, 20, 24, 3), dtype=torch.uint8).numpy()
        for i, picture in enumerate(pixels):
            Image.fromarray(picture[: 20 - i]).save(tmp_path / f"{i}.jpg")
        words = {"data": str(tmp_path), "limit": None, "evaluate": False}
    words |= {"local_crops": 3, "second_blur_p": 1.0, "second_solarize_p": 1.0}
    module = module_of("swav", batch_size=4, size=16, **words)
    loader = build_loader(
        module.images, module.views, module.order, resident=module.resident is not None, workers=0
    )
    batch = next(iter(loader))
    assert [batch.crops is not None, batch.images is not None] == [
        where == "files", where == "host",
    ]  # fmt: skip
    views = module.make_views(batch, generator_for(0))
    assert [tuple(view.shape) for view in views] == [(4, 3, s, s) for s in (16, 16, 8, 8, 8)]
    assert all(bool(view.isfinite().all()) for view in views)
    again = module.make_views(batch, generator_for(0))
    assert all(torch.equal(a, b) for a, b in zip(views, again, strict=True))


def test_a_label_space_mixture_leaves_the_views_clean_and_is_known_to_the_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The views are those of a run without it, bit for bit; each step draws its mixture."""
    calls = spy_on_objective(monkeypatch)
    draws: list[Any] = []
    draw_pairs = UnMix.draw

    def spy(*arguments: Any, **options: Any) -> Any:
        draws.append(draw_pairs(*arguments, **options))
        return draws[-1]

    monkeypatch.setattr(UnMix, "draw", spy)
    train(module_of(epochs=1))
    train(module_of(epochs=1, unmix=True))
    assert len(calls) == 2 * STEPS
    for (plain, _), (mixed, result), draw in zip(
        calls[:STEPS], calls[STEPS:], draws[-STEPS:], strict=True
    ):
        assert all(torch.equal(a, b) for a, b in zip(plain[1], mixed[1], strict=True))
        assert torch.equal(plain[2], mixed[2])
        assert plain[4] is None
        assert isinstance(draw, PairDraw)
        assert torch.equal(draw.partner, torch.arange(len(mixed[2])).flip(0))
        assert result.mixed is not None
    weights = {float(draw.weight[0]) for draw in draws[-STEPS:]}
    assert len(weights) == STEPS


def test_both_mixtures_at_once_perturb_the_views_and_share_the_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = spy_on_objective(monkeypatch)
    train(module_of(epochs=1))
    train(module_of(epochs=1, unmix=True, IM=True, g_prob=1.0))
    views, mixed = calls[0][0][1], calls[STEPS][0][1]
    assert not torch.equal(views[0], mixed[0])
    assert calls[STEPS][1].mixed is not None


def test_the_queue_is_filled_once_a_step_and_after_the_backward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step, keep = Pretraining.training_step, MoCo.update_memory
    events: list[str] = []

    def note_step(self: Pretraining, batch: Batch, batch_idx: int) -> Tensor | None:
        for parameter in self.method.parameters():
            parameter.grad = None
        events.append("step")
        return step(self, batch, batch_idx)

    def note_keep(self: MoCo, *arguments: Any) -> None:
        there = [p.grad is not None for p in self.f_q.parameters()]
        events.append("keep" if all(there) else "keep without gradients")
        keep(self, *arguments)

    monkeypatch.setattr(Pretraining, "training_step", note_step)
    monkeypatch.setattr(MoCo, "update_memory", note_keep)
    module = module_of(unmix=True, epochs=1)
    train(module)
    assert events == ["step", "keep"] * STEPS
    assert isinstance(module.method, MoCo)
    assert module.method.queue.seen == 50


def test_gradients_and_steps_are_the_query_encoders_alone() -> None:
    """With a momentum of 1 nothing moves the key encoder's weights."""
    module = module_of(encoder_momentum=1.0, lr=0.5)
    method = module.method
    assert isinstance(method, MoCo)
    start = [p.detach().clone() for p in method.f_k.parameters()]
    trainer = train(module)
    stepped = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert stepped == {id(p) for p in method.f_q.parameters()}
    for before, key, query in zip(
        start, method.f_k.parameters(), method.f_q.parameters(), strict=True
    ):
        assert key.grad is None
        assert torch.equal(before, key)
        assert query.grad is not None
    moved = [not torch.equal(a, b) for a, b in zip(start, method.f_q.parameters(), strict=True)]
    assert all(moved)


@pytest.mark.parametrize("method", OPTIONS)
def test_every_weight_of_a_trained_encoder_gets_a_gradient(method: str) -> None:
    module = module_of(method, epochs=1)
    train(module)
    trained = [p for p in module.method.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained)
    assert any(bool(p.grad.ne(0).any()) for p in trained if p.grad is not None)


def test_the_rate_of_each_step_is_that_of_a_cosine_over_all_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates: list[float] = []
    step = Pretraining.training_step

    def note(self: Pretraining, batch: Batch, batch_idx: int) -> Tensor | None:
        rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Pretraining, "training_step", note)
    train(module_of(lr=0.4))
    angles = torch.pi * torch.arange(2 * STEPS) / (2 * STEPS)
    torch.testing.assert_close(torch.tensor(rates), 0.2 * (1 + angles.cos()))


def test_the_method_is_told_how_far_the_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Progress] = []
    monkeypatch.setattr(MoCo, "begin_step", lambda self, progress: told.append(progress))
    train(module_of())
    whole = 2 * STEPS
    assert told == [Progress(i, whole, STEPS, 0, run_steps=whole) for i in range(whole)]


def test_an_epochs_loss_is_the_mean_over_its_samples_not_over_its_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last batch has 2 images, the others 16."""
    calls = spy_on_objective(monkeypatch)
    module = module_of(epochs=1, unmix=True)
    train(module)
    sizes = [len(arguments[2]) for arguments, _ in calls]
    assert sizes == [16, 16, 16, 2]
    losses = [result.loss.item() for _, result in calls]
    expected = sum(n * loss for n, loss in zip(sizes, losses, strict=True)) / 50
    means = module.epoch_means()
    assert means["loss"] == pytest.approx(expected, rel=1e-5)
    assert means["loss"] == pytest.approx(means["loss_clean"] + means["loss_mixed"], rel=1e-5)
    assert module.samples == 50


def test_a_batch_that_has_lost_all_images_but_one_is_passed_over() -> None:
    """Batch norm and a mixture need two; broken files can leave fewer."""
    module = module_of()
    assert isinstance(module.method, MoCo)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for left in (0, 1):
        assert module.training_step(Batch(torch.arange(left)), 0) is None
    module.on_after_backward()
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert module.samples == 0


def test_of_several_processes_each_makes_up_for_its_broken_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 50 images in batches of 18 for two each gets 9, 9 and 7."""
    monkeypatch.setattr(module_file, "world_size", lambda: 2)
    module = module_of(batch_size=18)
    for number, left, wanted in ((0, 9, 9), (0, 7, 9), (0, 3, 9), (2, 7, 7), (2, 5, 7)):
        filled = module._filled(Batch(torch.arange(left)), number)
        assert filled.index.tolist() == [i % left for i in range(wanted)]


@pytest.mark.parametrize(("method", "alike"), [("vicreg", True), ("moco", False)])
def test_of_several_processes_a_loss_of_the_whole_batch_has_one_weight(
    monkeypatch: pytest.MonkeyPatch, method: str, alike: bool
) -> None:
    """Barlow Twins, VICReg: each loss is over all mixtures, so its share must be theirs."""
    module = module_of(method, unmix=True)
    monkeypatch.setattr(type(module), "global_step", 5)
    for file in (step_file, mixture_file):
        monkeypatch.setattr(file, "world_size", lambda: 2)
    views = [torch.randn(8, 3, 8, 8) for _ in range(2)]
    weights = []
    for process in (0, 1):
        monkeypatch.setattr(step_file, "rank", lambda process=process: process)
        _, [mixture] = step_file.with_mixtures(
            module.method, views, module.mixing, seed=module.seed, step=module.global_step
        )
        weights.append(mixture.draw(views[0], module.generator()).weight)
    assert torch.equal(*weights) == alike


def test_a_loss_that_is_no_number_ends_the_run_with_what_to_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compare = MoCo.compare
    monkeypatch.setattr(MoCo, "compare", lambda *arguments: compare(*arguments) * float("nan"))
    with pytest.raises(UserError, match=r"nan.*step 1\b.*--lr"):
        train(module_of())

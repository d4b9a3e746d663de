"""A plain loop with a Stepper is the whole method, and nothing of it can be forgotten."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing import start_processes
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import unmix
from harness import N_DATA, OF_PATCHES, N, build, views_of
from unmix.errors import UserError
from unmix.methods import METHODS, Method, Progress
from unmix.step import Mixture, draw_mixture, objective, step_generator

STEPS = N_DATA // N


def index_of(number: int) -> Tensor:
    return torch.arange(number * N, (number + 1) * N) % N_DATA


def stepper_of(name: str, **options: Any) -> unmix.Stepper:
    words = {"steps_per_epoch": STEPS, "epochs": 3, **options}
    return unmix.Stepper(build(name), **words)


def optimizer_of(step: unmix.Stepper) -> torch.optim.Optimizer:
    trained = [p for p in step.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, 0.05, momentum=0.9, weight_decay=1e-2)


def loop(step: Any, optimizer: torch.optim.Optimizer, numbers: range) -> list[float]:
    losses = []
    for number in numbers:
        method = getattr(step, "module", step).method
        loss = step(views_of(method, number), index_of(number))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def state_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items() if isinstance(v, Tensor)}


def by_hand(method: Method, numbers: range, operator: Any = None) -> None:
    """The parts in their order, as docs/architecture.md has them."""
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.05, momentum=0.9, weight_decay=1e-2)
    for number in numbers:
        method.begin_step(Progress(number, 3 * STEPS, STEPS, 0))
        generator, views = step_generator(0, number), views_of(method, number)
        mixture = None
        if operator is not None:
            mixture = draw_mixture(
                method, views, [], operator, unmix.rule("unmix"), seed=0, step=number
            )
        found = objective(method, views, index_of(number), generator, mixture)
        optimizer.zero_grad()
        found.loss.backward()
        found.update_memory()
        optimizer.step()


@pytest.mark.parametrize("name", METHODS)
def test_a_loop_is_all_parts_of_the_method_in_their_order(name: str) -> None:
    operator = unmix.UnMix()
    step, method = stepper_of(name, mixture=operator), build(name)
    assert step.operator is not None
    assert (step.operator == operator) != (name in OF_PATCHES)  # whose boxes are of whole patches
    loop(step, optimizer_of(step), range(5))
    by_hand(method, range(5), step.operator)
    ours, theirs = state_of(step.method), state_of(method)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


MOVED = {
    "all4one": ["f_k.conv.weight", "Q.keys"],
    "byol": ["f_k.conv.weight", "g_k.0.weight"],
    "cmc": ["memory_l.bank.rows", "memory_ab.bank.rows"],
    "deepclusterv2": ["memory", "assignments"],
    "densecl": ["f_k.backbone.conv.weight", "queue.keys", "dense_queue.keys"],
    "dino": ["f_t.backbone.conv.weight", "c"],
    "distill": ["Q.keys"],
    "ibot": ["f_t.backbone.vit.pos_embed", "c", "c_patch"],
    "insdis": ["contrast.bank.rows"],
    "moco": ["f_k.backbone.conv.weight", "queue.keys"],
    "mocov3": ["f_k.conv.weight"],
    "nnbyol": ["f_k.conv.weight", "Q.keys"],
    "nnclr": ["Q.keys"],
    "pirl": ["contrast.bank.rows"],
    "ressl": ["f_k.conv.weight", "Q.keys"],
    "simdino": ["f_t.backbone.conv.weight"],
    "swav": ["queue"],
    "tico": ["f_k.conv.weight", "C"],
}


@pytest.mark.parametrize("name", MOVED)
def test_after_three_steps_the_momentum_encoder_and_the_memory_have_moved(name: str) -> None:
    step = stepper_of(name)
    before = state_of(step.method)
    # The first clusters are found in the fourth step, at the start of the second epoch.
    loop(step, optimizer_of(step), range(4 if name == "deepclusterv2" else 3))
    after = state_of(step.method)
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    for part in MOVED[name]:
        assert any(key.startswith(part) for key in moved), (part, moved)


@pytest.mark.parametrize("name", METHODS)
def test_a_loop_that_was_stopped_goes_on_to_the_bit(name: str, tmp_path: Path) -> None:
    whole = stepper_of(name, mixture=unmix.UnMix(), seed=3)
    expected = loop(whole, optimizer_of(whole), range(5))
    first = stepper_of(name, mixture=unmix.UnMix(), seed=3)
    optimizer = optimizer_of(first)
    losses = loop(first, optimizer, range(3))
    state = {"step": first.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, tmp_path / "loop.pt")
    state = torch.load(tmp_path / "loop.pt", weights_only=True)
    second = stepper_of(name, mixture=unmix.UnMix(), seed=3)
    optimizer = optimizer_of(second)
    second.load_state_dict(state["step"])
    optimizer.load_state_dict(state["optimizer"])
    losses += loop(second, optimizer, range(3, 5))
    assert losses == expected
    ours, theirs = state_of(second), state_of(whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_what_is_kept_is_kept_before_the_optimizer_moves() -> None:
    """DINO freezes its last layer in the first epoch by dropping the gradient there."""
    step = unmix.Stepper(build("dino", freeze_last_epochs=1), steps_per_epoch=2, epochs=2)
    last = step.method.f.head.last.weight
    before = last.detach().clone()
    optimizer = optimizer_of(step)
    loop(step, optimizer, range(2))
    assert torch.equal(last, before)
    loop(step, optimizer, range(2, 3))
    assert not torch.equal(last, before)


def test_a_loss_that_had_no_backward_pass_is_named_at_the_next_call() -> None:
    step = stepper_of("moco")
    optimizer = optimizer_of(step)
    loop(step, optimizer, range(1))
    step(views_of(step.method), index_of(0))
    with pytest.raises(unmix.UserError, match=r"step 2: loss.backward\(\) was not called"):
        step(views_of(step.method), index_of(1))
    with pytest.raises(unmix.UserError, match=r"step 2: loss.backward\(\) was not called"):
        step.state_dict()


def test_a_batch_that_is_skipped_is_not_kept_and_its_step_is_done_again() -> None:
    step, other = stepper_of("moco"), stepper_of("moco")
    step(views_of(step.method, 9), index_of(0))
    step.skip()
    loop(step, optimizer_of(step), range(2))
    loop(other, optimizer_of(other), range(2))
    assert step.steps == other.steps == 2
    assert torch.equal(step.method.queue.keys, other.method.queue.keys)


@pytest.mark.parametrize("name", ["moco", "byol", "dino", "ijepa", "swav"])
def test_a_state_saved_after_a_skipped_batch_goes_on_to_the_bit(name: str) -> None:
    """The momentum encoder has moved for the step that is done again: it does not move twice."""
    first, second = stepper_of(name), stepper_of(name)
    optimizer, other = optimizer_of(first), optimizer_of(second)
    loop(first, optimizer, range(2))
    first(views_of(first.method, 9), index_of(0))
    first.skip()
    for _ in range(2):  # also where it is saved again before the next call
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        state = copy.deepcopy(second.state_dict())
    second.load_state_dict(state)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert loop(second, other, range(2, 5)) == loop(first, optimizer, range(2, 5))
    ours, theirs = state_of(second), state_of(first)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_part_of_the_loss_will_do_and_a_second_backward_pass_keeps_nothing() -> None:
    step = stepper_of("dino")
    loss = step(views_of(step.method), index_of(0))
    (loss / 2 + step.method.f.backbone.conv.weight.sum()).backward(retain_graph=True)
    center = step.method.c.clone()
    assert not torch.equal(center, torch.zeros_like(center))
    loss.backward()
    assert step.steps == 1
    assert torch.equal(step.method.c, center)


def test_gradients_by_autograd_grad_are_a_backward_pass_too() -> None:
    step = stepper_of("moco")
    loss = step(views_of(step.method), index_of(0))
    torch.autograd.grad(loss, step.method.f_q.head.weight)
    assert int(step.method.queue.seen) == 2 * N  # symmetric: the keys of both views


def test_accumulated_batches_are_one_step_of_the_schedules(monkeypatch: Any) -> None:
    begun: list[int] = []
    begin = type(build("moco")).begin_step
    monkeypatch.setattr(
        unmix.MoCo, "begin_step", lambda self, p: (begun.append(p.step), begin(self, p))
    )
    step = stepper_of("moco", accumulate=2, mixture=unmix.UnMix())
    draws = []
    for number in range(4):
        step(views_of(step.method, number), index_of(number)).backward()
        draws.append(step.generator("views").initial_seed())
        if number == 0:
            with pytest.raises(unmix.UserError, match="accumulate: 1 of 2 batches of step 1"):
                step.state_dict()
    assert begun == [0, 1]
    assert step.steps == 2
    assert int(step.method.queue.seen) == 8 * N
    assert len(set(draws)) == 4


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_loops_numbers_are_never_those_of_the_step(accumulate: int, monkeypatch: Any) -> None:
    """From a step's second batch on, both were one stream."""
    words: dict[str, Any] = {"steps_per_epoch": 4, "epochs": 2, "accumulate": accumulate}
    step, own = unmix.Stepper(build("moco"), **words), []

    def noted(method: Method, views: Any, index: Tensor, generator: Any, mixtures: Any) -> Any:
        own.append(generator.initial_seed())
        return objective(method, views, index, generator, mixtures)

    monkeypatch.setattr("unmix.stepper.objective", noted)
    theirs = []
    for number in range(6):
        theirs += [step.generator().initial_seed(), step.generator("views").initial_seed()]
        step(views_of(step.method, number), index_of(number)).backward()
    assert len({*own, *theirs}) == 18
    assert theirs[0] == step_generator(0, 0, 0).initial_seed()  # as it was


def test_gradients_that_are_off_and_evaluation_mode_are_refused() -> None:
    step = stepper_of("moco")
    before = state_of(step)
    with torch.no_grad(), pytest.raises(unmix.UserError, match="gradients are off"):
        step(views_of(step.method), index_of(0))
    step.eval()
    with pytest.raises(unmix.UserError, match=r"evaluation mode; call step.train\(\)"):
        step(views_of(step.method), index_of(0))
    after = state_of(step)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_frozen_methods_and_runs_that_are_over_are_refused() -> None:
    step = stepper_of("simclr", epochs=None, total_steps=2)
    loop(step, optimizer_of(step), range(2))
    with pytest.raises(unmix.UserError, match="all 2 steps of the run are done"):
        step(views_of(step.method), index_of(0))
    frozen = stepper_of("simclr").requires_grad_(False)
    with pytest.raises(unmix.UserError, match="takes a gradient"):
        frozen(views_of(frozen.method), index_of(0))


@pytest.mark.parametrize("name", ["insdis", "cmc", "pirl", "deepclusterv2"])
def test_methods_that_remember_images_need_their_numbers(name: str) -> None:
    step = stepper_of(name)
    views = views_of(step.method)
    with pytest.raises(unmix.UserError, match=rf"index: {name} remembers every image"):
        step(views)
    with pytest.raises(unmix.UserError, match=r"index: 24 is out of range.*0 to 23"):
        step(views, torch.arange(N) + 17)
    with pytest.raises(unmix.UserError, match=r"int64 \(8,\)"):
        step(views, torch.arange(N + 1))
    with pytest.raises(unmix.UserError, match=r"int64 \(8,\)"):
        step(views, torch.rand(N))


def test_other_methods_need_none() -> None:
    step, other = stepper_of("byol"), stepper_of("byol")
    assert step(views_of(step.method)).equal(other(views_of(other.method), index_of(0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[:1], "views: 1 were given; moco needs 2"),
        (lambda v: [*v, v[0]], "views: 3 were given; moco needs 2"),
        (lambda v: torch.stack(v), "needs a list of 2 tensors"),
        (lambda v: [(x * 50).to(torch.uint8) for x in v], "torch.uint8.*normalized"),
        (lambda v: [v[0], v[1][:4]], "of 8 and 4 images"),
        (lambda v: [x[:1] for x in v], "a batch of 1 is too small for moco.*drop_last=True"),
    ],
)
def test_views_that_do_not_fit_are_refused_by_name(change: Any, message: str) -> None:
    step = stepper_of("moco")
    with pytest.raises(unmix.UserError, match=message):
        step(change(views_of(step.method)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"epochs": 2, "total_steps": 4}, "give one of them"),
        ({"epochs": None}, "give one of them"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"mixture": unmix.UnMix}, "mixture: UnMix is no label-space mixture"),
        ({"mixture": unmix.ImageMixture()}, "ImageMixture is no label-space mixture"),
        ({"rule": "imixx"}, "Did you mean 'imix'"),
        ({"rule": "mixbt"}, 'rule: mixbt does not apply to `method="moco"`'),
        ({"joint": True}, "joint: is for a mixture"),
    ],
)
def test_words_that_do_not_go_together_are_refused(words: Any, message: str) -> None:
    with pytest.raises(unmix.UserError, match=message):
        stepper_of("moco", **words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"steps_per_epoch": 4.5}, "steps_per_epoch: must be a whole number, got 4.5"),
        ({"epochs": 1.5}, "epochs: must be a whole number, got 1.5"),
        ({"accumulate": 2.0}, "accumulate: must be a whole number, got 2.0"),
        ({"seed": "a"}, "seed: must be a whole number, got 'a'"),
        ({"image_space": unmix.ImageMixture}, "image_space: .* is no perturbation; give one"),
    ],
)
def test_numbers_are_whole_and_a_perturbation_is_an_operator(words: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        unmix.Stepper(build("simclr"), **{"steps_per_epoch": 4, "epochs": 1, **words})


def test_a_loss_of_the_batch_takes_no_weight_a_sample() -> None:
    with pytest.raises(unmix.UserError, match='per: sample does not apply to `method="barlow"`'):
        stepper_of("barlow", mixture=unmix.UnMix(per="sample"))


@pytest.mark.parametrize("name", [name for name in METHODS if build(name).multi_crop])
@pytest.mark.parametrize("rule", ["imix", "replace"])
def test_small_crops_that_would_be_in_no_loss_are_refused(name: str, rule: str) -> None:
    step = stepper_of(name, rule=rule)
    views = views_of(step.method)
    with pytest.raises(
        UserError, match=r"^rule: .*so 2 small crops would be in no loss; use esvit"
    ):
        step(views, index_of(0))
    assert step(views[:2], index_of(0)).isfinite()


@pytest.mark.parametrize("rule", ["unmix", "image_space", "esvit"])
def test_small_crops_take_part_under_every_other_rule(rule: str) -> None:
    """A small crop of other pixels gives another loss."""
    losses = []
    for number in (0, 1):
        step = stepper_of("dino", rule=rule)
        views = views_of(step.method)
        views[3] = views_of(step.method, number)[3]
        losses.append(step(views, index_of(0)).item())
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("name", "options", "rule"),
    [("lejepa", {"sigreg": 1.0}, "unmix"), ("pirl", {"jigsaw_weight": 1.0}, "imix"),
     ("pirl", {"jigsaw_weight": 1.0}, "image_space")],
)  # fmt: skip
def test_a_mixture_that_would_train_nothing_is_refused(
    name: str, options: dict[str, float], rule: str
) -> None:
    with pytest.raises(UserError, match="has the weight 0"):
        unmix.Stepper(build(name, **options), steps_per_epoch=3, epochs=1, rule=rule)


@pytest.mark.parametrize("mixture", [unmix.SaliencyMix(), unmix.AttentiveMix()])
def test_a_place_in_each_processs_images_is_no_weight_of_a_loss_of_all(
    mixture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper_of("barlow", mixture=mixture)
    monkeypatch.setattr("unmix.together.world_size", lambda: 2)
    stepper_of("byol", mixture=mixture)
    with pytest.raises(
        UserError, match=r"^mixture: .* chooses a place in each device's own images"
    ):
        stepper_of("barlow", mixture=mixture)


def test_comparisons_without_a_weight_are_nothing_of_the_mixtures_loss() -> None:
    method = build("lejepa", sigreg=1.0)
    mixture = Mixture(unmix.UnMix())
    found = objective(method, views_of(method), index_of(0), step_generator(0, 0), mixture)
    assert found.mixed == 0
    assert found.loss.isfinite()


def test_a_rule_alone_brings_the_mixture_that_it_was_published_with() -> None:
    step = stepper_of("simclr", rule="imix")
    [(operator, _)] = step.mixing
    assert operator.pairing == "permutation"  # type: ignore[attr-defined]
    step(views_of(step.method)).backward()
    assert step.mixed is not None
    assert step.clean is None


def test_image_space_perturbs_all_views_and_the_loss_does_not_know() -> None:
    mixture = unmix.ImageMixture(g_prob=1.0)
    step, method = stepper_of("simsiam", image_space=mixture), build("simsiam")
    loss = step(views_of(method))
    generator = step_generator(0, 0)
    draw = mixture.draw((N, 3, 16, 16), generator)
    views = [draw.apply(view) for view in views_of(method)]
    expected = objective(method, views, index_of(0), generator).loss
    assert torch.equal(loss, expected)
    assert step.mixed is None


def test_a_state_of_another_run_is_refused() -> None:
    step, other = stepper_of("byol"), stepper_of("byol", epochs=4)
    with pytest.raises(unmix.UserError, match="total_steps: the state is of a run with 9"):
        other.load_state_dict(step.state_dict())


def test_the_generator_for_views_depends_on_the_step_alone() -> None:
    step = stepper_of("simclr")
    first = torch.rand(3, generator=step.generator("views"))
    assert torch.equal(first, torch.rand(3, generator=step.generator("views")))
    loop(step, optimizer_of(step), range(1))
    assert not torch.equal(first, torch.rand(3, generator=step.generator("views")))


class Module(L.LightningModule):
    """What a user writes."""

    def __init__(self, step: unmix.Stepper) -> None:
        super().__init__()
        self.step = step

    def training_step(self, batch: Any, number: int) -> Tensor:
        return self.step(batch[:-1], batch[-1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return optimizer_of(self.step)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_in_a_lightning_module(tmp_path: Path, precision: Any) -> None:
    step = stepper_of("moco", mixture=unmix.UnMix())
    batches = [(*views_of(step.method, n), index_of(n)) for n in range(3)]
    key = step.method.f_k.backbone.conv.weight.detach().clone()
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, precision=precision,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Module(step), DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    assert step.steps == 3
    assert int(step.method.queue.seen) == 6 * N
    assert not torch.equal(key, step.method.f_k.backbone.conv.weight)
    if precision == "32-true":
        other = stepper_of("moco", mixture=unmix.UnMix())
        loop(other, optimizer_of(other), range(3))
        assert torch.equal(other.method.queue.keys, step.method.queue.keys)


def of_two_processes(rank: int, rendezvous: str, out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=2)
    for name in ("moco", "dino"):
        method = build(name, **({"freeze_last_epochs": 1} if name == "dino" else {}))
        step = unmix.Stepper(method, steps_per_epoch=2, epochs=2, mixture=unmix.UnMix())
        ddp = DistributedDataParallel(step)
        start, optimizer = copy.deepcopy(step.method.state_dict()), optimizer_of(step)
        half = slice(rank * (N // 2), (rank + 1) * (N // 2))
        for number in range(2):
            views = [view[half] for view in views_of(method, number)]
            optimizer.zero_grad()
            ddp(views, index_of(number)[half]).backward()
            optimizer.step()
        torch.save({"start": start, "end": step.method.state_dict()}, out / f"{name}-{rank}.pt")
    dist.destroy_process_group()


def test_on_two_devices_it_is_wrapped_as_any_module(tmp_path: Path) -> None:
    """What is kept is kept after the gradients are averaged: DINO's last layer stays frozen."""
    start_processes(of_two_processes, (str(tmp_path / "meet"), tmp_path), 2, start_method="fork")
    for name in ("moco", "dino"):
        found = [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1)]
        trained = [k for k, _ in build(name).named_parameters()]
        assert all(torch.equal(found[0]["end"][key], found[1]["end"][key]) for key in trained)
        if name == "moco":
            assert int(found[0]["end"]["queue.seen"]) == 4 * N
            assert torch.equal(found[0]["end"]["queue.keys"], found[1]["end"]["queue.keys"])
        else:
            last = "f.head.last.weight"
            assert torch.equal(found[0]["start"][last], found[0]["end"][last])
            moved = "f.backbone.conv.weight"
            assert not torch.equal(found[0]["start"][moved], found[0]["end"][moved])

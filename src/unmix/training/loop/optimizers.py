"""Optimizers, and learning-rate schedules per step."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from unmix.backbones import layer_scales, parameter_groups
from unmix.config import OptimizerSettings
from unmix.distributed import local

__all__ = [
    "Larc",
    "Lars",
    "Schedule",
    "build_optimizer",
    "build_schedule",
    "decays_all",
    "learning_rate",
    "learning_rate_factor",
    "match_layouts",
    "schedule_spans",
    "span_of",
    "weight_decay_at",
]


_EPS = 1e-8


class Lars(torch.optim.SGD):
    """LARS: SGD with each weight matrix's step scaled by |w| / |g| (You et al. 2017).

    Parameters of one dimension (biases, batch norm) have plain SGD steps, without weight decay. A
    step works on all parameters at once and waits for no number of theirs, as GPUs need it.

    Args:
        params: The parameters, or groups of them.
        lr: Learning rate.
        momentum: As in SGD.
        weight_decay: L2 penalty on parameters of more than one dimension.
        trust: Trust coefficient, eta in the paper.
        decay_all: Weight decay also on parameters of one dimension; they are still not scaled.
        clip: Cap the rate at lr: min(trust |w| / (|g| + decay |w|), lr), as solo-learn's `clip_lr`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        decay_all: bool = False,
        clip: bool = False,
    ) -> None:
        # Weight decay is part of the ratio of norms, so SGD itself must not add it.
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=0.0)
        self.trust, self.decay_all, self.clip = trust, decay_all, clip
        for group in self.param_groups:
            group.setdefault("decay", weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Scale the gradients, then do a step of SGD."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            given = [p for p in group["params"] if p.grad is not None]
            self._prepare(given, group["decay"], group["lr"])
        super().step()
        return loss

    def _prepare(self, parameters: list[Tensor], decay: float, lr: float) -> None:
        """Make the gradients ones of which SGD's step is that of LARS."""
        matrices = [p for p in parameters if p.ndim > 1]
        if self.clip:
            self._scale(matrices, decay, lr)
        elif matrices:
            gradients = _gradients(matrices)
            _add(gradients, matrices, decay)
            size, slope = _norms(matrices), _norms(gradients)
            ratio = self.trust * size / slope
            _multiply(gradients, torch.where((size > 0) & (slope > 0), ratio, 1.0))
        if self.decay_all:
            others = [p for p in parameters if p.ndim <= 1]
            _add(_gradients(others), others, decay)

    def _scale(self, parameters: list[Tensor], decay: float, lr: float) -> None:
        """Scale by trust |w| / (|g| + decay |w|); where a norm is 0 leave the plain gradient."""
        if not parameters:
            return
        gradients = _gradients(parameters)
        size, slope = _norms(parameters), _norms(gradients)
        ratio = self.trust * size / (slope + decay * size + _EPS)
        if self.clip:
            ratio = (ratio / lr).clamp(max=1.0)
        known = (size > 0) & (slope > 0)
        _add(gradients, parameters, torch.where(known, decay, 0.0) if decay else 0.0)
        _multiply(gradients, torch.where(known, ratio, 1.0))


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _norms(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors))


def _add(tensors: list[Tensor], others: list[Tensor], factor: float | Tensor) -> None:
    """Add to each the other one times the factor, or times its element of a vector of factors."""
    if isinstance(factor, Tensor):
        torch._foreach_add_(tensors, torch._foreach_mul(others, factor.unbind()))
    elif factor and tensors:
        torch._foreach_add_(tensors, others, alpha=factor)


def _multiply(tensors: list[Tensor], factors: Tensor) -> None:
    torch._foreach_mul_(tensors, factors.unbind())


class Larc(Lars):
    """LARS over all parameters, biases and batch norm too, as SwAV and DeepCluster-v2 use it.

    The ratio is trust |w| / (|g| + decay |w|), as apex's LARC has it. A parameter with a norm
    or a gradient of 0, such as a bias at the start, takes its plain gradient, without weight decay.

    Args:
        params, lr, momentum, weight_decay, trust, clip: As in `Lars`; SwAV does not clip.
        decay_all: False: parameters of one dimension are scaled, but have no weight decay.
    """

    def _prepare(self, parameters: list[Tensor], decay: float, lr: float) -> None:
        vectors = [p for p in parameters if p.ndim <= 1]
        self._scale([p for p in parameters if p.ndim > 1], decay, lr)
        self._scale(vectors, decay if self.decay_all else 0.0, lr)


def build_optimizer(
    settings: OptimizerSettings,
    parameters: Iterable[nn.Parameter],
    device: torch.device,
    steady: Sequence[nn.Module] = (),
    backbone: nn.Module | None = None,
    *,
    embeddings: Sequence[nn.Parameter] = (),
    undecayed: Collection[str] = (),
    fused: bool = True,
) -> torch.optim.Optimizer:
    """Build the optimizer for the parameters that need a gradient.

    If `decay_all` is not set, AdamW and LARS leave parameters of one dimension (biases, norms)
    without weight decay, and SGD, Adam and LARC decay all. Publications differ: MoCo v3 decays all
    with AdamW and matrices alone with LARS, DINO matrices alone with any optimizer.

    Args:
        settings: The optimizer and its hyperparameters.
        parameters: Parameters of the method.
        device: Their device; on a CPU and on CUDA the step is one fused kernel.
        steady: Modules whose learning rate the schedule leaves as it is.
        backbone: The backbone among them, whose layers' learning rates are scaled by `lr_decay`;
            see `unmix.backbones.layer_scales`. None for the same rate everywhere.
        embeddings: Parameters outside of the backbone with the rate of its embedding.
        undecayed: Names of matrices of the backbone without weight decay, unless all have it.
        fused: Whether a step may be a fused kernel, which divides gradients by float16's scale
            itself, after they were clipped.

    Raises:
        UserError: if the layers of the backbone are not known.
    """
    held = {id(p) for module in steady for p in module.parameters()}
    everything, of_ratio = decays_all(settings), settings.optimizer in ("lars", "larc")
    spared = {id(p) for n, p in (backbone or nn.Module()).named_parameters() if n in undecayed}

    def facts(p: nn.Parameter) -> dict[str, Any]:
        # LARS and LARC themselves know which parameters have one dimension.
        bare = not everything and ((p.ndim <= 1 and not of_ratio) or id(p) in spared)
        none = {"decay" if of_ratio else "weight_decay": 0.0} if bare else {}
        return {"steady": id(p) in held, "bare": bare, **none}

    scales: dict[nn.Parameter, float] = {}
    if backbone is not None and not settings.lr_decay == settings.patch_embed_lr_mult == 1:
        factors = settings.lr_decay, settings.patch_embed_lr_mult
        scales = layer_scales(backbone, *factors, embeddings)
    chosen = parameter_groups(parameters, settings.lr, scales, facts)
    lr, decay_ = settings.lr, settings.weight_decay
    fused = fused and device.type in ("cpu", "cuda")
    if settings.optimizer == "adam":
        return torch.optim.Adam(chosen, lr, weight_decay=decay_, fused=fused)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(chosen, lr, weight_decay=decay_, fused=fused)
    if of_ratio:
        kind = Larc if settings.optimizer == "larc" else Lars
        return kind(
            chosen, lr, momentum=settings.momentum, weight_decay=decay_, trust=settings.trust,
            decay_all=everything, clip=settings.trust_clip,
        )  # fmt: skip
    parts = (p for group in chosen for p in group["params"])
    if any(local(p) is not p for p in parts):
        fused = False  # PyTorch has no such kernel of SGD for weights that are sharded
    sgd = torch.optim.SGD(chosen, lr, momentum=settings.momentum, weight_decay=decay_, fused=fused)
    if settings.momentum:
        # The fused kernel creates all momentum buffers at its first step, and fails later on a
        # parameter without a gradient then, such as prototypes that are frozen at first.
        for group in sgd.param_groups:
            for parameter in group["params"]:
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def match_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Lay out the loaded state of each parameter in memory as the parameter itself.

    It may have been saved channels last by a machine on which weights are, and fused kernels take
    the numbers of weights and state as they lie in memory.
    """
    for parameter, state in optimizer.state.items():
        own = local(parameter)
        for name, value in state.items():
            alike = isinstance(value, Tensor) and value.shape == parameter.shape
            if alike and local(value).stride() != own.stride():
                state[name] = torch.empty_like(parameter).copy_(value)


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The present learning rate of a layer-wise factor of 1, for display."""
    groups = optimizer.param_groups
    group = next((g for g in groups if g.get("lr_scale", 1.0) == 1.0), groups[0])
    return float(group["lr"]) / float(group.get("lr_scale", 1.0))


def decays_all(settings: OptimizerSettings) -> bool:
    """Whether parameters of one dimension have weight decay as well."""
    if settings.decay_all is not None:
        return settings.decay_all
    return settings.optimizer not in ("adamw", "lars")


class Schedule(LambdaLR):
    """Schedule of learning rate and weight decay per step.

    Args:
        optimizer: From `build_optimizer`.
        factor: Factor of the learning rate at a step, for groups without a constant rate.
        decay: Weight decay at a step, or None if it is constant; not for groups without decay.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        factor: Callable[[int], float],
        decay: Callable[[int], float] | None = None,
    ) -> None:
        self.decay = decay
        self.word = "decay" if isinstance(optimizer, Lars) else "weight_decay"
        groups = optimizer.param_groups
        self.bare = [group.get("bare", False) for group in groups]
        super().__init__(
            optimizer, [(lambda _: 1.0) if group.get("steady") else factor for group in groups]
        )

    def step(self, epoch: int | None = None) -> None:
        """Set learning rate and weight decay of the next step."""
        super().step(epoch)
        self._set_decay()

    def refresh(self) -> None:
        """Set the rates of the present step, which differ from a checkpoint's after `--extend`."""
        groups = self.optimizer.param_groups
        for group, base, factor in zip(groups, self.base_lrs, self.lr_lambdas, strict=True):
            group["lr"] = base * factor(self.last_epoch)
        self._last_lr = [group["lr"] for group in groups]
        self._set_decay()

    def _set_decay(self) -> None:
        if self.decay is None:
            return
        for group, bare in zip(self.optimizer.param_groups, self.bare, strict=True):
            if not bare:
                group[self.word] = self.decay(self.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Numbers alone: the schedule itself follows from the settings."""
        state = super().state_dict()
        return {k: v for k, v in state.items() if k not in ("decay", "word", "bare")}


def build_schedule(
    optimizer: torch.optim.Optimizer,
    settings: OptimizerSettings,
    epochs: int,
    steps_per_epoch: int,
) -> Schedule:
    """Build the schedule of learning rate and weight decay from the settings."""
    factor = learning_rate_factor(settings, epochs, steps_per_epoch)
    if settings.final_weight_decay is None:
        return Schedule(optimizer, factor)
    spans = schedule_spans(settings, epochs, steps_per_epoch)
    return Schedule(optimizer, factor, weight_decay_at(settings, spans))


Spans = Sequence[tuple[int, int]]


def schedule_spans(settings: OptimizerSettings, epochs: int, steps_per_epoch: int) -> Spans:
    """The spans of steps over which the schedules go once: the run, cut at its restarts."""
    cuts = [epoch * steps_per_epoch for epoch in (0, *settings.restarts, epochs)]
    return list(pairwise(cuts))


def span_of(spans: Spans, step: int) -> tuple[int, int]:
    """The first step of the span that a step is in, and the step after its last."""
    return next((span for span in spans if step < span[1]), spans[-1])


def weight_decay_at(settings: OptimizerSettings, spans: Spans) -> Callable[[int], float]:
    """Weight decay at each step: half a cosine to the final value (Caron et al. 2021, DINO).

    Args:
        settings: Has `final_weight_decay`.
        spans: Of the schedules, in each of which it goes from the first value to the final one.
    """
    first, last = settings.weight_decay, settings.final_weight_decay
    assert last is not None

    def decay(step: int) -> float:
        start, end = span_of(spans, step)
        return last + (first - last) * _falling((step - start) / max(1, end - start))

    return decay


def learning_rate_factor(
    settings: OptimizerSettings, epochs: int, steps_per_epoch: int
) -> Callable[[int], float]:
    """Factor of the learning rate at each step, counted from 0.

    Cosine ends at `final_lr` at the last step (Loshchilov and Hutter 2017, without restarts); a
    step schedule multiplies by gamma after each of `milestones` epochs; both after a linear warmup
    from `warmup_start_lr`. At each of `restarts` the cosine starts again, over the epochs to the
    next, after a warmup from where it had ended: warm restarts. A step schedule goes on.
    """
    spans = schedule_spans(settings, epochs, steps_per_epoch)
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    first, last = settings.warmup_start_lr / settings.lr, settings.final_lr / settings.lr

    cosine = settings.schedule == "cosine"

    def factor(step: int) -> float:
        start, end = span_of(spans, step)
        done, total = step - start, end - start
        if done < warmup and (cosine or start == 0):
            low = first if start == 0 else last
            return low + (1 - low) * (done + 1) / warmup
        if cosine:
            return last + (1 - last) * _falling((done - warmup) / max(1, total - warmup))
        if settings.schedule == "step":
            passed = sum(step >= m * steps_per_epoch for m in settings.milestones)
            return settings.gamma**passed
        return 1.0

    return factor


def _falling(share: float) -> float:
    """Half a cosine, from 1 at 0 to 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

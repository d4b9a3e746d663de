"""MoCo, InsDis, CMC, Un-Mix on MoCo agree with released code: losses, gradients, memories."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from unmix.methods import CMC, InsDis, MoCo, Progress
from unmix.methods.bank import BankContrast
from unmix.mixtures import PairDraw
from unmix.mixtures.draws import whole_image
from unmix.step import Mixture, objective


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=1e-5, atol=1e-6)


def steps_of(g: dict[str, Any]) -> range:
    """The steps that a file has."""
    return range(sum(key.endswith("_loss") for key in g))


class Identity(nn.Module):
    """A backbone that hands its input on."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("contrast", ["softmax", "nce"])
def test_moco_contrast_loss_gradient_and_queue(golden, contrast):
    """The queue wraps; NCE's constant is estimated once, from the first batch."""
    g = golden(f"moco_{contrast}")
    size, dim = g["queue"].shape
    method = MoCo(
        Identity(dim), int(g["n_data"]), dim=dim, temperature=float(g["temperature"]),
        queue_size=size, contrast=contrast, bn_splits=1,
    )  # fmt: skip
    method.queue.keys.copy_(g["queue"])
    for step in steps_of(g):
        query = g[f"s{step}_query"].clone().requires_grad_()
        key = g[f"s{step}_key"]
        loss = method.compare(query, key).mean()
        loss.backward()
        close(loss, g[f"s{step}_loss"])
        close(query.grad, g[f"s{step}_grad"])
        if contrast == "nce":
            assert int(method.Z) == int(g[f"s{step}_Z"])
        method.update_memory({}, {1: key}, torch.arange(len(key)))
        close(method.queue.keys, g[f"s{step}_queue"])


@pytest.mark.parametrize("contrast", ["softmax", "nce"])
def test_insdis_contrast_loss_gradient_and_bank(golden, contrast):
    g = golden(f"insdis_{contrast}")
    n_data, dim = g["memory"].shape
    negatives = g["s0_candidates"].shape[1] - 1
    method = InsDis(
        Identity(dim), n_data, dim=dim, temperature=float(g["temperature"]), negatives=negatives,
        bank_momentum=float(g["momentum"]), contrast=contrast,
    )  # fmt: skip
    method.contrast.bank.rows.copy_(g["memory"])
    for step in steps_of(g):
        feature = g[f"s{step}_feature"].clone().requires_grad_()
        candidates = g[f"s{step}_candidates"]
        loss = method.compare(feature, candidates).mean()
        loss.backward()
        close(loss, g[f"s{step}_loss"])
        close(feature.grad, g[f"s{step}_grad"])
        if contrast == "nce":
            close(method.contrast.Z, g[f"s{step}_Z"])
        method.update_memory({0: feature}, {}, g[f"s{step}_index"])
        close(method.contrast.bank.rows, g[f"s{step}_memory"])


@pytest.mark.parametrize("contrast", ["softmax", "nce"])
def test_cmc_contrast_loss_gradients_and_banks(golden, contrast):
    g = golden(f"cmc_{contrast}")
    n_data, dim = g["memory_l"].shape
    negatives = g["s0_candidates"].shape[1] - 1
    halves = Identity(dim)
    halves.l = halves.ab = Identity(dim)
    method = CMC(
        halves, n_data, dim=dim, temperature=float(g["temperature"]), negatives=negatives,
        bank_momentum=float(g["momentum"]), contrast=contrast,
    )  # fmt: skip
    method.memory_l.bank.rows.copy_(g["memory_l"])
    method.memory_ab.bank.rows.copy_(g["memory_ab"])
    for step in steps_of(g):
        l = g[f"s{step}_l"].clone().requires_grad_()
        ab = g[f"s{step}_ab"].clone().requires_grad_()
        loss = method.compare((l, ab), g[f"s{step}_candidates"]).mean()
        loss.backward()
        close(loss, g[f"s{step}_loss"])
        close(l.grad, g[f"s{step}_grad_l"])
        close(ab.grad, g[f"s{step}_grad_ab"])
        if contrast == "nce":
            # The published Z_l belongs to the scores of l, which are against the bank of ab.
            close(method.memory_ab.Z, g[f"s{step}_Z_l"])
            close(method.memory_l.Z, g[f"s{step}_Z_ab"])
        method.update_memory({0: (l, ab)}, {}, g[f"s{step}_index"])
        close(method.memory_l.bank.rows, g[f"s{step}_memory_l"])
        close(method.memory_ab.bank.rows, g[f"s{step}_memory_ab"])


def test_a_large_banks_scores_are_a_small_banks(golden):
    """Picking from the whole product and reading only the candidates' rows give the same scores."""
    g = golden("insdis_softmax")
    numbers = float(g["temperature"]), float(g["momentum"])
    bank = BankContrast(*g["memory"].shape, *numbers, "softmax").bank
    candidates = g["s0_candidates"]
    few = bank.scores(g["s0_feature"], candidates[:, :3])
    close(few, bank.scores(g["s0_feature"], candidates)[:, :3])


class Flat(nn.Module):
    """The golden files' linear encoder, x.flatten(1) @ weight."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.feature_dim = weight.shape[1]
        self.weight = nn.Parameter(weight.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight


def drawn(view: torch.Tensor, mixed: torch.Tensor, lam: torch.Tensor) -> PairDraw:
    """The draw of a file's step, the batch in reverse: global, or else the box where it differs.

    A box that holds nothing else than the image itself would not be seen, and one at whose border
    both images are alike would be too small.
    """
    n, size = len(view), tuple(view.shape[2:])
    partner = torch.arange(n).flip(0)
    if torch.allclose(mixed, lam * view + (1 - lam) * view[partner], atol=1e-6):
        return PairDraw(partner, whole_image(n, *size), lam.expand(n), size, False)
    rows, columns = (mixed != view).any(dim=0).any(dim=0).nonzero().unbind(1)
    box = torch.stack([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1])
    return PairDraw(partner, box.expand(n, 4), torch.zeros(n), size, False)


# Every fast path there is, alone and together; without batch norm all of them are the same method.
FAST: dict[str, dict[str, Any]] = {
    "plain": {},
    "joint": {"joint": True},
    "sub-batches": {"splits": 2},
    "channels last": {"channels_last": True},
    "compiled": {"compiled": True},
    "bf16": {"bf16": True},
    "all": {
        "joint": True, "splits": 2, "channels_last": True, "compiled": True, "bf16": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("fast", FAST)
@pytest.mark.parametrize("form", ["asymmetric", "symmetric"])
def test_unmix_on_moco_step_by_step(golden, form, fast):
    """Loss, gradient, key encoder and queue, step by step, of global and region mixtures."""
    way = FAST[fast]
    bf16 = way.get("bf16", False)

    def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
        # bfloat16 has 8 bits: 2^-8, a few of them after several operations.
        rtol, atol = (2e-2, 2e-2) if bf16 else (1e-5, 1e-6)
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=rtol, atol=atol)

    g = golden(f"unmix_moco_{form}")
    dim, size = g["queue"].shape
    method = MoCo(
        Flat(g["query_weight"]), 100, dim=dim, temperature=float(g["temperature"]),
        queue_size=size, encoder_momentum=float(g["momentum"]), symmetric=form == "symmetric",
        bn_splits=way.get("splits", 1),
    )  # fmt: skip
    if way.get("compiled"):
        for encoder in (method.f_q, method.f_k):
            encoder.compile(backend="aot_eager")
    method.f_q.head = method.f_k.head = nn.Identity()
    f_q, f_k = method.f_q.backbone, method.f_k.backbone
    f_k.weight.data.copy_(g["key_weight"])
    method.queue.keys.copy_(g["queue"].T)
    generator = torch.Generator().manual_seed(0)
    for step in (steps := steps_of(g)):
        views = [g[f"s{step}_view1"], g[f"s{step}_view2"]]
        if way.get("channels_last"):
            views = [view.contiguous(memory_format=torch.channels_last) for view in views]
        lam = g[f"s{step}_lam"].float()
        draw = drawn(g[f"s{step}_view1"], g[f"s{step}_mixed"], lam)
        close(draw.weight[0], lam)
        close(draw.apply(views[0]), g[f"s{step}_mixed"])
        method.begin_step(Progress(0, len(steps), len(steps)))
        mixture = Mixture(draw, joint=way.get("joint", False))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            step_ = objective(method, views, torch.arange(len(views[0])), generator, mixture)
        f_q.weight.grad = None
        step_.loss.backward()
        step_.update_memory()
        close(step_.loss, g[f"s{step}_loss"])
        close(f_q.weight.grad, g[f"s{step}_grad"])
        close(f_k.weight, g[f"s{step}_key_weight"])
        close(method.queue.keys.T, g[f"s{step}_queue"])
        f_q.weight.data.sub_(float(g["learning_rate"]) * f_q.weight.grad)

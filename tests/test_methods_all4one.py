"""All4One: its step against solo-learn's, written out; its mixtures and its transformer."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unmix import backbones
from unmix.credit import IMix, UnMixRule
from unmix.errors import UserError
from unmix.methods import All4One
from unmix.methods.all4one import redundancy, token_positions
from unmix.mixtures import UnMix
from unmix.step import Mixture, objective

SMALL: dict[str, Any] = {
    "dim": 8, "hidden": 16, "predictor_hidden": 12, "queue_size": 12,
    "transformer_heads": 2, "transformer_layers": 2,
}  # fmt: skip


def all4one(**options: Any) -> All4One:
    backbone = backbones.build("resnet10", width=0.125, size=8)
    method = All4One(backbone, **SMALL | options).eval()
    for p in (*method.f_k.parameters(), *method.g_k.parameters()):
        p.data += 0.1 * torch.randn(p.shape)
    return method


def images(n: int = 6) -> list[Tensor]:
    return [torch.randn(n, 3, 8, 8) for _ in range(2)]


def position(token: int, feature: int) -> float:
    """solo-learn's encoding of 5 tokens: the "position" is the feature, the "channel" the token."""
    rate = 10000 ** (-(2 * (token // 2)) / 6)
    return math.cos(feature * rate) if token % 2 else math.sin(feature * rate)


def contrast(keys: Tensor, queries: Tensor, temperature: float) -> Tensor:
    """Key i among the queries of the batch, query i being the right one: (N,)."""
    cosines = F.cosine_similarity(keys[:, None], queries[None], dim=-1)
    return F.cross_entropy(cosines / temperature, torch.arange(len(keys)), reduction="none")


def parts(method: All4One, views: list[Tensor]) -> dict[str, list[Any]]:
    """z, both predictions, momentum z, neighbors and centroids of both views, written out."""
    with torch.no_grad():
        key = [F.normalize(method.g_k(method.f_k(view)), dim=-1) for view in views]
        near = [
            torch.stack([method.Q.keys[(method.Q.keys @ one).argsort(descending=True)[:5]]
                         for one in k])
            for k in key
        ]  # fmt: skip
    z = [method.g(method.f(view)) for view in views]
    encoding = torch.tensor([[position(k, i) for i in range(8)] for k in range(5)])
    return {
        "z": z,
        "p": [method.h(x) for x in z],
        "first": [method.h_first(x) for x in z],
        "key": key,
        "near": near,
        "rich": [method.transformer(n + encoding)[:, 0] for n in near],
        "encoding": [encoding],
    }


def shifted(method: All4One, made: dict[str, list[Any]], first: Tensor, view: int) -> Tensor:
    tokens = torch.cat([first.unsqueeze(1), made["near"][view]], dim=1)[:, :5]
    return method.transformer(tokens + made["encoding"][0])[:, 0]


def features(made: dict[str, list[Any]]) -> Tensor:
    """10 (on / 2 + off / 2) / 2 of solo-learn."""
    on, off = [], []
    for a, b in ((0, 1), (1, 0)):
        C = F.normalize(made["key"][a], dim=0).T @ F.normalize(made["z"][b], dim=0)
        on.append((C.diagonal() - 1).pow(2).mean())
        off.append(C[~torch.eye(8, dtype=torch.bool)].pow(2).mean())
    mean = [((part[0] + part[1]) * 0.5).sqrt() for part in (on, off)]
    return 0.5 * 10 * (0.5 * mean[0] + 0.5 * mean[1])


def written_out(method: All4One, views: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The loss of solo-learn's training step, and what goes into its queue."""
    made = parts(method, views)
    loss = features(made)
    for a, b in ((0, 1), (1, 0)):
        neighbor = contrast(made["near"][a][:, 0], made["p"][b], 0.2).mean() / 2
        strange = shifted(method, made, made["first"][b], b)
        centroid = contrast(made["rich"][a], strange, 0.1).mean() / 2
        loss = loss + 0.5 * neighbor + 0.5 * centroid
    return loss, made["key"][0]


def test_loss_gradients_and_queue_are_those_of_solo_learns_step() -> None:
    method, views = all4one(), images()
    reference = copy.deepcopy(method)
    expected, keys = written_out(reference, views)
    expected.backward()
    found = objective(method, views, torch.arange(6), torch.Generator())
    found.loss.backward()
    torch.testing.assert_close(found.loss, expected, rtol=1e-5, atol=1e-5)
    for (name, ours), theirs in zip(method.named_parameters(), reference.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=name)
    before = method.Q.keys.clone()
    found.update_memory()
    torch.testing.assert_close(method.Q.keys[:6], keys)
    assert torch.equal(method.Q.keys[6:], before[6:])


def test_a_mixture_meets_neighbors_and_centroids_of_both_images() -> None:
    """Its token is followed by the neighbors of the image that it is compared with."""
    method, views = all4one(), images()
    draw = UnMix(1.0).draw((6, 3, 8, 8), torch.Generator().manual_seed(5))
    found = objective(method, views, torch.arange(6), torch.Generator(), Mixture(draw))
    made = parts(method, views)
    z_mix = method.g(method.f(draw.apply(views[0])))
    w, p = draw.shares[:, 0], draw.owners[:, 1]
    expected = torch.zeros(())
    for b in (0, 1):
        for owner, share in ((torch.arange(6), w), (p, 1 - w)):
            of_owner = {**made, "near": [near[owner] for near in made["near"]]}
            strange = shifted(method, of_owner, method.h_first(z_mix), 1 - b)
            loss = contrast(made["near"][b][owner, 0], method.h(z_mix), 0.2)
            loss = loss + contrast(made["rich"][b][owner], strange, 0.1)
            expected = expected + 0.25 * (share * loss).mean()
    torch.testing.assert_close(found.mixed, expected.detach(), rtol=1e-5, atol=1e-5)
    clean = objective(method, views, torch.arange(6), torch.Generator()).loss
    torch.testing.assert_close(found.clean, clean.detach())


@pytest.mark.parametrize("rule", [UnMixRule(keeps_clean=False), IMix()])
def test_features_are_decorrelated_over_clean_views_alone(rule: Any) -> None:
    method, views = all4one(), images()
    mixture = Mixture(UnMix(1.0), rule)
    found = objective(method, views, torch.arange(6), torch.Generator().manual_seed(0), mixture)
    torch.testing.assert_close(found.clean, features(parts(method, views)).detach())


def test_mixtures_would_be_taken_for_features_that_do_not_agree() -> None:
    """A mixture's feature is between two, so its correlation with either is below 1."""
    key = torch.randn(500, 4)
    mixture = 0.5 * key + 0.5 * key.flip(0)
    assert redundancy([(key, key)]) < 0.1
    assert redundancy([(key, mixture)]) > redundancy([(key, key)]) + 0.1


def test_a_step_with_dropout_is_a_function_of_its_generator() -> None:
    method, views = all4one(dropout=0.5, queue_size=40).train(), images()
    state = torch.get_rng_state()
    losses = [
        objective(method, views, torch.arange(6), torch.Generator().manual_seed(s)).loss.item()
        for s in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_tokens_have_the_positions_of_the_released_code() -> None:
    found = token_positions(5, 8)
    expected = torch.tensor([[position(k, i) for i in range(8)] for k in range(5)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "flag", "why"),
    [
        (
            {"transformer_heads": 3},
            "transformer_heads",
            "3 heads do not divide --dim 8; use a divisor",
        ),
        ({"centroid_neighbors": 1}, "centroid_neighbors", "it must be at least 2"),
        ({"queue_size": 4}, "queue_size", "it must be at least 5"),
        ({"dropout": 1.0}, "dropout", "must be"),
        ({"redundancy": -1.0}, "redundancy", "it must be at least 0"),
    ],
)
def test_values_out_of_range_are_told(change: dict[str, Any], flag: str, why: str) -> None:
    with pytest.raises(UserError) as caught:
        all4one(**change)
    assert caught.value.on_command_line().startswith(f"--{flag}: ")
    assert why in caught.value.on_command_line()

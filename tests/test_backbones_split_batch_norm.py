"""Split batch norm is batch norm over n mod splits, for any memory format, batch size and type."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unmix.backbones import (
    SplitBatchNorm1d,
    SplitBatchNorm2d,
    build,
    convert_split_batch_norm,
    encode_in_splits,
)
from unmix.errors import UserError

FORMATS = [torch.contiguous_format, torch.channels_last]


def _pair(channels: int, splits: int, **settings) -> tuple[SplitBatchNorm2d, nn.BatchNorm2d]:
    """A split batch norm and a plain one with the same, not trivial, parameters."""
    split, plain = (
        SplitBatchNorm2d(channels, splits, **settings),
        nn.BatchNorm2d(channels, **settings),
    )
    if split.affine:
        with torch.no_grad():
            split.weight.copy_(torch.linspace(0.5, 1.5, channels))
            split.bias.copy_(torch.linspace(-1, 1, channels))
    plain.load_state_dict(split.state_dict())
    return split, plain


def _apply(layer: SplitBatchNorm2d, x: Tensor) -> Tensor:
    """The layer as the encoder: sample n in sub-batch n mod splits."""
    return encode_in_splits(layer, x, layer.splits)


def _naive(plain: nn.BatchNorm2d, x: Tensor, splits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Output and running statistics from plain batch norms, one per sub-batch."""
    output = torch.zeros_like(x)
    layers = []
    splits = max(1, min(splits, len(x) // 2))
    for part in range(splits):
        layer = nn.BatchNorm2d(plain.num_features, plain.eps).to(x)
        layer.load_state_dict(plain.state_dict())
        layer.weight, layer.bias = plain.weight, plain.bias
        index = torch.arange(part, len(x), splits)
        output = output.index_copy(0, index, layer(x[index]))
        layers.append(layer)
    mean = torch.stack([layer.running_mean for layer in layers]).mean(0)
    return output, mean, torch.stack([layer.running_var for layer in layers]).mean(0)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_agrees_with_the_published_implementation(golden, memory_format):
    values = golden("split_batch_norm")
    layer = SplitBatchNorm2d(values["x"].shape[1], int(values["splits"]))
    with torch.no_grad():
        layer.weight.copy_(values["weight"])
        layer.bias.copy_(values["bias"])
    y = _apply(layer, values["x"].to(memory_format=memory_format))
    torch.testing.assert_close(y, values["y"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.running_mean, values["running_mean"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.running_var, values["running_var"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("batch", [16, 13, 5, 3])
def test_output_statistics_and_gradients_agree_with_a_loop(batch, memory_format, generator):
    """Also for batches that 4 does not divide (13) and too small for 4 pairs (5, 3)."""
    split, plain = _pair(6, 4)
    x = torch.randn(batch, 6, 5, 3, generator=generator).to(memory_format=memory_format)
    upstream = torch.randn(batch, 6, 5, 3, generator=generator)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = _apply(split, a)
    expected, mean, var = _naive(plain, b, 4)
    (y * upstream).sum().backward()
    (expected * upstream).sum().backward()
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(split.running_mean, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(split.running_var, var, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(split.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(split.bias.grad, plain.bias.grad, rtol=1e-4, atol=1e-4)
    assert int(split.num_batches_tracked) == 1


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("batch", [8, 7])
def test_memory_format_is_kept(batch, memory_format, generator):
    x = torch.randn(batch, 6, 4, 4, generator=generator).to(memory_format=memory_format)
    y = _apply(SplitBatchNorm2d(6, 4), x)
    assert y.is_contiguous(memory_format=memory_format)
    assert y.stride() == x.stride()


@pytest.mark.parametrize("memory_format", FORMATS)
def test_takes_bfloat16_under_autocast_and_keeps_float32_statistics(memory_format, generator):
    split, reference = _pair(6, 4)[0], _pair(6, 4)[0]
    x = torch.randn(16, 6, 8, 8, generator=generator).to(memory_format=memory_format)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = _apply(split, x.bfloat16())
    expected = _apply(reference, x)
    assert y.dtype == torch.bfloat16
    assert split.running_mean.dtype == torch.float32
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.03)
    torch.testing.assert_close(split.running_var, reference.running_var, rtol=1e-2, atol=1e-3)


def test_evaluation_is_plain_batch_norm(generator):
    split, plain = _pair(6, 4)
    _apply(split, torch.randn(16, 6, 4, 4, generator=generator))
    plain.load_state_dict(split.state_dict())
    x = torch.randn(7, 6, 4, 4, generator=generator)
    assert torch.equal(split.eval()(x), plain.eval()(x))


@pytest.mark.parametrize(
    "settings",
    [{"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.1}],
)
def test_the_other_settings_mean_what_they_mean_in_batch_norm(settings, generator):
    """With one image repeated, sub-batches and batch have one mean, so both layers agree on y."""
    split, plain = _pair(6, 4, **settings)
    for _ in range(3):
        x = torch.randn(1, 6, 4, 4, generator=generator).repeat(8, 1, 1, 1)
        torch.testing.assert_close(_apply(split, x), plain(x))
    if plain.track_running_stats:
        torch.testing.assert_close(split.running_mean, plain.running_mean)
        assert int(split.num_batches_tracked) == 3


def test_one_split_is_plain_batch_norm(generator):
    split, plain = _pair(6, 1)
    x = torch.randn(5, 6, 4, 4, generator=generator)
    assert torch.equal(_apply(split, x), plain(x))
    assert torch.equal(split.running_var, plain.running_var)


def test_conversion_keeps_state_dict_mode_and_every_parameter():
    model = build("resnet10", width=0.125, size=16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = list(model.parameters())
    model.layer1.eval()
    converted = convert_split_batch_norm(model, 4)
    norms = [m for m in converted.modules() if isinstance(m, nn.BatchNorm2d)]
    assert converted is model
    assert len(norms) == 12
    assert all(isinstance(norm, SplitBatchNorm2d) and norm.splits == 4 for norm in norms)
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert not model.layer1[0].bn1.training
    assert model.layer2[0].bn1.training


def test_conversion_of_a_lone_batch_norm_returns_its_replacement():
    plain = nn.BatchNorm2d(3, eps=0.5, momentum=0.3)
    split = convert_split_batch_norm(plain, 2)
    assert isinstance(split, SplitBatchNorm2d)
    assert (split.eps, split.momentum, split.weight is plain.weight) == (0.5, 0.3, True)


def test_splits_below_one_are_refused():
    with pytest.raises(UserError, match="SplitBatchNorm2d: splits must be at least 1, got 0"):
        SplitBatchNorm2d(3, 0)
    with pytest.raises(UserError, match="splits must be at least 1, got 0"):
        convert_split_batch_norm(nn.Sequential(), 0)


class _Gathering(nn.BatchNorm2d):
    """Plain batch norm of n mod 4 in every layer."""

    def forward(self, x: Tensor) -> Tensor:
        output, mean, var = _naive(self, x, 4)
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)
        self.num_batches_tracked.add_(1)
        return output


@pytest.mark.parametrize("batch", [16, 13, 5])
def test_ordering_the_batch_once_is_gathering_it_in_every_layer(batch, generator):
    """It gives the features, gradients and statistics of n mod splits."""
    plain = build("resnet10", width=0.125, size=16)
    gathering = copy.deepcopy(plain).double()
    for norm in gathering.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.__class__ = _Gathering
    ordered = convert_split_batch_norm(plain, 4).double()
    x = torch.randn(batch, 3, 16, 16, generator=generator, dtype=torch.float64)
    expected, y = gathering(x), encode_in_splits(ordered, x, 4)
    torch.testing.assert_close(y, expected)
    upstream = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    (expected * upstream).sum().backward()
    (y * upstream).sum().backward()
    for (name, a), b in zip(ordered.named_parameters(), gathering.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for name, value in gathering.state_dict().items():
        torch.testing.assert_close(ordered.state_dict()[name], value)


def test_evaluation_is_not_ordered():
    """In evaluation samples do not interact, so the output is the encoder's own."""
    layer = SplitBatchNorm2d(6, 4).eval()
    x = torch.randn(8, 6, 4, 4)
    assert torch.equal(_apply(layer, x), layer(x))


@pytest.mark.parametrize("memory_format", FORMATS)
def test_one_call_for_all_blocks_is_a_call_for_each(memory_format, generator):
    """`_folded` (GPU, compiled) agrees with `_looped` (CPU) in output, gradient and statistics."""
    x = torch.randn(12, 6, 5, 3, generator=generator).to(memory_format=memory_format)
    upstream = torch.randn(12, 6, 5, 3, generator=generator)
    found = []
    for way in (SplitBatchNorm2d._folded, SplitBatchNorm2d._looped):
        layer = _pair(6, 4)[0]
        a = x.clone().requires_grad_()
        means, variances = layer._start(4)
        y = way(layer, a, 4, means, variances, 0.1)
        assert y.is_contiguous(memory_format=memory_format)
        (y * upstream).sum().backward()
        found.append((y.detach(), a.grad, layer.weight.grad, layer.bias.grad, means, variances))
    for folded, looped in zip(*found, strict=True):
        torch.testing.assert_close(folded, looped, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(16, 6), (13, 6), (3, 6), (12, 6, 5)])
def test_features_without_a_map_are_normalized_by_sub_batches_too(shape, generator):
    """In both ways, as a batch norm of each sub-batch; in evaluation as plain batch norm."""
    x = torch.randn(shape, generator=generator)
    upstream = torch.randn(shape, generator=generator)
    splits = min(4, len(x) // 2)
    ways = [SplitBatchNorm1d._looped] + [SplitBatchNorm1d._folded] * (len(x) % splits == 0)
    for way in ways:
        layer: Any = SplitBatchNorm1d(6, 4)
        layer._looped = way.__get__(layer)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        y = encode_in_splits(layer, a, 4)
        expected, means = torch.zeros_like(x), []
        for part in range(splits):
            plain, index = nn.BatchNorm1d(6), torch.arange(part, len(x), splits)
            expected = expected.index_copy(0, index, plain(b[index]))
            means.append(plain.running_mean)
        (y * upstream).sum().backward()
        (expected * upstream).sum().backward()
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.running_mean, torch.stack(means).mean(0))
        plain.load_state_dict(layer.state_dict())
        assert torch.equal(layer.eval()(x), plain.eval()(x))


def test_no_batch_norm_stays_of_the_whole_batch_in_silence():
    """All of BACKBONES are split; a subclass, of which nothing is known, is refused."""
    for name in ("resnet10", "resnet50", "alexnet", "timm:resnet18"):
        own = {} if name.startswith("timm") else {"width": 0.05}
        network = convert_split_batch_norm(build(name, size=32, **own), 4)
        norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert norms
        assert {m.splits for m in norms} == {4}  # type: ignore[union-attr]
        again = convert_split_batch_norm(network, 2)
        assert {m.splits for m in again.modules() if hasattr(m, "splits")} == {2}
    for norm in (nn.SyncBatchNorm(3), nn.BatchNorm3d(3), _Gathering(3)):
        with pytest.raises(UserError) as error:
            convert_split_batch_norm(nn.Sequential(nn.BatchNorm2d(3), norm), 2)
        assert str(error.value) == (
            f"splits: the network has 1 layer of {type(norm).__name__}, whose batch cannot be "
            "split; use `splits=1`."
        )

"""Mixing at a layer is mixing that layer's output by hand, for whatever encoder and order."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import unmix
from unmix.backbones import HalfEncoders, build, checkpoint_activations
from unmix.errors import UserError
from unmix.methods import CMC, MoCo
from unmix.mixtures import ManifoldMixture, UnMix, mixed_at
from unmix.mixtures.manifold import layers_named

N = 12
X = torch.randn(N, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return build("resnet10", width=0.125, size=16)


def moco(splits: int) -> MoCo:
    method = MoCo(resnet(), 100, dim=8, queue_size=16, bn_splits=splits)
    # Statistics that are not those of a new network, so that evaluation is worth comparing.
    with torch.no_grad():
        for _ in range(3):
            method.query(X)
    return method


def by_hand(backbone: nn.Module, layer: int, draw, x: Tensor = X) -> Tensor:
    """The features of mixtures made after a stage of a ResNet."""
    maps = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(x))))
    for number in range(1, 5):
        maps = getattr(backbone, f"layer{number}")(maps)
        if number == layer:
            weight = draw.weight[:, None, None, None]
            maps = weight * maps[: len(weight)] + (1 - weight) * maps[draw.partner]
    return maps.mean(dim=(2, 3))


@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("pairing", ["reverse", "permutation", "halves"])
@pytest.mark.parametrize("layer", [1, 3])
def test_the_output_of_a_stage_is_mixed_and_the_rest_sees_mixtures(per, pairing, layer):
    backbone = resnet().eval()
    operator = ManifoldMixture(f"layer{layer}", per=per, pairing=pairing)
    draw = operator.draw(X.shape, seeded())
    clean = backbone(X)
    with mixed_at(backbone, operator.layer, draw):
        mixed = backbone(X)
    torch.testing.assert_close(mixed, by_hand(backbone, layer, draw), rtol=1e-4, atol=1e-5)
    assert torch.equal(backbone(X), clean)


@pytest.mark.parametrize("inside", ["method", "encoder", "backbone"])
@pytest.mark.parametrize("pairing", ["permutation", "halves"])
def test_split_batch_norm_mixes_every_sample_with_its_own_partner(inside, pairing):
    """Its batch lies in another order; frozen statistics make every sample comparable alone."""
    method = moco(4)
    for module in method.f_q.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.training = False
    method.f_q.training = True  # so that the batch is put in order
    draw = ManifoldMixture("layer2", per="sample", pairing=pairing).draw(X.shape, seeded())
    within = {"method": method, "encoder": method.f_q, "backbone": method.backbone}[inside]
    with mixed_at(within, "layer2", draw):
        mixed = method.query(X)
    features = by_hand(method.backbone, 2, draw)
    expected = nn.functional.normalize(method.f_q.head(features), dim=1)
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-5)
    assert method.f_q.batch_order is None
    assert method.backbone.batch_order is None


@pytest.mark.parametrize("pairing", ["permutation", "halves"])
@pytest.mark.parametrize("splits", [1, 4])
def test_in_evaluation_a_moco_query_is_that_of_hand_made_mixtures(splits, pairing):
    method = moco(splits).eval()
    draw = ManifoldMixture("layer3", per="sample", pairing=pairing).draw(X.shape, seeded(3))
    with mixed_at(method, "layer3", draw):
        mixed = method.query(X)
    expected = nn.functional.normalize(method.f_q.head(by_hand(method.backbone, 3, draw)), dim=1)
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-5)


def test_split_batch_norm_after_the_layer_takes_the_mixtures_sub_batches():
    """Of halves, mixture i is in sub-batch i mod splits, as image i is without mixing."""
    method = moco(2)
    draw = ManifoldMixture("layer1", pairing="halves").draw(X.shape, seeded())
    seen: list[Tensor] = []
    hook = method.backbone.layer2.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0])
    )
    with mixed_at(method, "layer1", draw):
        assert method.query(X).shape == (6, 8)
    hook.remove()
    outputs: list[Tensor] = []
    hook = method.backbone.layer1.register_forward_hook(lambda _, __, out: outputs.append(out))
    method.query(X)
    hook.remove()
    maps = outputs[0][(torch.arange(N) % 2).argsort(stable=True).argsort()]
    weight = draw.weight[0]
    expected = (weight * maps[:6] + (1 - weight) * maps[6:])[[0, 2, 4, 1, 3, 5]]
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_reaches_both_owners_by_their_shares():
    layer = nn.Sequential()
    layer.add_module("first", nn.Identity())
    x = torch.randn(4, 2, 3, 3, generator=seeded(), requires_grad=True)
    draw = ManifoldMixture("first").draw(x.shape, seeded())
    with mixed_at(layer, "first", draw):
        out = layer(x)
    out[0].sum().backward()
    weight = float(draw.weight[0])
    torch.testing.assert_close(x.grad[0], torch.full((2, 3, 3), weight))
    torch.testing.assert_close(x.grad[3], torch.full((2, 3, 3), 1 - weight))
    assert not x.grad[1:3].any()


def test_both_half_encoders_of_cmc_are_mixed():
    torch.manual_seed(0)
    method = CMC(HalfEncoders("resnet10", width=0.125, size=16), 50, dim=8, negatives=8).eval()
    draw = ManifoldMixture("layer2").draw(X.shape, seeded())
    assert layers_named(method, "layer2") == ["f.l.layer2", "f.ab.layer2"]
    with mixed_at(method, "layer2", draw):
        l, ab = method.query(X)
    expected = nn.functional.normalize(method.head_l(by_hand(method.f.l, 2, draw, X[:, :1])), dim=1)
    torch.testing.assert_close(l, expected, rtol=1e-4, atol=1e-5)
    expected = nn.functional.normalize(
        method.head_ab(by_hand(method.f.ab, 2, draw, X[:, 1:])), dim=1
    )
    torch.testing.assert_close(ab, expected, rtol=1e-4, atol=1e-5)


def test_tokens_of_a_transformer_are_mixed_by_the_shares():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    vit = timm.models.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=0
    ).eval()
    draw = ManifoldMixture("blocks.1", per="sample", pairing="halves").draw(X.shape, seeded())
    with mixed_at(vit, "blocks.1", draw):
        mixed = vit(X)
    tokens = vit._pos_embed(vit.patch_embed(X))
    tokens = vit.blocks[1](vit.blocks[0](tokens))
    weight = draw.weight[:, None, None]
    tokens = weight * tokens[:6] + (1 - weight) * tokens[6:]
    expected = vit.forward_head(vit.norm(vit.blocks[2](tokens)))
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", ["maps", "rows"])
def test_a_draw_is_not_taken_for_another_batch(layer: str) -> None:
    """Of six rows drawn for four the last two were left out, and the others mixed."""
    encoder = nn.Sequential()
    encoder.add_module("maps", nn.Conv2d(3, 4, 2))
    encoder.add_module("rows", nn.Flatten())
    draw = ManifoldMixture(layer).draw((4, 3, 8, 8), torch.Generator().manual_seed(0))
    with mixed_at(encoder, layer, draw):
        assert len(encoder(torch.rand(4, 3, 8, 8))) == 4
    with pytest.raises(UserError, match="draw for each batch"), mixed_at(encoder, layer, draw):
        encoder(torch.rand(6, 3, 8, 8))


def test_a_region_can_be_mixed_at_a_layer_too():
    backbone = resnet().eval()
    draw = UnMix(0.0).draw(X.shape, seeded(2))
    seen: list[Tensor] = []
    hook = backbone.layer3.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with mixed_at(backbone, "layer2", draw):
        backbone(X)
    backbone(X)
    hook.remove()
    mixed, clean = seen
    torch.testing.assert_close(mixed, draw.resized(*clean.shape[2:]).apply(clean))


def test_an_encoder_that_was_compiled_is_mixed_all_the_same():
    backbone = resnet().eval()
    draw = ManifoldMixture("layer2").draw(X.shape, seeded())
    expected = by_hand(backbone, 2, draw)
    backbone.compile(backend="eager")
    clean = backbone(X)
    with mixed_at(backbone, "layer2", draw), warnings.catch_warnings():
        warnings.simplefilter("error")
        mixed = backbone(X)
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(backbone(X), clean)


def test_the_outermost_layer_of_a_name_counts():
    assert layers_named(resnet(), "conv1") == ["conv1"]
    assert layers_named(moco(1), "layer2") == ["f_q.backbone.layer2", "f_k.backbone.layer2"]
    assert layers_named(resnet(), "layer2.0") == ["layer2.0"]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            "layer5",
            "layer: there is no layer 'layer5'; there are conv1, bn1, relu, maxpool, "
            "layer1, layer2, layer3, layer4, avgpool and others.",
        ),
        ("", "layer: there is no layer ''"),
        ("ayer1", "layer: there is no layer 'ayer1'"),
        ("conv2", "layer: 'conv2' could be layer1.0.conv2, layer2.0.conv2, layer3.0.conv2"),
        ("0", "layer: '0' could be layer1.0, layer2.0, layer3.0 or another"),
    ],
)
def test_a_layer_that_is_none_or_several_is_told(layer, message):
    draw = ManifoldMixture("layer1").draw(X.shape, seeded())
    for module in (resnet(), moco(1).backbone):
        with pytest.raises(UserError) as caught, mixed_at(module, layer, draw):
            pass
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)


def test_the_layers_of_a_transformer_and_of_half_encoders_are_named():
    timm = pytest.importorskip("timm")
    vit = timm.models.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=32, depth=6, num_heads=2, num_classes=0
    )
    with pytest.raises(UserError, match=r"there are patch_embed, .*blocks\.0 to blocks\.5, norm"):
        layers_named(vit, "layer2")
    with pytest.raises(UserError, match=r"'attn' could be blocks\.0\.attn, blocks\.1\.attn"):
        layers_named(vit, "attn")
    halves = CMC(HalfEncoders("resnet10", width=0.125, size=16), 50, negatives=8)
    with pytest.raises(UserError, match="there are conv1, bn1"):
        layers_named(halves, "blocks.1")


def test_a_layer_that_does_not_run_is_not_passed_over():
    draw = ManifoldMixture("layer1").draw(X.shape, seeded())
    backbone = resnet().eval()
    with (
        pytest.raises(RuntimeError, match="'layer1' was not run"),
        mixed_at(backbone, "layer1", draw),
    ):
        backbone.conv1(X)
    assert not backbone.layer1._forward_hooks


def test_an_output_that_is_no_tensor_is_told():
    torch.manual_seed(0)
    method = CMC(HalfEncoders("resnet10", width=0.125, size=16), 50, negatives=8)
    draw = ManifoldMixture("f").draw(X.shape, seeded())
    with (
        pytest.raises(UserError, match="layer: 'f' gives a tuple and no tensor"),
        mixed_at(method, "f", draw),
    ):
        method.query(X)


class Blocks(nn.Module):
    """Three residual blocks, which PyTorch's checkpointing may go through."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        if self.reentrant is None:
            return self.blocks(x)
        given = x.requires_grad_()
        return checkpoint(self.blocks, given, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_layer_that_the_backward_pass_computes_again_is_refused(reentrant: bool) -> None:
    """Its gradients would be those of features without the mixture."""
    draw = ManifoldMixture("blocks.1").draw((4, 3, 8, 8), torch.Generator().manual_seed(0))
    network, x = Blocks(reentrant), torch.randn(4, 8)
    with (
        pytest.raises(
            UserError, match=r"'blocks\.1' lies in blocks whose activations are computed"
        ),
        mixed_at(network, "blocks.1", draw),
    ):
        network(x)
    plain = Blocks(None)
    plain.load_state_dict(network.state_dict())
    outputs = []
    for each in (network, plain):
        with torch.no_grad(), mixed_at(each, "blocks.1", draw):  # nothing is computed again
            outputs.append(each(x))

    def whole(given: Tensor) -> Tensor:
        with mixed_at(plain, "blocks.1", draw):
            return plain(given)

    outputs.append(checkpoint(whole, x, use_reentrant=reentrant))  # the mixture again
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0])


@pytest.mark.parametrize(
    ("name", "layer", "fits"),
    [
        ("timm:vit_tiny_patch16_224", "blocks.5", False),
        ("resnet10", "layer2.0.conv1", False),
        ("resnet10", "layer2", True),
        ("resnet10", "layer2.0", True),
    ],
)
def test_a_layer_within_checkpointed_blocks_is_refused_before_a_step(
    name: str, layer: str, fits: bool
) -> None:
    options = {"size": 32, "patch": 8} if name.startswith("timm") else {"size": 32, "width": 0.25}
    method = unmix.SimSiam(build(name, **options), dim=8, hidden=8, predictor_hidden=4)
    make = partial(
        unmix.Stepper, method, steps_per_epoch=1, epochs=1, mixture=ManifoldMixture(layer)
    )
    make()
    checkpoint_activations(method.backbone)
    if fits:
        make()([torch.randn(4, 3, 32, 32)] * 2).backward()
        return
    with pytest.raises(UserError, match=f"layer: '{layer}' lies in blocks"):
        make()

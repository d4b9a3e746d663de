"""Small methods of every kind, their steps, and the cells of the matrix of methods and rules."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from unmix import methods
from unmix.backbones import HalfEncoders, TokenEncoder
from unmix.credit import RULES, Rule
from unmix.methods import METHODS, Method, Progress, method_class
from unmix.mixtures import PairDraw
from unmix.mixtures.draws import whole_image
from unmix.step import Mixture, Objective, objective

N, SIZE, LOCAL, N_DATA = 8, 16, 8, 24

OPTIONS: dict[str, dict[str, Any]] = {
    # So many random keys that images have neighbors of their own.
    "all4one": {
        "dim": 4, "hidden": 32, "predictor_hidden": 16, "queue_size": 2000, "dropout": 0.0,
        "transformer_heads": 2, "transformer_layers": 1,
    },
    "barlow": {"dim": 16, "hidden": 16},
    "byol": {"dim": 16, "hidden": 32},
    "cmc": {"negatives": 12, "dim": 16, "contrast": "softmax"},
    "deepclusterv2": {"dim": 16, "hidden": 16, "prototypes": (6, 5), "freeze_prototypes_steps": 0},
    "densecl": {"queue_size": 32, "bn_splits": 2, "dim": 16},
    "dino": {"dim": 24, "hidden": 16, "bottleneck": 8, "freeze_last_epochs": 0},
    "distill": {"match": "similarities", "queue_size": 32},
    "ibot": {"dim": 24, "hidden": 16, "bottleneck": 8, "freeze_last_epochs": 0},
    "ijepa": {
        "predictor_dim": 16, "predictor_depth": 1, "predictor_heads": 2, "min_keep": 2,
    },
    "insdis": {"negatives": 12, "dim": 16, "contrast": "softmax"},
    "lejepa": {"dim": 16, "hidden": 16, "slices": 32},
    "mae": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2},
    "moco": {"queue_size": 32, "bn_splits": 2, "dim": 16, "symmetric": True},
    "mocov3": {"dim": 16, "hidden": 32},
    "nnclr": {"dim": 16, "hidden": 32, "predictor_hidden": 16, "queue_size": 32},
    "nnbyol": {"dim": 3, "hidden": 32, "queue_size": 2000},
    "pirl": {"negatives": 12, "dim": 16, "contrast": "softmax"},
    "ressl": {"dim": 16, "hidden": 16, "queue_size": 32},
    "simclr": {"dim": 16},
    "simdino": {"dim": 16, "hidden": 16},
    "simmim": {"mask_side": 1},
    "simsiam": {"dim": 16, "hidden": 16, "predictor_hidden": 8},
    "swav": {"dim": 16, "hidden": 16, "prototypes": 6, "queue_size": 16, "queue_from_epoch": 0,
             "freeze_prototypes_steps": 0},
    "tico": {"dim": 16, "hidden": 16},
    "vicreg": {"dim": 16, "hidden": 16},
    "wmse": {"dim": 4, "hidden": 16, "sub_batch": 8},
}  # fmt: skip

# Every registered method, and variants of some that take another path through the code.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in METHODS} | {
    "cmc-nce": ("cmc", {"contrast": "nce"}),
    "distill-features": ("distill", {"match": "features"}),
    "ibot-dinov2": ("ibot", {"separate_heads": True, "koleo": 0.1, "centering": "sinkhorn"}),
    "insdis-nce": ("insdis", {"contrast": "nce"}),
    "mae-mixed": ("mae", {"mixed_tokens": True, "mask_ratio": 0.5, "norm_pix": False}),
    "moco-asymmetric": ("moco", {"symmetric": False}),
    "moco-nce": ("moco", {"symmetric": False, "contrast": "nce"}),
    "moco-v2": ("moco", {"symmetric": False, "head": "mlp", "bn_splits": 1, "shuffle_bn": False}),
    "simclr-bn": ("simclr", {"hidden": 16, "layers": 3, "head_bn": True}),
    "simclr-dclw": ("simclr", {"decoupled": "dclw"}),
    "simdino-v2": ("simdino", {"patch_weight": 1.0}),
    "wmse-4": ("wmse", {"dim": 2, "sub_batch": 4, "views": 4, "iterations": 2}),
    "wmse-split": ("wmse", {"dim": 2, "sub_batch": 4}),
}

# Small sizes for any other method, of the options that it has.
_SMALL = {
    "dim": 16, "hidden": 16, "predictor_hidden": 8, "queue_size": 32, "negatives": 12,
    "prototypes": 6,
}  # fmt: skip


def options_of(name: str) -> dict[str, Any]:
    """Options that make a method small."""
    known = signature(method_class(name)).parameters
    return OPTIONS.get(name, {word: value for word, value in _SMALL.items() if word in known})


def teacher() -> nn.Module:
    """A frozen network of a seed of its own, for the methods that learn from one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(77)
        network = Foreign()
    network.feature_dim = 20  # type: ignore[assignment]
    return network


def given_to(name: str) -> dict[str, Any]:
    """What a method is given beside its backbone."""
    return {"teacher": teacher()} if "teacher" in signature(method_class(name)).parameters else {}


class Foreign(nn.Module):
    """A network of another kind than the backbones here, whose features do not change in scale."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 20, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).relu().mean(dim=(2, 3))


YES = [
    (method, rule)
    for method in METHODS
    for rule in RULES
    if RULES[rule].refusal(method_class(method)) is None
]


class Tiny(nn.Module):
    """One convolution with batch norm, for pictures of any size."""

    feature_dim = 24

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, self.feature_dim, 3), nn.BatchNorm2d(24)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, images: Tensor, pooled: bool = True) -> Tensor:
        features = self.bn(self.conv(images)).relu()
        return self.pool(features).flatten(1) if pooled else features


# The methods whose loss is by the patches of a vision transformer.
OF_PATCHES = {"ibot", "ijepa", "mae", "simdino-v2", "simmim"}


class TinyViT(VisionTransformer):
    """One block, for pictures of any size in patches of four pixels."""

    feature_dim = 24

    def __init__(self) -> None:
        super().__init__(
            img_size=SIZE, patch_size=4, embed_dim=self.feature_dim, depth=1, num_heads=2,
            num_classes=0, dynamic_img_size=True,
        )  # fmt: skip


def backbone_of(name: str) -> nn.Module:
    """The encoder of a method: one layer, a small transformer, or two half-encoders."""
    if name in OF_PATCHES:
        return TinyViT()
    if name != "cmc":
        return Tiny()
    halves = HalfEncoders("resnet10", width=0.125, size=SIZE)
    halves.l, halves.ab = Tiny(1), Tiny(2)  # type: ignore[assignment]
    return halves


def build(kind: str, seed: int = 0, **options: Any) -> Method:
    """A method of KINDS with a small encoder; the global generator stays as it was."""
    name, variant = KINDS[kind]
    options = {**options_of(name), **variant, **given_to(name), **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return methods.build(
            name, backbone_of(kind if kind in OF_PATCHES else name), N_DATA, **options
        )


def encoder_of(method: Method) -> Any:
    """What encodes images: the backbone, or what calls its parts."""
    encoder = getattr(method, "f", None)
    encoder = getattr(encoder, "backbone", encoder)
    return encoder if isinstance(encoder, TokenEncoder) else method.backbone


def views_of(method: Method, seed: int = 0, n: int = N) -> list[Tensor]:
    """A method's views of random images, with two small crops where it takes them."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [SIZE] * method.views + [LOCAL] * (2 * method.multi_crop)
    return [torch.randn(n, 3, size, size, generator=generator) for size in sizes]


def global_draw(weight: float, n: int = N) -> PairDraw:
    """One weight for the batch, which is mixed with itself in reverse."""
    partner = torch.arange(n - 1, -1, -1)
    ratio = torch.full((n,), weight)
    return PairDraw(partner, whole_image(n, SIZE, SIZE), ratio, (SIZE, SIZE), False)


def region_draw(side: int) -> PairDraw:
    """A box of the partner, the batch in reverse; side 0 is the image itself."""
    partner = torch.arange(N - 1, -1, -1)
    box = torch.tensor([2, 2, 2 + side, 2 + side]).expand(N, 4)
    return PairDraw(partner, box, torch.zeros(N), (SIZE, SIZE), False)


class Fixed(PairDraw):
    """A draw with the shares it was made for, and always the same mixtures."""

    def apply(self, images: Tensor, others: Any = ()) -> Tensor:
        return 0.6 * images + 0.4 * images[self.partner]


def fixed(weight: float) -> Fixed:
    """The same pixels for every weight."""
    draw = global_draw(weight)
    return Fixed(draw.partner, draw.box, draw.ratio, draw.size, draw.per_sample)


def published_draw(rule: Rule, weight: float, n: int = N) -> PairDraw:
    """With the rule's own pairing: MixCo mixes the first half of the batch with the second."""
    if getattr(rule.mixture, "pairing", None) != "halves":
        return global_draw(weight, n)
    m = n // 2
    partner, ratio = torch.arange(m) + m, torch.full((m,), weight)
    return PairDraw(partner, whole_image(m, SIZE, SIZE), ratio, (SIZE, SIZE), False, batch=n)


def mixture_of(
    rule: Rule, views: list[Tensor], draw: PairDraw | None = None, *, joint: bool | None = None
) -> Mixture:
    """A rule's mixture of views, by default of the weight 0.3 with the rule's own pairing."""
    others = [views[rule.partner_view]] if rule.partner_view else []
    # RegionCL's loss is tested with global draws too, which users are refused.
    return Mixture(
        draw or published_draw(rule, 0.3, len(views[0])), rule, others, joint,
        checked=rule.in_parts,
    )  # fmt: skip


def step(
    method: Method,
    views: list[Tensor],
    rule: Rule | None = None,
    draw: PairDraw | None = None,
    *,
    joint: bool | None = None,
    start: int = 0,
    seed: int = 0,
) -> Objective:
    """One step; without a rule a clean one."""
    n = len(views[0])
    mixture = None if rule is None else mixture_of(rule, views, draw, joint=joint)
    index = torch.arange(start, start + n) % N_DATA
    return objective(method, views, index, torch.Generator().manual_seed(seed), mixture)


def settled(kind: str, **options: Any) -> Method:
    """A method at the start of its second epoch, when every sample is in its memory.

    It is in evaluation mode, so that samples do not meet in batch norm.
    """
    method = build(kind, **options)
    for number in range(N_DATA // N + 1):
        method.begin_step(Progress(number, 12, N_DATA // N))
        if number < N_DATA // N:
            step(method, views_of(method, 9 + number), start=number * N).update_memory()
    return method.eval()


class Reading(TorchDispatchMode):
    """Notes where a tensor's value is read by the host: a GPU would be waited for.

    Attributes:
        count: Number of operations.
        read: Names of those that read a value.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count, self.read = 0, list[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        if func.name() in ("aten::_local_scalar_dense", "aten::nonzero"):
            self.read.append(func.name())
        return func(*args, **(kwargs or {}))


def gradients(method: Method) -> dict[str, Tensor]:
    """Of all parameters that have one."""
    return {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


def in_float64() -> None:
    """Also where methods ask for float32: rounding is far below what a mistake would change."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    torch.float32 = torch.float64

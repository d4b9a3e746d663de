"""Where checkpoints of other projects keep the network: a table, one row a layout.

Wrappers that only add a part to every name (`module.` of DataParallel, `_orig_mod.` of
torch.compile) are removed first, wherever they stand.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from unmix.weights.files import Checkpoint
from unmix.weights.namings import Naming, naming_of

__all__ = ["ALONE", "HALVES", "LAYOUTS", "Found", "Layout", "find"]

ALONE = "the network alone"
"""The name of rows whose projects only the naming of the tensors tells."""

HALVES = ("l.", "ab.")
"""The prefixes of CMC's two half-encoders, in this package."""


@dataclass(frozen=True)
class Layout:
    """A row of the table.

    Attributes:
        name: The projects that write it.
        within: Keys of the nested mappings around the tensors, such as ("state_dict",).
        prefix: What the names of the network's tensors begin with.
        halves: Of CMC: what the names of the lightness half and of the color half begin with,
            behind `prefix`.
        beside: Keys that the file must have beside `within`, of any content.
        tensors: Beginnings of names of which at least one must be among the tensors.
        method: The method of this package that trained it; None if that is not known.
        taken: Which of several networks this is, for people.
        heads: Attention heads by embedding dimension, where they are not timm's.
        stem: The stem of ResNets whose first convolution is 3x3, where it is not the small one.
    """

    name: str
    within: tuple[str, ...] = ()
    prefix: str = ""
    halves: tuple[str, str] | None = None
    beside: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    method: str | None = None
    taken: str = ""
    heads: Mapping[int, int] = field(default_factory=dict)
    stem: str | None = None

    @property
    def place(self) -> str:
        """Where the network lies, for people: `state_dict -> encoder_q.`"""
        prefixes = (
            [self.prefix] if self.halves is None else [self.prefix + half for half in self.halves]
        )
        names = ", ".join(f"{prefix}*" for prefix in prefixes)
        return " -> ".join([*self.within, names])


_HF_PREFIXES = ("vit.", "dinov2.", "dinov2_with_registers.", "dinov3_vit.", "deit.", "ijepa.",
                "resnet.")  # fmt: skip

LAYOUTS: tuple[Layout, ...] = (
    Layout("unmix, CMC's half-encoders", halves=HALVES, method="cmc"),
    Layout("VISSL", ("classy_state_dict", "base_model", "model",
           "trunk"), "_feature_blocks."),
    Layout("VISSL", ("model_state_dict",), "_feature_blocks."),
    Layout("facebook MoCo v1 and v2, Un-Mix", ("state_dict",), "encoder_q.", method="moco",
           taken="query encoder"),
    Layout("facebook MoCo v3", ("state_dict",), "base_encoder.", method="mocov3",
           taken="base encoder", heads={384: 12}),
    Layout("facebook SimSiam", ("state_dict",), "encoder.", tensors=("predictor.",),
           method="simsiam"),
    Layout("facebook SwAV and DeepCluster-v2", (), tensors=("projection_head.", "prototypes."),
           method="swav"),
    Layout("facebook SwAV and DeepCluster-v2", ("state_dict",),
           tensors=("projection_head.", "prototypes."), method="swav"),
    Layout("iBOT", ("teacher",), "backbone.", tensors=("backbone.masked_embed",), method="ibot",
           taken="teacher"),
    Layout("iBOT", ("student",), "backbone.", tensors=("backbone.masked_embed",), method="ibot",
           taken="student"),
    Layout("DINO, iBOT, DINOv2, DINOv3", ("teacher",), "backbone.",
           method="dino", taken="teacher"),
    Layout("DINO, iBOT, DINOv2, DINOv3", ("student",), "backbone.",
           method="dino", taken="student"),
    Layout("DINO, iBOT, DINOv2, DINOv3", ("teacher",), method="dino", taken="teacher"),
    Layout("iBOT", ("state_dict",), tensors=("masked_embed",), method="ibot"),
    Layout("I-JEPA", ("target_encoder",), taken="target encoder"),
    Layout("I-JEPA", ("encoder",), taken="encoder"),
    Layout("MAE", ("model",), tensors=("decoder_blocks.", "decoder_embed."),
           method="mae"),
    Layout("CMC", ("model",), "encoder.", halves=("l_to_ab.", "ab_to_l."),
           method="cmc"),
    Layout("PyContrast CMC", ("model",), halves=("encoder1.", "encoder2."),
           method="cmc"),
    Layout("CMC's MoCo and InsDis, PyContrast, SupContrast", ("model",), "encoder."),
    Layout("Barlow Twins", ("model",), "backbone.", tensors=("bn.running_mean",),
           method="barlow"),
    Layout("VICReg", ("model",), "backbone.", tensors=("projector.",),
           method="vicreg"),
    Layout("mmpretrain", ("state_dict",), "backbone.", beside=("meta",)),
    Layout("solo-learn", ("state_dict",), "backbone.", tensors=("classifier.",
           "momentum_backbone."), stem="padded"),
    Layout("solo-learn", ("state_dict",), "encoder.", tensors=("classifier.",
           "momentum_encoder."), stem="padded"),
    Layout("lightly", ("state_dict",), "backbone.", beside=("pytorch-lightning_version",)),
    Layout("lightly", ("state_dict",), "teacher_backbone.", method="dino",
           taken="teacher"),
    Layout("lightly", ("state_dict",), "student_backbone.", method="dino",
           taken="student"),
    Layout("SimCLR in PyTorch", ("state_dict",), "backbone.", method="simclr"),
    Layout("SimCLR in PyTorch", (), "encoder.", tensors=("projector.",),
           method="simclr"),
    Layout("SimCLR in PyTorch", ("state_dict",), "convnet.", method="simclr"),
    Layout("BYOL in PyTorch", ("online_network_state_dict",), "encoder.", method="byol",
           taken="online network"),
    Layout("BYOL in PyTorch", (), "online_encoder.net.", method="byol",
           taken="online network"),
    Layout("backbone and head", (), "backbone."),
    Layout("backbone and head", ("state_dict",), "encoder."),
    *(Layout("HF transformers", (), prefix) for prefix in _HF_PREFIXES),
    Layout("timm", ("state_dict_ema",), taken="averaged weights"),
    Layout("timm", ("model_ema",), taken="averaged weights"),
    Layout(ALONE, ("state_dict",)),
    Layout(ALONE, ("model",)),
    Layout(ALONE, ("model_state_dict",)),
    Layout(ALONE),
)  # fmt: skip
"""The layouts; the first that applies is taken."""

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module)\.")


@dataclass(frozen=True)
class Found:
    """The network in a checkpoint.

    Attributes:
        layout: Its row.
        naming: How its tensors are named; None if no naming is recognized.
        tensors: Its tensors under the names used here, CMC's with `HALVES` before them.
        others: The names of all other tensors beside it.
        heads: Attention heads, where the file says them; None otherwise.
    """

    layout: Layout
    naming: Naming | None
    tensors: dict[str, Tensor]
    others: tuple[str, ...]
    heads: int | None = None

    @property
    def attention_heads(self) -> int | None:
        """Attention heads as far as the file or its layout says them; shapes do not show them."""
        patches = self.tensors.get("patch_embed.proj.weight")
        usual = None if patches is None else self.layout.heads.get(patches.shape[0])
        return usual if self.heads is None else self.heads

    @property
    def title(self) -> str:
        """The layout in words, such as "facebook MoCo v3, base encoder"."""
        name = self.layout.name
        if name in (ALONE, "HF transformers"):
            name = "names of the encoder" if self.naming is None else self.naming.title
        return ", ".join(filter(None, (name, self.layout.taken)))


def find(checkpoint: Checkpoint, ours: Collection[str] = ()) -> Found | None:
    """Find the network in a checkpoint by the names of its tensors.

    Args:
        checkpoint: What was read.
        ours: The names of the tensors that are wanted, for networks of no known naming.

    Returns:
        It, under a naming that is recognized if there is one, else where most names are ours. None
        if there is no tensor.
    """
    rest: Found | None = None
    most = -1
    for layout in LAYOUTS:
        names = _names(checkpoint.content, layout)
        if names is None:
            continue
        found = _network(layout, names)
        if found is not None and found.naming is not None:
            return found
        count = 0 if found is None else len(found.tensors.keys() & set(ours))
        if found is not None and count >= most:
            rest, most = found, count
    return rest


def _names(content: Mapping[Any, Any], layout: Layout) -> dict[str, Tensor] | None:
    """The tensors where a layout has them, without wrappers in their names; None if not there."""
    if any(key not in content for key in layout.beside):
        return None
    for key in layout.within:
        inner = content.get(key) if isinstance(content, Mapping) else None
        if not isinstance(inner, Mapping):
            return None
        content = inner
    tensors = {
        _WRAPPERS.sub("", name): value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if layout.tensors and not any(name.startswith(layout.tensors) for name in tensors):
        return None
    return tensors or None


def _network(layout: Layout, tensors: Mapping[str, Tensor]) -> Found | None:
    """The network under a layout's prefix."""
    if layout.halves is None:
        own = _under(tensors, layout.prefix)
        naming = naming_of(own)
        if not own:
            return None
        renamed = own if naming is None else naming.convert(own)
        return Found(layout, naming, renamed, tuple(_rest(tensors, [layout.prefix])))
    prefixes = [layout.prefix + half for half in layout.halves]
    parts = [_under(tensors, prefix) for prefix in prefixes]
    naming = naming_of(parts[0])
    if naming is None or not parts[1]:
        return None
    both = {
        half + name: tensor
        for half, part in zip(HALVES, parts, strict=True)
        for name, tensor in naming.convert(part).items()
    }
    return Found(layout, naming, both, tuple(_rest(tensors, prefixes)))


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _rest(tensors: Mapping[str, Tensor], prefixes: list[str]) -> Iterator[str]:
    return (name for name in tensors if not name.startswith(tuple(prefixes)))

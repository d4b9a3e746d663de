"""What an encoder file of unmix says of itself, so that nothing has to be guessed from shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from unmix import backbones
from unmix.backbones import VIT_SHAPE, is_vit
from unmix.backbones.base import check_stem
from unmix.errors import UserError
from unmix.files import parse_json

__all__ = ["facts_of", "heads_of", "settings_of"]

_NEEDED = {"method", "backbone", "width", "stem", "size"}


def facts_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The facts in the metadata of a safetensors file; nothing of files of other projects."""
    try:
        facts = {key: parse_json(value, key) for key, value in metadata.items()}
    except ValueError:
        return {}
    return facts if facts.keys() >= _NEEDED else {}


def settings_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that build the encoder again, whatever the size of its images is now."""
    found = {key: facts.get(key) for key in ("backbone", "width", "stem", *VIT_SHAPE)}
    if not str(found["backbone"]).startswith("timm:"):
        # That of the size that it was trained at.
        found["stem"] = check_stem(str(found["stem"]), int(facts["size"]))
    return found


def heads_of(facts: Mapping[str, Any]) -> int | None:
    """Attention heads of a vision transformer, which the shapes of its tensors do not show.

    None if it is not one, or cannot be built here.
    """
    if not str(facts["backbone"]).startswith("timm:"):
        return None
    if facts.get("heads") is not None:
        return int(facts["heads"])
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            built: Any = backbones.build(facts["backbone"], size=facts["size"],
                                         patch=facts.get("patch"))  # fmt: skip
    except UserError:
        return None
    if not is_vit(built) or not hasattr(built.blocks[0], "attn"):
        return None
    return int(built.blocks[0].attn.num_heads)

"""Checkpoints with the names and shapes that the original programs give them.

`original_names.json` is a table of what the original classes call their tensors, made by running
their code without weights; the commit of each is there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unmix.backbones import HalfEncoders, build
from unmix.errors import UserError
from unmix.weights import Checkpoint, Found, find, load_found, network_of
from unmix.weights.networks import Network

ORIGINALS = json.loads((Path(__file__).parent / "original_names.json").read_text("utf-8"))

# The settings that are read off, the method, and which network is taken.
EXPECTED: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "moco": ({"backbone": "resnet18", "width": 1, "stem": "large"}, "moco", "query encoder"),
    "simsiam": ({"backbone": "resnet18", "width": 1, "stem": "large"}, "simsiam", ""),
    "moco-v3-resnet": ({"backbone": "resnet18", "width": 1, "stem": "large"}, "mocov3",
                       "base encoder"),
    "moco-v3-vit": ({"backbone": "timm:vit_small_patch16_224"}, "mocov3", "base encoder"),
    "swav": ({"backbone": "resnet18", "width": 1, "stem": "large"}, "swav", ""),
    "vicreg": ({"backbone": "resnet34", "width": 1, "stem": "large"}, "vicreg", ""),
    "barlow": ({"backbone": "resnet50", "width": 1, "stem": "large"}, "barlow", ""),
    "dino": ({"backbone": "timm:vit_small_patch16_224"}, "dino", "teacher"),
    "ibot": ({"backbone": "timm:vit_small_patch16_224"}, "ibot", "teacher"),
    "mae": ({"backbone": "timm:vit_base_patch16_224"}, "mae", ""),
    "ijepa": ({"backbone": "timm:vit_huge_patch14_gap_224"}, None, "target encoder"),
    "cmc-alexnet": ({"backbone": "alexnet", "width": 0.5, "stem": "large"}, "cmc", ""),
    "cmc-resnet": ({"backbone": "resnet18", "width": 1, "stem": "large"}, "cmc", ""),
    "cmc-insdis": ({"backbone": "resnet50", "width": 1, "stem": "large"}, None, ""),
    "pycontrast-pirl": ({"backbone": "resnet50", "width": 1, "stem": "large"}, None, ""),
    "dinov2": ({"backbone": "timm:vit_small_patch14_reg4_dinov2"}, "dino", "teacher"),
}  # fmt: skip


def content_of(name: str) -> dict[str, dict[str, Tensor]]:
    """The checkpoint, whose tensors have shapes alone."""
    return {
        key: {
            tensor.replace("{}", str(block)): torch.empty(shape, device="meta")
            for tensor, shape in part["names"].items()
            for block in range(part["blocks"] if "{}" in tensor else 1)
        }
        for key, part in ORIGINALS[name]["content"].items()
    }


def found_in(name: str) -> tuple[Found, Network | None]:
    found = find(Checkpoint(Path("w.pth"), content_of(name)))
    assert found is not None
    return found, network_of(found.tensors)


def test_every_original_is_expected() -> None:
    assert set(ORIGINALS) == {*EXPECTED, "pycontrast-cmc"}
    assert all(len(each["commit"]) == 40 for each in ORIGINALS.values())


@pytest.mark.parametrize("name", EXPECTED)
def test_an_original_is_recognized_and_every_tensor_has_its_place(name: str) -> None:
    settings, method, taken = EXPECTED[name]
    found, network = found_in(name)
    assert network is not None
    assert network.settings() == settings
    assert (found.layout.method, found.layout.taken) == (method, taken)
    options = {key: value for key, value in settings.items() if key != "backbone"}
    make = HalfEncoders if network.halves else build
    with torch.device("meta"):
        ours = make(settings["backbone"], **options).state_dict()  # type: ignore[operator]
    wanted = {key: value.shape for key, value in ours.items()}
    theirs = {key: value.shape for key, value in found.tensors.items()}
    # timm's code renames and resizes what DINOv2 has beside this; see test_weights_layouts.
    own = {"pos_embed", "reg_token"} if name == "dinov2" else set()
    assert {key: theirs.get(key) for key in wanted.keys() - own} == {
        key: shape for key, shape in wanted.items() if key not in own
    }
    beside = ("fc", "l.fc", "ab.fc", "head", "decoder_", "projection_head", "prototypes",
              "mask_token", "masked_embed", "register_tokens", "pos_embed")  # fmt: skip
    assert [key for key in theirs if key not in wanted and not key.startswith(beside)] == []


def test_halves_of_half_width_with_a_whole_first_layer_are_refused_by_name() -> None:
    """As of PyContrast, and of CMC's resnet50v1."""
    found, network = found_in("pycontrast-cmc")
    assert network is not None
    assert network.settings() == {"backbone": "resnet50", "width": 0.5, "stem": "large"}
    with torch.device("meta"):
        ours = HalfEncoders("resnet50", width=0.5, stem="large")
    with pytest.raises(UserError, match="first layer is 64, not 32; the original of CMC keeps 64"):
        load_found(ours, found, "w.pth")

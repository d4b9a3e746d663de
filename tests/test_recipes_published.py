"""Every number of a recipe that cites a source file is the one in that file.

`tests/published/` has a table a source: for each number the recipes and the setting that it is of,
the value here, the file and the line at the commit named; and where it is written otherwise there,
the number `published` and how it becomes ours (`by`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from unmix.config.recipes import recipe, recipe_names
from unmix.training.run.pretrain import settings_for

TABLES = [
    json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((Path(__file__).parent / "published").glob("*.json"))
]
IMAGES = {
    "cifar10": 50_000, "cifar100": 50_000, "stl10": 105_000, "tiny-imagenet": 100_000,
    "imagenet100": 126_689, "imagenet": 1_281_167,
}  # fmt: skip

# Recipes whose numbers are from papers alone, or chosen here; their comments say so.
WITHOUT_A_FILE = {
    "*-photos": "chosen small, for a laptop",
    "byol-imagenet": "the paper, section 3.2 and appendix B",
    "nnclr-imagenet": "the paper, section 4.1",
    "all4one-imagenet": "NNCLR's paper, section 4.1",
    "nnbyol-imagenet": "BYOL's paper, appendix B, and NNCLR's, section 4.1",
    "simsiam": "the paper, appendix D",
    "simsiam-cifar10": "the paper, appendix D",
    "simsiam-cifar100": "the paper, appendix D",
    "simsiam-stl10": "the paper, appendix D",
    "simsiam-tiny-imagenet": "the paper, appendix D",
}

# What the others state that is no number of their source: (recipes, settings, why).
OURS: list[tuple[str, str, str]] = [
    ("*", "method data", "what the recipe is of"),
    ("*", "backbone size stem", "the network and the data's side in words of this program"),
    ("*", "knn_every", "what is measured on the way"),
    ("*-unmix-* *-im-*", "unmix IM", "what the recipe is for"),
    ("cmc-* insdis-* pirl-* moco-im-* moco-v1-*", "schedule", "the word for rates with milestones"),
    ("cmc", "width jitter_p gray_p", "half the channels and no colour, as the paper says"),
    ("insdis pirl moco-im-* moco-v1-*", "jitter_p", "always, for the source has no probability"),
    ("moco-im-* moco-v1-*", "head", "one layer, for the source's network has one"),
    ("moco-unmix-imagenet", "bn_splits optimizer", "8 devices and SGD, as MoCo's code below it"),
    (
        "moco-im-march2020-imagenet100",
        "r_num r_beta r_prob",
        "what shifted arguments did before 23 March 2020, in the repository's history",
    ),
    ("moco-imagenet100 moco-v2-imagenet100", "queue_size", "of the ImageNet-100 runs of 2020"),
    ("simclr-unmix-* byol-unmix-*", "unmix_prob beta", "the author's answer, Un-Mix's issue 5"),
    ("simclr-imagenet100", "head_bn", "no batch norm, as its projector"),
    (
        "simclr-imagenet",
        "epochs hidden gray_p weight_decay",
        "the paper: 1,000 epochs, two layers, appendix A; the README's run is of 100",
    ),
    ("barlow-imagenet", "weight_decay", "the paper's 1.5e-6; its later code has 1e-6"),
    ("wmse-imagenet", "epochs", "fewer than the 240 of ImageNet-100"),
    ("pirl-imagenet*", "second_jitter_p second_gray_p", "none: its jigsaw_transform has no color"),
    ("pirl-[cst]*", "grid", "2 x 2 for small images, whose pieces would be too small"),
    ("mocov3 vicreg", "optimizer lr weight_decay", "for any data: no source has settings for it"),
    ("deepclusterv2", "prototypes", "as many a head as lightly's SwAV has"),
    (
        "distill",
        "match teacher_temperature queue_size jitter_p gray_p blur_p",
        "features as in SimReg, whose views have neither color nor blur; tau_t of SEED's paper",
    ),
    ("distill-seed-imagenet", "batch_size match", "256 in all, as its rate is for; SEED"),
    (
        "distill-[ct]* distill-stl10",
        "epochs",
        "chosen, for no source has settings for small images",
    ),
    ("dino", "interpolation", "as in solo-learn's recipes for CIFAR"),
    ("ressl", "queue_size interpolation", "for small data; bicubic as in solo-learn"),
    ("ressl-imagenet", "drop_last", "as in its code"),
    (
        "nnbyol",
        "optimizer lr weight_decay hidden queue_size interpolation",
        "for small data, as BYOL",
    ),
    ("all4one", "optimizer lr weight_decay queue_size interpolation", "for small data"),
    ("densecl", "queue_size encoder_momentum bn_splits", "for small data, as MoCo"),
    ("densecl-imagenet100", "queue_size", "of the ImageNet-100 runs of 2020"),
    ("ibot-[cst]*", "patch batch_size", "chosen for 64 patches an image"),
    ("ibot-imagenet100", "epochs batch_size", "solo-learn's of DINO for this data set"),
    ("lejepa", "dim hidden sigreg slices", "lightly's defaults; the README has no numbers"),
    ("lejepa-imagenet*", "batch_size drop_last warmup_epochs", "not stated by the README"),
    ("lejepa-imagenet100", "epochs", "solo-learn's for this data set"),
    ("ijepa", "backbone class_token pooling", "ViT-S, where ViT-B and larger are published"),
    (
        "ijepa-[cst]*",
        "backbone patch batch_size epochs predictor_dim predictor_depth",
        "chosen for 64 patches an image",
    ),
    ("ijepa-imagenet100", "epochs batch_size", "chosen: no source has settings for it"),
    ("simdino-v2-imagenet", "drop_last masks", "its samples have no end, its masks are blocks"),
    ("mae", "backbone", "ViT-S, where ViT-B and larger ones are published"),
    (
        "mae-[cst]*",
        "backbone patch batch_size decoder_dim decoder_depth decoder_heads",
        "chosen for 64 patches an image",
    ),
    ("mae-imagenet100", "epochs batch_size", "chosen: no source has settings for it"),
    ("mae-mixmim-imagenet", "backbone", "ViT-B for a Swin transformer of its own"),
    ("simmim", "backbone", "ViT-S, where ViT-B is published"),
    ("simmim-[cst]*", "backbone patch batch_size", "chosen for 64 patches an image"),
    ("simmim-imagenet100", "epochs batch_size", "chosen: no source has settings for it"),
    ("tico-imagenet100", "epochs batch_size", "solo-learn's for this data set"),
    ("lejepa-[cst]*", "blur_p", "none at 32 pixels, as in solo-learn's recipes for CIFAR"),
]


def steps(words: Mapping[str, Any]) -> int:
    """Of an epoch, without a short last batch."""
    return IMAGES[words["data"]] // words["batch_size"]


# How a published number p becomes a setting, by the words of `by`.
BY: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "x batch / 256": lambda p, w: p * w["batch_size"] / 256,
    "published x lr": lambda p, w: p * w["lr"],
    "published / .2": lambda p, w: p / 0.2,
    "published x .5": lambda p, w: [x * 0.5 for x in p],
    "2 x published: no half in its variance": lambda p, w: 2 * p,
    "epochs - published": lambda p, w: [w["epochs"] - x for x in p],
    "first + step, first + 2 steps": lambda p, w: [p[0] + p[1], p[0] + 2 * p[1]],
    "published / steps of an epoch": lambda p, w: p / steps(w),
    "epochs of 1,250 steps": lambda p, w: p * 1250 / steps(w),
    "published x steps of an epoch": lambda p, w: p * steps(w),
    "1 / dim, cut to so many digits": lambda p, w: int(10**p / w["dim"]) / 10**p,
    "x batch / 512": lambda p, w: p * w["batch_size"] / 512,
    "published / 16, its patches": lambda p, w: p // 16,
    "x batch / 2048": lambda p, w: p * w["batch_size"] / 2048,
    "devices": lambda p, w: p,
    "1 is yes": lambda p, w: p == 1,
    "mean is centering": lambda p, w: "mean",
    "x sqrt(batch / 1024)": lambda p, w: p * (w["batch_size"] / 1024) ** 0.5,
    **{f"{n} devices": (lambda p, w, n=n: n * p) for n in (2, 4, 8, 16, 32, 64)},
}


def entries_of(name: str) -> list[tuple[str, dict[str, Any]]]:
    """The source and the table's line for every number of a recipe."""
    return [
        (table["source"], entry)
        for table in TABLES
        for entry in table["entries"]
        if name in entry["recipes"]
    ]


def differences(name: str, words: Mapping[str, Any]) -> list[str]:
    """What of a recipe's settings is not as published, in words."""
    found = []
    for source, entry in entries_of(name):
        wanted = entry.get("value")
        by = entry.get("by")
        if "published" in entry:
            converted = BY[by](entry["published"], words)
            assert wanted is None or wanted == pytest.approx(converted)
            wanted = converted
        ours = words[entry["key"]]
        # A warm-up is stated in epochs, rounded to a hundredth.
        loose = by == "published / steps of an epoch"
        same = wanted == ours if isinstance(wanted, (str, bool)) else None
        if same is None:
            same = ours == pytest.approx(wanted, rel=1e-9, abs=0.0051 if loose else 1e-15)
        if not same:
            where = f"{source}/{entry['file']}:{entry['line']}"
            found.append(f"{name}: {entry['key']} is {ours}, published {wanted} ({where})")
    return found


def resolved(name: str) -> dict[str, Any]:
    return settings_for({}, name)[0].flat()


def without_a_file(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in WITHOUT_A_FILE)


@pytest.mark.parametrize("name", [name for name in recipe_names() if not without_a_file(name)])
def test_every_number_is_the_published_one(name: str) -> None:
    """Also those that it has from its method's recipe or from the program's defaults."""
    assert entries_of(name), "neither in tests/published nor in WITHOUT_A_FILE"
    assert differences(name, resolved(name)) == []


@pytest.mark.parametrize("name", [name for name in recipe_names() if not without_a_file(name)])
def test_every_setting_stated_is_in_a_table_or_said_to_be_ours(name: str) -> None:
    published = {entry["key"] for _, entry in entries_of(name)}
    ours = {
        key for pattern, keys, _ in OURS for key in keys.split()
        if any(fnmatch(name, one) for one in pattern.split())
    }  # fmt: skip
    assert set(recipe(name)) - published - ours == set()
    assert published & ours == set()


@pytest.mark.parametrize("name", ["byol-imagenet", "nnbyol-imagenet"])
def test_residual_branches_of_byol_start_at_0(name: str) -> None:
    """As in google-deepmind/dm-haiku, haiku/_src/nets/resnet.py, line 104 at f4d858a."""
    assert resolved(name)["zero_init_residual"] is True


@pytest.mark.parametrize(
    ("name", "key", "slip"),
    [
        ("vicreg-cifar10", "variance", 25.0),
        ("insdis-cifar10", "milestones", [80, 120, 160]),
        ("barlow-cifar100", "dim", 1024),
        ("cmc-imagenet", "crop_scale_min", 0.2),
        ("deepclusterv2-imagenet", "warmup_start_lr", 0.0),
        ("mocov3-imagenet", "lr", 0.6),
        ("simclr-cifar10", "warmup_epochs", 5.0),
        ("moco-cifar10", "symmetric", False),
    ],
)
def test_a_slip_is_found(name: str, key: str, slip: Any) -> None:
    (found,) = differences(name, {**resolved(name), key: slip})
    assert found.startswith(f"{name}: {key} is {slip}, published ")


def test_the_tables_are_whole() -> None:
    """Every line names recipes and a setting that there are, a file and a line; each commit too."""
    settings = {name: resolved(name) for name in recipe_names()}
    for table in TABLES:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", table["source"])
        assert re.fullmatch(r"[0-9a-f]{40}", table["commit"])
        for entry in table["entries"]:
            assert entry["recipes"]
            assert all(entry["key"] in settings[name] for name in entry["recipes"])
            assert entry["file"]
            assert entry["line"] >= 1
            assert ("value" in entry) or ("published" in entry)
            assert "published" not in entry or entry["by"] in BY
            assert re.fullmatch(r"[0-9a-f]{40}", entry.get("commit", table["commit"]))


def test_lists_name_recipes_that_there_are() -> None:
    patterns = [*WITHOUT_A_FILE, *(one for pattern, _, _ in OURS for one in pattern.split())]
    for pattern in patterns:
        assert any(fnmatch(name, pattern) for name in recipe_names()), pattern

"""What a run is made of: settings that the machine cannot be trusted with are changed."""

from __future__ import annotations

import pytest
import torch

from unmix.backbones import build as backbone
from unmix.config import Settings
from unmix.errors import UserError
from unmix.training.run.parts import build_parts, has_narrow_downsampling

SMALL = {"data": "digits", "size": 8, "backbone": "resnet10", "bn_splits": 1, "device": "cpu"}


@pytest.mark.parametrize(
    ("width", "narrow"), [(0.125, True), (0.24, True), (0.25, False), (1, False)]
)
def test_a_strided_1x1_convolution_of_fewer_than_16_channels_is_found(width, narrow):
    assert has_narrow_downsampling(backbone("resnet10", width=width, size=32)) is narrow


@pytest.mark.parametrize(("width", "channels_last"), [(0.125, False), (0.25, True)])
def test_narrow_networks_are_not_kept_channels_last_on_a_cpu(width, channels_last):
    """oneDNN writes past its workspace there, and the process dies."""
    parts = build_parts(Settings.of({**SMALL, "width": width}))
    assert parts.machine.channels_last is channels_last
    assert parts.module.views.channels_last is channels_last
    conv = parts.module.method.backbone.layer2[0].conv1.weight
    assert conv.is_contiguous() is not channels_last


def test_mean_and_std_of_the_user_reach_the_views_with_a_warning():
    small = {**SMALL, "width": 0.125, "queue_size": 1024}
    words = {**small, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    parts = build_parts(Settings.of(words))
    assert parts.module.views.mean == (0.5, 0.5, 0.5)
    (note,) = parts.notes
    assert note.startswith("warning: mean (0.5, 0.5, 0.5)")
    assert build_parts(Settings.of(small)).notes == ()


def test_dropping_the_last_batch_must_leave_one():
    words = {**SMALL, "width": 0.125, "limit": 100, "batch_size": 64, "drop_last": True}
    assert build_parts(Settings.of(words)).module.total_steps == 20
    assert build_parts(Settings.of({**words, "drop_last": False})).module.total_steps == 40
    with pytest.raises(UserError) as caught:
        build_parts(Settings.of({**words, "batch_size": 128}))
    assert str(caught.value) == (
        "--drop_last: 100 images make no batch of 128; use --batch_size 100 or less, or "
        "--no-drop_last."
    )


@pytest.mark.parametrize("method", ["moco", "nnclr", "ressl"])
def test_a_queue_that_is_longer_than_the_data_is_told(method):
    words = {**SMALL, "width": 0.125, "method": method, "limit": 200, "queue_size": 201}
    if method != "moco":
        words.pop("bn_splits")
    notes = build_parts(Settings.of(words)).notes
    assert any(
        "the queue of 201 keys is longer than the 200 images" in line
        and line.endswith("--queue_size 20")
        for line in notes
    )
    fits = build_parts(Settings.of({**words, "queue_size": 200})).notes
    assert not any("queue" in line for line in fits)


@pytest.mark.parametrize(
    ("splits", "devices", "told"),
    [
        (8, 8, None),
        (8, 1, None),
        (2, 1, None),
        (1, 2, "--bn_splits 1 is 2 on 2 devices, 1 on each: a batch norm sees 24 images of a batch,"
               " not 48"),
        (8, 3, "--bn_splits 8 is 9 on 3 devices, 3 on each: a batch norm sees 5 images of a batch,"
               " not 6"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["moco", "densecl"])
def test_devices_divide_the_sub_batches_of_batch_norm(method, splits, devices, told):
    words = {**SMALL, "method": method, "width": 0.125, "limit": 96, "queue_size": 96,
             "batch_size": 48, "bn_splits": splits, "devices": devices}  # fmt: skip
    parts = build_parts(Settings.of(words))
    splits = {getattr(m, "splits", 1) for m in parts.module.method.modules() if is_norm(m)}
    assert splits == {-(-words["bn_splits"] // devices)}
    assert parts.notes == (() if told is None else (f"note: {told}",))


def is_norm(module):
    return isinstance(module, torch.nn.BatchNorm2d)

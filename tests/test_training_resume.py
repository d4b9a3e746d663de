"""A run that was stopped and resumed ends as one that was not, bit for bit."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from unmix.training import RunFolder, pretrain
from unmix.training.loop.module import Pretraining

TINY = {
    "data": "digits",
    "backbone": "resnet10",
    "width": 0.25,
    "size": 8,
    "limit": 130,
    "batch_size": 20,
    "epochs": 3,
    "knn_every": 1,
    "knn_k": 10,
    "logger": "none",
    "device": "cpu",
    "precision": "32",
}
METHODS = {
    "moco": {"method": "moco", "queue_size": 64, "bn_splits": 2, "IM": True, "unmix": True},
    "moco-symmetric": {"method": "moco", "queue_size": 64, "symmetric": True, "bn_splits": 1},
    "swav-multicrop": {
        "method": "swav",
        "prototypes": 8,
        "queue_size": 64,
        "local_crops": 3,
        "local_size": 4,
        "second_blur_p": 0.5,
        "second_solarize_p": 0.2,
        "second_view": {"jitter_p": 0.0, "crop_scale_min": 0.6, "interpolation": "bicubic"},
        "local_view": {"flip_p": 0.0},
    },
    "insdis": {"method": "insdis", "negatives": 64, "IM": True, "IM_type": "RandomErasing"},
    "cmc": {"method": "cmc", "negatives": 64, "unmix": True, "optimizer": "adam", "lr": 1e-3},
    "deepclusterv2": {"method": "deepclusterv2", "prototypes": (9, 7), "hidden": 32, "unmix": True},
    "deepclusterv2-drop": {
        "method": "deepclusterv2", "prototypes": (9, 7), "hidden": 32, "drop_last": True,
        "optimizer": "larc", "warmup_epochs": 1, "warmup_start_lr": 0.01,
    },
    "simclr": {
        "method": "simclr", "joint_head": True, "head_bn": True, "drop_last": True,
        "zero_init_residual": True, "decay_all": False, "unmix": True, "unmix_rule": "mixco",
    },
    "dino": {
        "method": "dino", "dim": 64, "hidden": 32, "bottleneck": 16, "warmup_teacher_epochs": 2,
        "optimizer": "adamw", "weight_decay": 0.04, "final_weight_decay": 0.4, "final_lr": 1e-3,
    },
    "all4one": {  # its transformer drops features at random
        "method": "all4one", "dim": 16, "hidden": 32, "predictor_hidden": 32, "queue_size": 64,
        "transformer_layers": 1, "transformer_heads": 2, "unmix": True,
    },
    "ibot": {  # masks and dropped blocks at random
        "method": "ibot", "backbone": "timm:vit_tiny_patch16_224", "patch": 2, "depth": 2,
        "heads": 2, "width": 1.0, "drop_path": 0.2, "drop_path_uniform": True, "dim": 32,
        "hidden": 16, "bottleneck": 8, "optimizer": "adamw", "lr": 1e-3, "lr_decay": 0.9,
        "clip_grad": 0.5, "clip_grad_by": "network", "unmix": True,
    },
    "lejepa": {"method": "lejepa", "dim": 16, "hidden": 32, "slices": 16, "local_crops": 0},
    "pirl": {"method": "pirl", "negatives": 64, "grid": 2, "unmix": True},
    "swav": {
        "method": "swav", "prototypes": 16, "hidden": 32, "queue_size": 60, "queue_from_epoch": 1,
        "freeze_prototypes_steps": 9, "optimizer": "lars", "lr": 0.3, "unmix": True,
    },
    "dino-restarts": {  # stopped in its second schedule
        "method": "dino", "dim": 64, "hidden": 32, "bottleneck": 16, "warmup_teacher_epochs": 2,
        "optimizer": "adamw", "final_weight_decay": 0.4, "final_lr": 1e-3, "warmup_epochs": 0.5,
        "restarts": (1,),
    },
    "byol-frozen": {  # stopped while the backbone is frozen
        "method": "byol", "hidden": 32, "dim": 16, "freeze_backbone_epochs": 2, "lr_decay": 0.7,
        "optimizer": "adam", "lr": 1e-3,
    },
    "moco-unfrozen": {  # stopped just after it was
        "method": "moco", "queue_size": 64, "bn_splits": 2, "freeze_backbone_epochs": 1,
        "lr_decay": 0.5, "optimizer": "lars", "lr": 0.3,
    },
}  # fmt: skip


def state(folder: Path) -> dict:
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return {**checkpoint["state_dict"], "step": torch.tensor(checkpoint["global_step"])}


@pytest.mark.parametrize("name", METHODS)
def test_a_run_stopped_within_an_epoch_and_resumed_ends_with_the_same_bits(
    name, tmp_path, monkeypatch
):
    """Weights, momentum encoder, queue, bank and schedule; an epoch is 7 steps."""
    torch.set_num_threads(1)
    settings = {**TINY, **METHODS[name]}
    whole = pretrain(run=str(tmp_path / "whole"), **settings)

    step = Pretraining.training_step

    def stop_at_10(self, batch, batch_idx):
        if self.global_step == 10:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Pretraining, "training_step", stop_at_10)
    stopped = tmp_path / "stopped"
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        pretrain(run=str(stopped), checkpoint_steps=4, **settings)
    monkeypatch.setattr(Pretraining, "training_step", step)
    assert state(stopped)["step"] == 8
    resumed = pretrain(run=str(stopped), checkpoint_steps=4, **settings)

    a, b = state(tmp_path / "whole"), state(stopped)
    assert a.keys() == b.keys()
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert different == []
    assert [e.top1 for e in whole.evaluations] == [e.top1 for e in resumed.evaluations]
    steps = 3 * (6 if settings.get("drop_last") else 7)
    assert whole.training["steps"] == resumed.training["steps"] == steps
    with RunFolder(stopped).metrics.open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file) if row["loss"]] == ["0", "1", "2"]


# Settings that came after runs were made, and what was done until then.
LATER = {
    "drop_last": False, "zero_init_residual": False, "decay_all": None, "warmup_start_lr": 0.0,
    "predictor_bias": True, "joint_head": False, "unbiased": False,
}  # fmt: skip


def test_a_run_that_version_0_1_0_began_goes_on(tmp_path, monkeypatch, capsys):
    """Its checkpoints have no first loss, and its records are in `metrics.csv` alone."""
    settings = {**TINY, "method": "moco", "queue_size": 64, "bn_splits": 1, "evaluate": False}
    step = Pretraining.training_step

    def stop_at_10(self, batch, batch_idx):
        if self.global_step == 10:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    folder = RunFolder(tmp_path / "run")
    monkeypatch.setattr(Pretraining, "training_step", stop_at_10)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        pretrain(run=str(folder.path), **settings)
    monkeypatch.setattr(Pretraining, "training_step", step)
    checkpoint = torch.load(folder.last, weights_only=True)
    del checkpoint["first_loss"]
    (reporter,) = [state for state in checkpoint["callbacks"].values() if "records" in state]
    for name in ("records", "pending", "warned", "health"):
        del reporter[name]
    torch.save(checkpoint, folder.last)
    with folder.metrics.open() as file:
        before = list(csv.DictReader(file))
    with folder.metrics.open("a") as file:  # a row of a step that no checkpoint has
        csv.DictWriter(file, before[0]).writerow({**before[0], "step": "999"})
    capsys.readouterr()
    pretrain(run=str(folder.path))
    assert "started by unmix 0.1.0, whose hue jitter was a rotation" in capsys.readouterr().out
    with folder.metrics.open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2]
    assert rows[0]["loss"] == before[0]["loss"]


@pytest.mark.parametrize("method", ["mocov3", "simclr", "barlow"])
def test_a_run_of_before_a_setting_came_goes_on_as_it_was(method, tmp_path, monkeypatch):
    """Its config.yaml lacks the setting; the numbers are those of a run that has what was done."""
    torch.set_num_threads(1)
    own = {"mocov3": ["predictor_bias"], "simclr": ["joint_head"], "barlow": ["unbiased"]}[method]
    shared = ["drop_last", "zero_init_residual", "decay_all", "warmup_start_lr"]
    words = {key: LATER[key] for key in [*own, *shared]}
    settings = {**TINY, "method": method, "hidden": 32, "dim": 16, "evaluate": False, **words}
    pretrain(run=str(tmp_path / "whole"), **settings)
    step = Pretraining.training_step

    def stop_at_10(self, batch, batch_idx):
        if self.global_step == 10:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    stopped = tmp_path / "stopped"
    monkeypatch.setattr(Pretraining, "training_step", stop_at_10)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        pretrain(run=str(stopped), checkpoint_steps=4, **settings)
    monkeypatch.setattr(Pretraining, "training_step", step)
    config = RunFolder(stopped).config
    kept = [line for line in config.read_text().splitlines() if line.split(":")[0] not in LATER]
    assert len(kept) == len(config.read_text().splitlines()) - len(words)
    config.write_text("\n".join(kept))
    pretrain(run=str(stopped))
    a, b = state(tmp_path / "whole"), state(stopped)
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []

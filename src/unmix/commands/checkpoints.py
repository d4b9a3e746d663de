"""Loading a method, with its projector, or its encoder from the checkpoints of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from unmix.errors import UserError
from unmix.evaluation.encoder import LoadedEncoder, check_weights, encoder_of, read_encoder
from unmix.hardware.devices import Machine
from unmix.methods import Method
from unmix.training.loop.callbacks import FACTS
from unmix.training.run.building import build_method, no_teacher
from unmix.training.run.checkpoints import AtomicCheckpoints
from unmix.training.run.folder import RunFolder

__all__ = ["epoch_checkpoints", "epoch_of", "load_checkpoint_encoder", "load_method"]

_PREFIX = "method."
_BANK = "bank.rows"


def load_method(folder: Path | str, checkpoint: str = "last") -> Method:
    """Load the method of a run from a checkpoint, for encoding; no code in the file is run.

    The number of training images, on which NCE's constant depends, is known only if the method has
    a memory bank.

    Args:
        folder: The run folder.
        checkpoint: Name of a file in its `checkpoints/`: "last", or "epoch-0010".

    Returns:
        The method in evaluation mode, frozen, on the CPU.

    Raises:
        UserError: if the folder holds no run, there is no such checkpoint, it is damaged, or it
            does not match `config.yaml`.
    """
    run = RunFolder(folder)
    return _method_of(run, *_read(run, checkpoint))


def load_checkpoint_encoder(run: RunFolder, checkpoint: str, machine: Machine) -> LoadedEncoder:
    """Load the encoder of a checkpoint, also of a run that is not complete.

    Args:
        run: The run folder.
        checkpoint: As of `load_method`.
        machine: Where it will compute.

    Raises:
        UserError: as `load_method`, or if an earlier version wrote the checkpoint and the run is
            not complete.
    """
    path, state = _read(run, checkpoint)
    weights = _method_of(run, path, state).backbone.state_dict()
    facts = state.get(FACTS)
    if facts is None:  # of an earlier version
        facts = read_encoder(run.encoder)[1]
    return encoder_of(
        path, weights, facts, device=machine.device, channels_last=machine.channels_last
    )


def _method_of(run: RunFolder, path: Path, state: Mapping[str, Any]) -> Method:
    """The method of a checkpoint's content."""
    settings, weights = run.settings(), _weights(state)
    size = settings.run.size
    if size is None:
        raise UserError(f"{run.config}: has no size; give the folder of a run of unmix pretrain.")
    rows = next((len(value) for key, value in weights.items() if key.endswith(_BANK)), 2)
    method = build_method(settings, rows, size, teacher=no_teacher(_features_of_teacher(weights)))
    check_weights(path, method.state_dict(), weights, f"the run in {run.config}")
    method.load_state_dict(weights)
    return method.requires_grad_(False).eval()


def _read(run: RunFolder, checkpoint: str) -> tuple[Path, dict[str, Any]]:
    """The file of a checkpoint, and its content.

    Raises:
        UserError: if there is no run or no such checkpoint, or it is damaged.
    """
    run.settings()
    path = run.checkpoints / f"{checkpoint}.ckpt"
    if Path(checkpoint).name != checkpoint or not path.is_file():
        kept = sorted(file.stem for file in run.checkpoints.glob("*.ckpt"))
        known = f"it has {', '.join(kept)}" if kept else "it has none"
        raise UserError(f"--checkpoint: {run.path} has no checkpoint {checkpoint!r}; {known}.")
    state = AtomicCheckpoints().load_checkpoint(path)
    if not isinstance(state, dict) or not isinstance(state.get("state_dict"), dict):
        raise UserError(f"{path}: holds no state_dict; give a checkpoint of unmix pretrain.")
    return path, state


def _features_of_teacher(weights: Mapping[str, Tensor]) -> int:
    """How many the head of a student gives; of other methods any number."""
    head = [tensor for key, tensor in weights.items() if key.startswith("g.") and tensor.dim() == 2]
    return len(head[-1]) if head else 1


def epoch_checkpoints(run: RunFolder) -> dict[int, str]:
    """The kept checkpoints of a run: from the number of epochs to the name, in order."""
    names = (file.stem for file in run.checkpoints.glob("epoch-*.ckpt"))
    kept = {epoch: name for name in names if (epoch := epoch_of(name)) is not None}
    return dict(sorted(kept.items()))


def epoch_of(checkpoint: str | None) -> int | None:
    """After how many epochs a checkpoint was kept, by its name; None for `last` and the end."""
    match = re.fullmatch(r"epoch-(\d+)", checkpoint or "")
    return None if match is None else int(match[1])


def _weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of the method in a checkpoint of Lightning."""
    return {
        key.removeprefix(_PREFIX): value
        for key, value in state["state_dict"].items()
        if key.startswith(_PREFIX)
    }

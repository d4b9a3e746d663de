"""Loading a method, with its projector, from the checkpoints of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from unmix.errors import UserError
from unmix.evaluation.encoder import check_weights
from unmix.methods import Method
from unmix.training.run.building import build_method, no_teacher
from unmix.training.run.checkpoints import AtomicCheckpoints
from unmix.training.run.folder import RunFolder

__all__ = ["epoch_checkpoints", "load_method"]

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
    settings = run.settings()
    path = run.checkpoints / f"{checkpoint}.ckpt"
    if not path.is_file():
        kept = sorted(file.stem for file in run.checkpoints.glob("*.ckpt"))
        known = f"it has {', '.join(kept)}" if kept else "it has none"
        raise UserError(f"--checkpoint: {run.path} has no checkpoint {checkpoint!r}; {known}.")
    weights = _weights(path)
    size = settings.run.size
    if size is None:
        raise UserError(f"{run.config}: has no size; give the folder of a run of unmix pretrain.")
    rows = next((len(value) for key, value in weights.items() if key.endswith(_BANK)), 2)
    method = build_method(settings, rows, size, teacher=no_teacher(_features_of_teacher(weights)))
    check_weights(path, method.state_dict(), weights, f"the run in {run.config}")
    method.load_state_dict(weights)
    return method.requires_grad_(False).eval()


def _features_of_teacher(weights: Mapping[str, Tensor]) -> int:
    """How many the head of a student gives; of other methods any number."""
    head = [tensor for key, tensor in weights.items() if key.startswith("g.") and tensor.dim() == 2]
    return len(head[-1]) if head else 1


def epoch_checkpoints(run: RunFolder) -> dict[int, str]:
    """The kept checkpoints of a run: from the number of epochs to the name, in order."""
    names = (file.stem for file in run.checkpoints.glob("epoch-*.ckpt"))
    kept = {int(match[1]): name for name in names if (match := re.fullmatch(r"epoch-(\d+)", name))}
    return dict(sorted(kept.items()))


def _weights(path: Path) -> dict[str, Tensor]:
    """The weights of the method in a checkpoint of Lightning."""
    state = AtomicCheckpoints().load_checkpoint(path)
    weights = state.get("state_dict") if isinstance(state, dict) else None
    if not isinstance(weights, dict):
        raise UserError(f"{path}: holds no state_dict; give a checkpoint of unmix pretrain.")
    return {
        key.removeprefix(_PREFIX): value
        for key, value in weights.items()
        if key.startswith(_PREFIX)
    }

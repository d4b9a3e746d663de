"""An exported encoder, read back from its file alone."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unmix.backbones import HalfEncoders
from unmix.errors import UserError
from unmix.methods import method_class
from unmix.views import Views, preset

__all__ = ["ENCODER_FILE", "LoadedEncoder", "check_weights", "load_encoder", "read_encoder"]

ENCODER_FILE = "encoder.safetensors"

_FACTS = ("method", "backbone", "width", "stem", "size", "color_space", "mean", "std")


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder that is ready to use: frozen, in evaluation mode.

    Attributes:
        backbone: The network; for CMC two half-encoders.
        views: `views.plain` prepares uint8 images as the encoder expects them.
        facts: What the file says: "method", "backbone", "width", "stem", "size" (pixels),
            "patch" (of a vision transformer), "color_space", "mean" and "std" (of the pretraining
            images, RGB in [0, 1]).
    """

    backbone: nn.Module
    views: Views
    facts: Mapping[str, Any]

    def features(self, images: Tensor) -> Tensor:
        """Map prepared images (N, 3, size, size) to pooled features (N, D); CMC's side by side."""
        if isinstance(self.backbone, HalfEncoders):
            return self.backbone.features(images)
        return self.backbone(images)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Map uint8 images (N, 3, H, W) to float32 features (N, D), on the encoder's device.

        Images of another size than the encoder's are resized: the largest centred square.
        """
        device = next(self.backbone.parameters()).device
        return self.features(self.views.plain(images.to(device))).float()


def load_encoder(
    folder: Path | str, *, device: torch.device | str = "cpu", channels_last: bool = False
) -> LoadedEncoder:
    """Build the encoder that a run exported and fill in its weights; no code of the file is run.

    Args:
        folder: A run folder, or an `encoder.safetensors` itself.
        device: Where the encoder goes.
        channels_last: Keep weights and images in that memory format.

    Raises:
        UserError: if the file is missing or damaged, does not say how to build the encoder, or
            holds other weights than it says.
    """
    path = Path(folder)
    if path.is_dir():
        path = path / ENCODER_FILE
    weights, facts = read_encoder(path)
    backbone, views = _build(path, facts, channels_last)
    check_weights(path, backbone.state_dict(), weights, _name(facts))
    backbone.load_state_dict(weights)
    backbone.requires_grad_(False).eval()
    if channels_last:
        backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return LoadedEncoder(backbone.to(device), views, facts)


def read_encoder(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read an encoder file: its weights by name, and how to build and feed the encoder.

    Raises:
        UserError: if the file is missing or damaged, or was not written by unmix.
    """
    if not path.exists():
        if path.parent.is_dir() and path.name == ENCODER_FILE:
            raise UserError(
                f"{path.parent}: has no {ENCODER_FILE}; it is written when a run ends. Give the "
                "same unmix pretrain command again to finish the run."
            )
        raise UserError(f"{path}: there is no such run folder or encoder file.")
    from safetensors import SafetensorError, safe_open  # only here: training does without it

    try:
        with _utf8(path) as openable, safe_open(openable, framework="pt") as file:
            facts = {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: is damaged or not a safetensors file ({reason}).") from None
    missing = [name for name in _FACTS if name not in facts]
    if missing:
        raise UserError(
            f"{path}: does not say its {missing[0]}; give an {ENCODER_FILE} that unmix pretrain "
            "wrote."
        )
    return weights, facts


@contextmanager
def _utf8(path: Path) -> Iterator[Path]:
    """The file under a name that is UTF-8: safetensors opens no other."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder) / ENCODER_FILE
            link.symlink_to(path.absolute())
            yield link
    else:
        yield path


def check_weights(
    path: Path, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], name: str
) -> None:
    """Check that weights have the names and shapes that a network wants.

    Args:
        path: The file that the weights are from, for the message.
        ours: What the network wants.
        theirs: What the file holds.
        name: The network, for the message.

    Raises:
        UserError: with the first weight that does not fit.
    """
    for key in dict.fromkeys([*ours, *theirs]):
        if key not in theirs:
            wrong = f"{key} is missing"
        elif key not in ours:
            wrong = f"{key} is too much"
        elif ours[key].shape != theirs[key].shape:
            wrong = f"{key} has shape {tuple(theirs[key].shape)}, not {tuple(ours[key].shape)}"
        else:
            continue
        raise UserError(f"{path}: is of another architecture than {name}: {wrong}.")


def _build(path: Path, facts: Mapping[str, Any], channels_last: bool) -> tuple[nn.Module, Views]:
    """Build the untrained encoder and its views."""
    if not isinstance(facts["size"], int):
        raise UserError(f"{path}: its size is {facts['size']!r}; it must be a number of pixels.")
    try:
        # The first weights are thrown away; the global generator stays where it is.
        with torch.random.fork_rng(devices=[]):
            backbone = method_class(facts["method"]).build_backbone(
                facts["backbone"], width=facts["width"], stem=facts["stem"], size=facts["size"],
                patch=facts.get("patch"),  # not in files from before there was one
            )  # fmt: skip
        views = Views(
            preset("none"), facts["size"], tuple(facts["mean"]), tuple(facts["std"]), 1,
            facts["color_space"], channels_last=channels_last,
        )  # fmt: skip
    # What a file says can be of any type and size.
    except (ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: the encoder that it describes cannot be built: {reason}"
        ) from None
    return backbone, views


def _name(facts: Mapping[str, Any]) -> str:
    return f"the {facts['backbone']} of width {facts['width']:g} that it describes"

"""Loading an exported encoder from its file."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unmix.backbones import VIT_SHAPE, HalfEncoders, feature_dim
from unmix.checksums import CHECKSUM, checksum_differs
from unmix.data.bit_depth import Range
from unmix.data.listing import list_tree
from unmix.data.python_images import as_batch, given_uint8, is_path, warn_of_unknown_range
from unmix.errors import UserError, check_number
from unmix.files import as_path, parse_json
from unmix.methods import method_class
from unmix.transfer import usual_defaults
from unmix.views import Views, preset

__all__ = [
    "ENCODER_FILE",
    "FINE_TUNING_FILE",
    "EncoderTransform",
    "LoadedEncoder",
    "build_encoder",
    "check_weights",
    "encoder_file",
    "encoder_of",
    "is_of_encoder",
    "load_encoder",
    "read_encoder",
    "read_weights",
]

ENCODER_FILE = "encoder.safetensors"
FINE_TUNING_FILE = "settings.json"
"""Of a folder of `unmix finetune`, from its beginning."""
HUB_FILE = "model.safetensors"
"""Of a folder that `unmix export --to hub` wrote."""

_FACTS = ("method", "backbone", "width", "stem", "size", "color_space", "mean", "std")


class LoadedEncoder(nn.Module):
    """An encoder that is ready to use: frozen, in evaluation mode.

    As a module it maps prepared images to features: `encoder(images)`.

    Attributes:
        backbone: The network; for CMC two half-encoders.
        views: `views.plain` prepares uint8 images as the encoder expects them.
        facts: What the file says: "method", "backbone", "width", "stem", "size" (pixels),
            `VIT_SHAPE` (of a vision transformer), "color_space", "mean" and "std" (of the
            pretraining images, RGB in [0, 1]), "range" (of images of more than 8 bits, the values
            that become 0 and 255; None for the whole range of 16 bits), "fine_tuned" (of `unmix
            finetune` alone: on which labels, how and in which precision, with its accuracy).
        feature_dim: D, the length of its features.
        transform: Prepares one image for a `DataLoader`; see `EncoderTransform`.
    """

    def __init__(self, backbone: nn.Module, views: Views, facts: Mapping[str, Any]) -> None:
        super().__init__()
        self.backbone, self.views, self.facts = backbone, views, facts
        self.feature_dim = feature_dim(backbone)
        self.transform = EncoderTransform(views, self.range)
        self.eval()

    @property
    def range(self) -> tuple[float, float] | None:
        """Values of images of more than 8 bits that become 0 and 255, as in the pretraining."""
        limits = self.facts.get("range")  # not in files of earlier versions
        return None if limits is None else (float(limits[0]), float(limits[1]))

    @property
    def prepares(self) -> str:
        """Digest of what its features depend on beside weights: size, mean, range, pooling, ..."""
        facts = {key: value for key, value in self.facts.items() if key != "fine_tuned"}
        text = json.dumps(facts, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def forward(self, images: Tensor) -> Tensor:
        """Map prepared images (N, 3, size, size) to pooled features (N, D)."""
        return self.features(images)

    def features(self, images: Tensor) -> Tensor:
        """Map prepared images (N, 3, size, size) to features (N, D); CMC's are concatenated."""
        if isinstance(self.backbone, HalfEncoders):
            return self.backbone.features(images)
        return self.backbone(images)

    def encode(
        self,
        images: Any,
        *,
        grad: bool = False,
        batch_size: int = 256,
        range: tuple[float, float] | None = None,
    ) -> Tensor:
        """Encode images to float32 features (N, D), on the encoder's device.

        Images are prepared as in the evaluation: shorter side resized to 256/224 of the encoder's
        size, unless it has that size already, then a center crop.

        Args:
            images: One image or a sequence: PIL images, paths, uint8 arrays (H, W, C), uint8
                tensors (C, H, W); or a batch of pixels, uint8 (N, C, H, W) or (N, H, W, C); or a
                folder, whose images at any depth are encoded in the sorted order of their paths
                (`unmix embed` writes features of many images to a file, with their paths).
            grad: Whether features have a gradient, for fine-tuning; a frozen encoder is unfrozen.
                Its mode is kept: call `encoder.train()` to train batch norm as well.
            batch_size: Images that are encoded at a time.
            range: Values of images of more than 8 bits that become 0 and 255; by default those of
                the pretraining, and if it had none 0 and 65,535, with a warning.

        Raises:
            UserError: if an image cannot be read, or has another type or range; it is named.
        """
        check_number("batch_size", batch_size, at_least=1)
        if grad and not any(p.requires_grad for p in self.backbone.parameters()):
            self.backbone.requires_grad_(True)
        weight = next(self.backbone.parameters())
        device, dtype = weight.device, weight.dtype  # as after `encoder.half()`
        if is_path(images) and Path(images).is_dir():
            images = sorted(list_tree(images).paths)
        batch = as_batch(images)
        limits = self.range if range is None else _checked_range(range)
        features = []
        with torch.set_grad_enabled(grad):
            for start in torch.arange(0, len(batch), batch_size, device="cpu").tolist():
                some = batch[start : start + batch_size]
                if limits is None:
                    warn_of_unknown_range(some, "give that here as range=(LOW, HIGH)")
                pixels = given_uint8(some, self.views.size, start, limits).to(device)
                prepared = self.views.plain(pixels).to(dtype)
                features.append(self.features(prepared).float())
            return torch.cat(features)


class EncoderTransform:
    """Transform of one image for an encoder, for use in a `DataLoader`.

    Args:
        views: Views of the encoder.
        limits: Values of images of more than 8 bits that become 0 and 255.
    """

    def __init__(self, views: Views, limits: tuple[float, float] | None = None) -> None:
        self.views, self.limits = views, limits

    def __call__(self, image: Any) -> Tensor:
        """Map a PIL image, a path, a uint8 array (H, W, C) or tensor (C, H, W) to (3, size, size).

        Raises:
            UserError: if it cannot be read, or has another type or range.
        """
        if self.limits is None:
            warn_of_unknown_range([image], "set `limits` of this transform to (LOW, HIGH)")
        return self.views.plain(given_uint8([image], self.views.size, limits=self.limits))[0]

    def __repr__(self) -> str:
        return f"EncoderTransform(size={self.views.size})"


def _checked_range(limits: Range) -> Range:
    """The same, as numbers.

    Raises:
        UserError: if it is no range.
    """
    try:
        low, high = map(float, limits)
    except (TypeError, ValueError):
        raise UserError(
            f"{limits!r} must be two numbers, such as (0, 4095).", parameter="range"
        ) from None
    check_number("range", low)
    check_number("range", high, above=low)
    return low, high


@usual_defaults()
def load_encoder(
    folder: Path | str, *, device: torch.device | str = "cpu", channels_last: bool = False
) -> LoadedEncoder:
    """Load the encoder that a run exported; no code in the file is run.

        encoder = unmix.load_encoder("runs/a")
        features = encoder.encode(["a.jpg", "b.jpg"])

    Args:
        folder: A run folder, a folder of `unmix export --to hub`, or an encoder file itself.
        device: Device of the encoder.
        channels_last: Whether weights and images are channels last.

    Raises:
        UserError: if the file is missing or damaged, has no facts to build the encoder, or its
            weights do not match them.
    """
    path = as_path(folder)
    path = encoder_file(path) if path.is_dir() else path
    weights, facts = read_encoder(path)
    return encoder_of(path, weights, facts, device=device, channels_last=channels_last)


def encoder_of(
    path: Path,
    weights: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    *,
    device: torch.device | str = "cpu",
    channels_last: bool = False,
) -> LoadedEncoder:
    """The encoder of these weights.

    Args:
        path: Their file, for messages.
        weights: By name.
        facts: As of `read_encoder`.
        device: Device of the encoder.
        channels_last: Whether weights and images are channels last.

    Raises:
        UserError: if the facts do not describe an encoder, or the weights are another's.
    """
    backbone, views = build_encoder(path, facts, channels_last)
    check_weights(path, backbone.state_dict(), weights, _name(facts))
    backbone.load_state_dict(weights)
    backbone.requires_grad_(False).eval()
    if channels_last:
        backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return LoadedEncoder(backbone.to(device), views, facts)


def encoder_file(folder: Path) -> Path:
    """The encoder's file in a folder of a run, or of `unmix export --to hub`."""
    hub, own = folder / HUB_FILE, folder / ENCODER_FILE
    return hub if hub.is_file() and not own.is_file() else own


def is_of_encoder(folder: Path) -> bool:
    """Whether a folder that is no run has an encoder, or will have when its fine-tuning ends."""
    return encoder_file(folder).is_file() or (folder / FINE_TUNING_FILE).is_file()


def read_encoder(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read an encoder file: its weights by name, and the facts to build the encoder.

    Raises:
        UserError: if the file is missing or damaged, or was not written by unmix.
    """
    if not path.exists():
        if path.parent.is_dir() and path.name == ENCODER_FILE:
            raise UserError(f"{path.parent}: has no {ENCODER_FILE}{_why_missing(path.parent)}")
        raise UserError(f"{path}: there is no such run folder or encoder file.")
    weights, facts = read_weights(path)
    missing = [name for name in _FACTS if name not in facts]
    if missing:
        raise UserError(
            f"{path}: does not say its {missing[0]}; give an {ENCODER_FILE} that unmix pretrain "
            "wrote."
        )
    return weights, facts


def _why_missing(folder: Path) -> str:
    """Why a folder has no encoder yet, and what would be right."""
    if (folder / "config.yaml").is_file():
        return (
            "; it is written when a run ends. To finish it: unmix pretrain --run "
            f"{shlex.quote(str(folder))}; for an encoder of its last checkpoint: unmix export "
            f"{shlex.quote(str(folder))} --to safetensors --checkpoint last"
        )
    if (folder / FINE_TUNING_FILE).is_file():
        return (
            "; it is written when a fine-tuning ends. To finish it give the same `unmix finetune` "
            "again."
        )
    return "; give a run folder, that of a fine-tuning, or an encoder file."


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a safetensors file of ours: tensors by name, and its metadata, whose values are JSON.

    Raises:
        UserError: if the file is damaged.
    """
    from safetensors import SafetensorError, safe_open  # only here: training does not need it

    try:
        if checksum_differs(path):
            raise ValueError("its checksum is wrong")
        with _utf8(path) as openable, safe_open(openable, framework="pt") as file:
            facts = {
                k: parse_json(v, k)
                for k, v in (file.metadata() or {}).items()
                if k not in ("format", CHECKSUM)
            }
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: is damaged or not a safetensors file ({reason}).") from None
    return weights, facts


@contextmanager
def _utf8(path: Path) -> Iterator[Path]:
    """A path to the file that is valid UTF-8, since safetensors opens no other."""
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
    """Check that weights have the names and shapes of a network's.

    Args:
        path: The file of the weights, for the message.
        ours: The network's weights.
        theirs: The file's weights.
        name: The network, for the message.

    Raises:
        UserError: with the first weight that does not match.
    """
    for key in dict.fromkeys([*ours, *theirs]):
        if key not in theirs:
            wrong = f"{key} is missing"
        elif key not in ours:
            wrong = f"{key} is unexpected"
        elif ours[key].shape != theirs[key].shape:
            wrong = f"{key} has shape {tuple(theirs[key].shape)}, not {tuple(ours[key].shape)}"
        else:
            continue
        raise UserError(f"{path}: does not match {name}: {wrong}.")


def build_encoder(
    path: Path, facts: Mapping[str, Any], channels_last: bool, seed: int | None = None
) -> tuple[nn.Module, Views]:
    """Build the untrained encoder and its views.

    Args:
        path: File of the facts, for messages.
        facts: As of `read_encoder`.
        channels_last: Whether images are channels last.
        seed: Of the initial weights; by default they are any.

    Raises:
        UserError: if the facts do not describe an encoder.
    """
    if not isinstance(facts["size"], int):
        raise UserError(f"{path}: its size is {facts['size']!r}; it must be a number of pixels.")
    try:
        # Initial weights are discarded; the global generator is not advanced.
        with torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.manual_seed(seed)
            backbone = method_class(facts["method"]).build_backbone(
                facts["backbone"], width=facts["width"], stem=facts["stem"], size=facts["size"],
                # Not in files of earlier versions.
                **{name: facts.get(name) for name in VIT_SHAPE},
            )  # fmt: skip
        views = Views(
            preset("none"), facts["size"], tuple(facts["mean"]), tuple(facts["std"]), 1,
            facts["color_space"], channels_last=channels_last,
        )  # fmt: skip
    # Facts in a file may have any type and size.
    except (ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: the encoder that it describes cannot be built: {reason}"
        ) from None
    return backbone, views


def _name(facts: Mapping[str, Any]) -> str:
    return f"the {facts['backbone']} of width {facts['width']:g} that it describes"

"""What `init` names: a run, a file, or trained weights of timm or torchvision by name."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import nn

from unmix.display import method_name
from unmix.errors import UserError
from unmix.files import as_path
from unmix.names import shown
from unmix.synonyms import nearest
from unmix.weights.facts import facts_of, heads_of
from unmix.weights.files import Checkpoint, read_checkpoint, sha256_of
from unmix.weights.layouts import LAYOUTS, Found, find
from unmix.weights.matching import Loaded, load_found
from unmix.weights.names import TIMM, TORCHVISION
from unmix.weights.networks import Network

__all__ = ["CIFAR", "IMAGENET", "Preparation", "Weights", "open_weights", "usual_preparation"]

ENCODER_FILE = "encoder.safetensors"


@dataclass(frozen=True)
class Preparation:
    """How the weights' images were prepared.

    Attributes:
        mean: RGB mean in [0, 1].
        std: RGB standard deviation.
        size: Side of the images in pixels; None if it is not known.
        source: Where this is from, in words.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int | None
    source: str


IMAGENET = Preparation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224, "ImageNet's")
CIFAR = Preparation((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616), 32, "CIFAR-10's")


def usual_preparation(network: Network | None) -> Preparation:
    """How images are usually prepared: as CIFAR-10's with a stem of 3x3, else as ImageNet's."""
    return CIFAR if network is not None and network.stem in ("small", "padded") else IMAGENET


@dataclass(frozen=True)
class Weights:
    """Weights that were opened.

    Attributes:
        name: What was given, for people.
        checkpoint: The content of the file.
        sha256: Of the file.
        preparation: Of the images, as far as the source says; None otherwise.
        backbone: The backbone that the source names, such as timm:resnet50; None otherwise.
        facts: What an encoder of unmix says of itself, as of `read_encoder`; empty of other
            projects.
    """

    name: str
    checkpoint: Checkpoint
    sha256: str
    preparation: Preparation | None = None
    backbone: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str | None:
        """The method of the run that they are of; None of other projects."""
        found = self.facts.get("method")
        return found if isinstance(found, str) else None

    @property
    def is_run(self) -> bool:
        """Whether a run of unmix, which could be extended, was given and not its encoder alone."""
        beside = self.checkpoint.path.with_name("checkpoints")
        return bool(self.facts) and Path(self.name).is_dir() and beside.is_dir()

    def found(self, backbone: nn.Module | None = None) -> Found:
        """The network in the file.

        Args:
            backbone: The one that its weights are for, if that is known.

        Raises:
            UserError: if the file holds no tensors where any layout has them.
        """
        ours = () if backbone is None else list(backbone.state_dict())
        found = find(self.checkpoint, ours)
        if found is None:
            keys = ", ".join(map(str, list(self.checkpoint.content)[:4])) or "nothing"
            known = "; ".join(dict.fromkeys(layout.name for layout in LAYOUTS))
            raise UserError(
                f"{self.name} has no tensors where a known layout has them; it holds {keys}. Known "
                f"layouts: {known}.",
                parameter="init",
            )
        if not self.facts:
            return found
        of = "encoder" if self.method is None else f"encoder of {method_name(self.method)}"
        heads = heads_of(self.facts) if "patch_embed.proj.weight" in found.tensors else None
        return replace(found, layout=replace(found.layout, name=f"unmix, {of}"), heads=heads)

    def load(self, backbone: nn.Module) -> Loaded:
        """Copy the weights into a backbone.

        Raises:
            UserError: as `load_found`.
        """
        return load_found(backbone, self.found(backbone), self.name)


def open_weights(weights: str, sha256: str | None = None) -> Weights:
    """Open weights; no code in them is run.

    Args:
        weights: A run folder, a file, a folder of Hugging Face, `timm:NAME` or `torchvision:NAME`.
        sha256: What the SHA-256 of the file must be; None if any will do.

    Raises:
        UserError: if there is no such thing, it cannot be fetched, or the file is another one.
    """
    if weights.startswith(TIMM):
        path, preparation = _timm_file(weights.removeprefix(TIMM))
    elif weights.startswith(TORCHVISION):
        path, preparation = _torchvision_file(weights.removeprefix(TORCHVISION))
    elif "://" in weights:
        raise UserError(
            f"{shown(weights)} is an address; download the file first, and give its path.",
            parameter="init",
        )
    else:
        path, preparation = _own_file(as_path(weights)), None
    checkpoint = read_checkpoint(path)
    _check_no_run(checkpoint)
    digest = sha256_of(checkpoint.path)
    if sha256 is not None and digest != sha256:
        raise UserError(
            f"{shown(weights)} is not the file that it was: its SHA-256 is {digest[:16]}..., not "
            f"{sha256[:16]}...; give the file of then, or leave `init_sha256` out in a new run.",
            parameter="init",
        )
    backbone = weights.partition(".")[0] if weights.startswith(TIMM) else None
    facts = facts_of(checkpoint.metadata)
    preparation = preparation or _of_run(facts) or _hugging_face(checkpoint)
    return Weights(shown(weights), checkpoint, digest, preparation, backbone, facts)


def _own_file(path: Path) -> Path:
    """The encoder of a run, if the folder is one, else the path."""
    if (path / "config.yaml").is_file() and not (path / ENCODER_FILE).is_file():
        raise UserError(
            f"{shown(path)} is a run without {ENCODER_FILE}, which is written when a run ends; "
            "finish it first, or give what unmix export "
            f"{shown(path)} --to safetensors --checkpoint last writes.",
            parameter="init",
        )
    return path / ENCODER_FILE if (path / ENCODER_FILE).is_file() else path


def _check_no_run(checkpoint: Checkpoint) -> None:
    """Check that a file is no checkpoint of a run here, whose encoder is a file of its own.

    Raises:
        UserError: if it is.
    """
    state = checkpoint.content.get("state_dict")
    if "epoch_samples" in checkpoint.content and isinstance(state, Mapping):
        raise UserError(
            f"{shown(checkpoint.path)} is a checkpoint of a run of unmix, which holds heads and "
            "optimizer too; give the run's folder, or its encoder.safetensors, which is written "
            "when the run ends, or what unmix export RUN --to safetensors --checkpoint "
            f"{checkpoint.path.stem} writes.",
            parameter="init",
        )


def _of_run(facts: Mapping[str, Any]) -> Preparation | None:
    """What an encoder of unmix says itself; CMC's images have a normalization of their own."""
    if facts.get("color_space") != "RGB" or not (
        _three(facts.get("mean")) and _three(facts.get("std"))
    ):
        return None
    return Preparation(tuple(facts["mean"]), tuple(facts["std"]), facts.get("size"), "its run")


def _hugging_face(checkpoint: Checkpoint) -> Preparation | None:
    """What a preprocessor_config.json beside the file says."""
    found: Any = checkpoint.configs.get("preprocessor_config.json", {})
    mean, std, size = found.get("image_mean"), found.get("image_std"), found.get("crop_size")
    size = found.get("size") if size is None else size
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    if not (_three(mean) and _three(std)):
        return None
    return Preparation(
        tuple(mean), tuple(std), size if isinstance(size, int) else None,
        "preprocessor_config.json",
    )  # fmt: skip


def _three(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(
        isinstance(each, (int, float)) for each in value
    )  # fmt: skip


def _timm_file(name: str) -> tuple[Path, Preparation]:
    """The file of trained weights of timm: in the cache of Hugging Face, or fetched."""
    try:
        import timm
    except ImportError:
        raise UserError(
            f"{TIMM}{name} needs the timm package: pip install 'unmix[timm]'", parameter="init"
        ) from None
    known, _, tag = name.partition(".")
    tags = [found.partition(".")[2] for found in timm.list_models(f"{known}.*", pretrained=True)]
    if not timm.is_model(known) or not tags or (tag and tag not in tags):
        near = nearest(name, timm.list_models(pretrained=True), cutoff=0.6)
        hint = f" Did you mean {TIMM}{near}?" if near else ""
        raise UserError(f"timm has no trained weights {name!r}.{hint}", parameter="init")
    config: Any = timm.get_pretrained_cfg(name)
    size = min(int(config.input_size[-1]), 224)
    preparation = Preparation(tuple(config.mean), tuple(config.std), size, "timm")
    if config.hf_hub_id:
        return _from_hub(name, config.hf_hub_id, config.hf_hub_filename), preparation
    return _from_url(f"{TIMM}{name}", config.url), preparation


def _from_hub(name: str, repository: str, filename: str | None) -> Path:
    """A file of the Hugging Face hub, which its own library keeps in a cache."""
    import huggingface_hub as hub

    tries = [filename] if filename else ["model.safetensors", "pytorch_model.bin"]
    for file in tries:
        cached = hub.try_to_load_from_cache(repository, file)
        if isinstance(cached, str):
            return Path(cached)
    error: Exception | None = _no_network(hub.constants.ENDPOINT)
    for file in [] if error is not None else tries:
        try:
            return Path(hub.hf_hub_download(repository, file))
        except hub.errors.EntryNotFoundError as found:
            error = found
        except Exception as found:  # of many kinds: offline, no access, no room
            error = found
            break
    page = f"https://huggingface.co/{repository}"
    raise UserError(
        f"{TIMM}{name} is not on this machine, and cannot be fetched ({_reason(error)}); download "
        f"{tries[0]} from {page}, and give its path, or on a machine that is online run hf "
        f"download {repository} {tries[0]} and copy the folder into {_hub_cache()}.",
        parameter="init",
    )


def _no_network(address: str) -> Exception | None:
    """The error if the name of a server is not known; its library would try for a minute."""
    host = urlsplit(address).hostname
    if host is None or getproxies():  # a proxy knows the names
        return None
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        return error
    return None


def _hub_cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return str(HF_HUB_CACHE)


def _torchvision_file(name: str) -> tuple[Path, Preparation]:
    """The file of trained weights of torchvision: in the cache of torch.hub, or fetched."""
    from torchvision import models

    model, _, which = name.partition(".")
    known = models.list_models(models)
    if model not in known:
        near = nearest(model, known, cutoff=0.6)
        hint = f" Did you mean {TORCHVISION}{near}?" if near else ""
        raise UserError(f"torchvision has no classifier {model!r}.{hint}", parameter="init")
    every: Any = models.get_model_weights(model)
    if which and which not in every.__members__:
        raise UserError(
            f"torchvision's {model} has no weights {which!r}; it has {', '.join(every.__members__)}"
            ".",
            parameter="init",
        )
    weights = every[which or "DEFAULT"]
    transform = weights.transforms()
    preparation = Preparation(
        tuple(transform.mean), tuple(transform.std), int(transform.crop_size[0]), "torchvision"
    )
    return _from_url(f"{TORCHVISION}{name}", weights.url), preparation


def _from_url(name: str, url: str) -> Path:
    """A file by its address, which torch.hub keeps in a cache."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / os.path.basename(url)
    if path.is_file():
        return path
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fetch: Callable[..., None] = torch.hub.download_url_to_file
        fetch(url, str(beside), progress=True)
        shutil.move(beside, path)
    except Exception as error:  # of many kinds: offline, no room, a proxy
        beside.unlink(missing_ok=True)
        raise UserError(
            f"{name} is not on this machine, and cannot be fetched ({_reason(error)}); download "
            f"{url} on a machine that is online, and put it into {folder}, or give its path.",
            parameter="init",
        ) from None
    return path


def _reason(error: Exception | None) -> str:
    text = " ".join(str(getattr(error, "reason", None) or error).split()).rstrip(".")
    return f"{type(error).__name__}: {text[:120]}" if text else type(error).__name__

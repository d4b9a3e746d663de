"""A fine-tuned encoder with its classifier, ready to predict classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unmix.checksums import (
    CHECKSUM,
    PLACEHOLDER,
    safetensors_bytes,
    weights_digest,
    with_checksum,
)
from unmix.errors import UserError
from unmix.evaluation.encoder import LoadedEncoder, load_encoder, read_weights
from unmix.evaluation.finetuning import Classifier
from unmix.files import as_path, atomic_path
from unmix.schema import checked
from unmix.transfer import usual_defaults

__all__ = ["HEAD_FILE", "LoadedClassifier", "load_classifier", "read_head", "write_head"]

HEAD_FILE = "head.safetensors"
"""The classifier, beside its encoder in the folder of a fine-tuning."""


class LoadedClassifier(nn.Module):
    """A classifier that is ready to use: an encoder and its linear layer, in evaluation mode.

    As a module it maps prepared images to logits: `classifier(images)`.

    Attributes:
        encoder: The encoder; see `LoadedEncoder` for its `transform`, `views` and `facts`.
        head: The linear layer, features (N, D) to logits (N, classes).
        classes: Their names, in the order of the logits.
    """

    def __init__(self, encoder: LoadedEncoder, head: nn.Linear, classes: Sequence[str]) -> None:
        super().__init__()
        self.encoder, self.head, self.classes = encoder, head, tuple(classes)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Map prepared images (N, 3, size, size) to logits (N, classes)."""
        return self.head(self.encoder(images))

    @torch.no_grad()
    def probabilities(self, images: Any, **options: Any) -> Tensor:
        """Softmax over the classes: float32 (N, classes), on the classifier's device.

        They are not calibrated: that of a predicted class is usually higher than the share of such
        predictions that are right (Guo et al. 2017, arXiv 1706.04599).

        Args:
            images: As of `LoadedEncoder.encode`: paths, PIL images, uint8 arrays or tensors, or a
                folder.
            options: `batch_size` and `range`, likewise.

        Raises:
            UserError: if an image cannot be read, or has another type or range; it is named.
        """
        features = self.encoder.encode(images, **options).to(self.head.weight.dtype)
        return self.head(features).float().softmax(dim=1)

    def predict(self, images: Any, **options: Any) -> list[str]:
        """The class of each image: the one of highest probability. See `probabilities`."""
        best = self.probabilities(images, **options).argmax(dim=1)
        return [self.classes[i] for i in best.tolist()]


@usual_defaults()
def load_classifier(folder: Path | str, *, device: torch.device | str = "cpu") -> LoadedClassifier:
    """Load what `unmix finetune` trained: an encoder and its classifier; no code in it is run.

        classifier = unmix.load_classifier("runs/a/finetune/NAME")
        names = classifier.predict(["a.jpg", "b.jpg"])

    Args:
        folder: The folder of the fine-tuning, or the encoder file in it.
        device: Device of the classifier.

    Raises:
        UserError: if there is no classifier, it is damaged, or it is of another encoder.
    """
    encoder = load_encoder(folder, device=device)
    path = as_path(folder)
    return read_head(path if path.is_dir() else path.parent, encoder)


def read_head(folder: Path, encoder: LoadedEncoder) -> LoadedClassifier:
    """Read the classifier that was trained with an encoder.

    Args:
        folder: The folder that has it.
        encoder: The encoder, on any device; the classifier is there too.

    Raises:
        UserError: as `load_classifier`.
    """
    path = folder / HEAD_FILE
    if not path.is_file():
        raise UserError(f"{folder}: {_missing(folder)}")
    weights, facts = read_weights(path)
    remedy = "Give the command of its fine-tuning with --overwrite."
    classes = checked(list[str], facts.get("classes"), path, remedy)
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    count, dim = len(classes), encoder.feature_dim
    own = weights_digest(encoder.backbone.state_dict())
    # Files of earlier versions do not say which encoder's they are.
    if shapes != {"weight": (count, dim), "bias": (count,)} or facts.get("encoder", own) != own:
        raise UserError(f"{path}: is of another encoder than the one beside it. {remedy}")
    head = nn.utils.skip_init(nn.Linear, dim, count)
    head.load_state_dict(weights)
    head.requires_grad_(False)
    return LoadedClassifier(encoder, head.to(next(encoder.parameters()).device), classes)


def write_head(folder: Path, model: Classifier, classes: Sequence[str]) -> None:
    """Write the classifier of a fine-tuned encoder, whose file is beside it.

    Raises:
        UserError: if the file cannot be written.
    """
    weights = {k: v.detach().cpu().contiguous() for k, v in model.head.state_dict().items()}
    metadata = {"classes": list(classes), "encoder": weights_digest(model.backbone.state_dict())}
    with atomic_path(folder / HEAD_FILE) as beside:
        content = {name: json.dumps(value) for name, value in metadata.items()}
        content[CHECKSUM] = PLACEHOLDER
        beside.write_bytes(with_checksum(safetensors_bytes(weights, content)))


def _missing(folder: Path) -> str:
    """What to give instead of a folder that has no classifier."""
    trained = sorted(each.parent for each in (folder / "finetune").glob(f"*/{HEAD_FILE}"))
    if len(trained) == 1:
        return f"has an encoder alone; its classifier is in {trained[0]}."
    if trained:
        return (
            f"has an encoder alone; give one of its {len(trained)} classifiers: {trained[0]}, ..."
        )
    return "has no classifier; unmix finetune trains one, on labels."

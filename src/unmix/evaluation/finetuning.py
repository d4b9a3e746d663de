"""Fine-tuning of a whole encoder with a linear classifier, by published settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import lightning
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from unmix.backbones import HalfEncoders, feature_dim, is_vit, layer_scales, parameter_groups
from unmix.credit import shared_loss
from unmix.errors import UserError, check_number
from unmix.evaluation.protocol import Batches
from unmix.mixtures import MixtureOperator
from unmix.randomness import generator_for
from unmix.views import ViewSettings, preset

__all__ = ["FINE_TUNING", "Classifier", "FineTuneSettings", "FineTuning", "usual_fine_tuning"]

# Between the published 1% and 10%, in the middle on a logarithmic scale.
_FEW = 0.01 * math.sqrt(10)


@dataclass(frozen=True)
class FineTuneSettings:
    """How an encoder is fine-tuned.

    Args:
        epochs: Passes over the labeled images.
        batch_size: Images per step.
        lr: Learning rate of the encoder; its last layer's, if `lr_decay` is not 1.
        head_lr: Learning rate of the classifier.
        weight_decay: Of all parameters with SGD; not of biases and norms with AdamW.
        optimizer: SGD with momentum 0.9, with Nesterov's, or AdamW.
        schedule: How the rates fall: at the milestones, by half a cosine from epoch to epoch, or
            by one from step to step.
        source: Where it was published.
        milestones: Numbers of finished epochs after which the rates are multiplied by `gamma`.
        gamma: That factor.
        warmup_epochs: Epochs in which the rates rise linearly from 0.
        final_lr: Where a cosine of the encoder's rate ends; the classifier's in proportion.
        lr_decay: Factor of the rate from layer to layer, towards the first; 1 for the same rate.
        label_smoothing: Share of the target that is spread over all classes.
        head_std: Standard deviation of the classifier's weights at the start.
        scaled: Whether the rates are proportional to the batch size, as published.
        mixture: Mixes every batch, and the loss is shared among the labels of the mixed images, by
            their shares; None for none.

    Raises:
        UserError: if a number is out of range.
    """

    epochs: int
    batch_size: int
    lr: float
    head_lr: float
    weight_decay: float
    optimizer: Literal["sgd", "nesterov", "adamw"]
    schedule: Literal["step", "cosine", "step cosine"]
    source: str
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_epochs: float = 0.0
    final_lr: float = 0.0
    lr_decay: float = 1.0
    label_smoothing: float = 0.0
    head_std: float = 0.01
    scaled: bool = False
    mixture: MixtureOperator | None = None

    def __post_init__(self) -> None:
        check_number("epochs", self.epochs, at_least=1)
        check_number("batch_size", self.batch_size, at_least=2)
        check_number("lr", self.lr, above=0)
        check_number("head_lr", self.head_lr, above=0)
        check_number("weight_decay", self.weight_decay, at_least=0)
        check_number("lr_decay", self.lr_decay, above=0, at_most=1)

    @property
    def views(self) -> ViewSettings:
        """The augmentation of the labeled images: crops of 8% to 100% of the area, and flips."""
        return replace(preset("cmc"), crop_scale_min=0.08)

    def changed(
        self, epochs: int | None = None, batch_size: int | None = None, **others: float | None
    ) -> FineTuneSettings:
        """The settings with other ones in place of the published.

        Milestones and warmup move in proportion to the epochs. Rates that are not given follow the
        batch size, where they were published as proportional to it.

        Args:
            epochs: None for the published number, as for all others.
            batch_size: Images per step.
            others: Rates, weight decay and `lr_decay`.

        Raises:
            UserError: if a number is out of range.
        """
        found = self
        if epochs is not None:
            check_number("epochs", epochs, at_least=1)
            share = epochs / self.epochs
            moved = tuple(round(milestone * share) for milestone in self.milestones)
            warmup = self.warmup_epochs * share
            found = replace(found, epochs=epochs, milestones=moved, warmup_epochs=warmup)
        if batch_size is not None:
            check_number("batch_size", batch_size, at_least=2)
            factor = batch_size / self.batch_size if self.scaled else 1.0
            found = replace(found, batch_size=batch_size).times(factor)
        given: dict[str, Any] = {k: v for k, v in others.items() if v is not None}
        return replace(found, **given)

    def times(self, factor: float) -> FineTuneSettings:
        """The settings with both rates multiplied."""
        return replace(self, lr=self.lr * factor, head_lr=self.head_lr * factor)

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """Factor of the rates at a step, counted from 0."""
        position = step / steps_per_epoch
        if position < self.warmup_epochs:
            return position / self.warmup_epochs
        if self.schedule == "step":
            return self.gamma ** sum(position >= milestone for milestone in self.milestones)
        if self.schedule == "cosine":
            position = math.floor(position)
        share = (position - self.warmup_epochs) / max(1e-9, self.epochs - self.warmup_epochs)
        last = self.final_lr / self.lr
        return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def swav_fine_tuning(share: float) -> FineTuneSettings:
    """SwAV (arXiv 2006.09882, eval_semisup.py and its README): 20 epochs, batches of 8 x 32.

    Rates 0.01 and 0.2 with 10% of the labels, 0.02 and 5 with 1%; both fall to a fifth after epoch
    12 and 16. No weight decay.
    """
    lr, head_lr = (0.02, 5.0) if share < _FEW else (0.01, 0.2)
    return FineTuneSettings(
        20, 256, lr, head_lr, 0.0, "sgd", "step", "eval_semisup.py, arXiv 2006.09882",
        milestones=(12, 16), gamma=0.2,
    )  # fmt: skip


def vicreg_fine_tuning(share: float) -> FineTuneSettings:
    """VICReg (arXiv 2105.04906, evaluate.py and its README): 20 epochs, batches of 256, cosine.

    Rates 0.01 and 0.1 with 10% of the labels, 0.03 and 0.08 with 1%. No weight decay.
    """
    lr, head_lr = (0.03, 0.08) if share < _FEW else (0.01, 0.1)
    return FineTuneSettings(
        20, 256, lr, head_lr, 0.0, "sgd", "cosine", "evaluate.py and its README, arXiv 2105.04906"
    )


def simclr_fine_tuning(share: float) -> FineTuneSettings:
    """SimCLR (arXiv 2002.05709, appendix B.5): Nesterov momentum, one rate for all.

    Rate 0.05 x batch size / 256, batches of 4096, 60 epochs with 1% of the labels, 30 with 10%. No
    warmup, no weight decay; the released code's cosine.
    """
    return FineTuneSettings(
        60 if share < _FEW else 30, 4096, 0.8, 0.8, 0.0, "nesterov", "step cosine",
        "appendix B.5, arXiv 2002.05709", scaled=True,
    )  # fmt: skip


def mae_fine_tuning(share: float) -> FineTuneSettings:
    """MAE's ViT-B (arXiv 2111.06377, table 9; FINETUNE.md), all labels: AdamW, layer-wise decay.

    Rate 5e-4 x batch size / 256, batches of 1024, 100 epochs of which 5 are warmup, weight decay
    0.05, layer-wise decay 0.65, label smoothing 0.1. Crops and flips alone: RandAugment, random
    erasing and stochastic depth of the original are left out, mixup and CutMix are an option.
    """
    return FineTuneSettings(
        100, 1024, 2e-3, 2e-3, 0.05, "adamw", "step cosine",
        "table 9 and FINETUNE.md, arXiv 2111.06377", warmup_epochs=5, final_lr=1e-6,
        lr_decay=0.65, label_smoothing=0.1, head_std=2e-5, scaled=True,
    )  # fmt: skip


FINE_TUNING: dict[str, Callable[[float], FineTuneSettings]] = {
    "swav": swav_fine_tuning,
    "vicreg": vicreg_fine_tuning,
    "simclr": simclr_fine_tuning,
    "mae": mae_fine_tuning,
}
"""Published settings by name, from the share of the labels that are used, in (0, 1].

The first three were published for 1% and 10% of the labels: any other share has those of the nearer
one, all labels those of 10%."""


def usual_fine_tuning(backbone: nn.Module) -> str:
    """The name of the settings that are used by default: SwAV's, or MAE's of a transformer."""
    return "mae" if is_vit(backbone) else "swav"


class Classifier(nn.Module):
    """An encoder with a linear classifier.

    Args:
        backbone: Images to features (N, D), or CMC's half-encoders.
        classes: Number of classes.
        std: Standard deviation of the classifier's weights; biases are zero.
        generator: CPU generator of the weights.
    """

    def __init__(
        self, backbone: nn.Module, classes: int, std: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.backbone = backbone
        # Without using the global generator: the layer is created empty, then filled.
        self.head = nn.utils.skip_init(nn.Linear, feature_dim(backbone), classes)
        with torch.no_grad():
            self.head.weight.normal_(0.0, std, generator=generator)
            self.head.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        """Map prepared images (N, 3, size, size) to logits (N, classes)."""
        if isinstance(self.backbone, HalfEncoders):
            return self.head(self.backbone.features(images))
        return self.head(self.backbone(images))


class FineTuning(lightning.LightningModule):
    """Training of a classifier, encoder and all, for Lightning's trainer.

    Args:
        model: Starts from pretrained weights; trained in training mode, batch norm too.
        settings: How.
        batches: From an epoch to its augmented images and labels.
        steps_per_epoch: Batches of an epoch.
        say: Called after each epoch with the number of finished epochs and the mean loss.
        seed: Of the mixtures.

    Raises:
        UserError: if the rates are to differ by layer, and the encoder's layers are not known.
    """

    def __init__(
        self,
        model: Classifier,
        settings: FineTuneSettings,
        batches: Batches,
        steps_per_epoch: int,
        say: Callable[[int, float], None],
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(True).train()
        self.seed = seed
        self.settings, self.batches, self.say = settings, batches, say
        self.steps_per_epoch = steps_per_epoch
        self.finished = 0  # Lightning's current_epoch is one behind when a resumed fit begins
        self._losses: list[Tensor] = []
        self._groups = self._parameter_groups()

    def train_dataloader(self) -> Iterable[tuple[Tensor, Tensor]]:
        """The batches of the current epoch."""
        return _Epochs(self)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Cross-entropy of a batch, of mixtures that of the labels of both images by their shares.

        Source of the second: Zhang et al. 2018, mixup (arXiv 1710.09412); Yun et al. 2019, CutMix
        (arXiv 1905.04899).
        """
        images, labels = batch
        mixture = self.settings.mixture
        draw = None
        if mixture is not None:
            generator = generator_for(self.seed, "finetune", "mixture", self.finished, index)
            draw = mixture.draw_for(images, generator)
            images = draw.apply(images)
        logits = self.model(images).float()

        def each(logits: Tensor, labels: Tensor) -> Tensor:
            smoothing = self.settings.label_smoothing
            return cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")

        if draw is None:
            loss = each(logits, labels).mean()
        else:
            loss = shared_loss(each, logits, labels, draw)
        self._losses.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        """Report the mean loss.

        Raises:
            UserError: if it is not finite.
        """
        loss = float(torch.stack(self._losses).mean())
        self._losses.clear()
        self.finished += 1
        if not math.isfinite(loss):
            raise UserError(
                f"fine-tuning diverged in epoch {self.finished} (the loss is {loss}); "
                "use smaller rates, --lr and --head_lr, or --select."
            )
        self.say(self.finished, loss)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the number of finished epochs."""
        checkpoint["finished_epochs"] = self.finished

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on after the finished epochs."""
        self.finished = int(checkpoint["finished_epochs"])

    def configure_optimizers(self) -> Any:
        """The optimizer, and the schedule of each step."""
        settings = self.settings
        optimizer: Optimizer
        if settings.optimizer == "adamw":
            optimizer = AdamW(self._groups, settings.lr, weight_decay=settings.weight_decay)
        else:
            optimizer = SGD(
                self._groups, settings.lr, momentum=0.9, weight_decay=settings.weight_decay,
                nesterov=settings.optimizer == "nesterov",
            )  # fmt: skip
        schedule = LambdaLR(optimizer, lambda step: settings.factor(step, self.steps_per_epoch))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def _parameter_groups(self) -> list[dict[str, Any]]:
        settings, backbone = self.settings, self.model.backbone
        adamw = settings.optimizer == "adamw"
        # timm's list: embeddings of positions, class tokens, tables of relative positions.
        listed: Any = getattr(backbone, "no_weight_decay", set)
        names = listed()
        bare = {p for name, p in backbone.named_parameters() if name in names}

        def facts(p: nn.Parameter) -> dict[str, Any]:
            spared = adamw and (p.ndim <= 1 or p in bare)
            return {"weight_decay": 0.0 if spared else settings.weight_decay}

        scales = dict.fromkeys(backbone.parameters(), 1.0)
        if settings.lr_decay != 1:
            scales = layer_scales(backbone, settings.lr_decay)
        groups = parameter_groups(backbone.parameters(), settings.lr, scales, facts)
        head = list(self.model.head.parameters())
        ones = dict.fromkeys(head, 1.0)
        return [*groups, *parameter_groups(head, settings.head_lr, ones, facts)]


class _Epochs:
    """The batches of the current epoch; see `unmix.evaluation.sgd`."""

    def __init__(self, module: FineTuning) -> None:
        self.module = module

    def __len__(self) -> int:
        return self.module.steps_per_epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.module.batches(self.module.finished))

"""The published settings of linear classifiers on frozen encoders."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from unmix.errors import check_number
from unmix.views import ViewSettings, preset

__all__ = [
    "SGDSettings",
    "barlow_settings",
    "cmc_settings",
    "dino_settings",
    "moco_settings",
    "swav_settings",
    "vicreg_settings",
    "whitening_settings",
]


@dataclass(frozen=True)
class SGDSettings:
    """How a linear classifier is trained on a frozen encoder.

    Args:
        epochs: Passes over the training images.
        batch_size: Images per step.
        lr: Learning rate at the start.
        milestones: Numbers of finished epochs after which the rate is multiplied by `gamma`.
        gamma: That factor.
        weight_decay: L2 penalty on weights and biases.
        augmentation: Name of a preset of `unmix.views`; None to encode the images once, without
            augmentation.
        crop_scale_min: Least share of the image's area in a random crop; replaces the preset's.
        source: Where it was published.
        schedule: How the rate falls from epoch to epoch: at the milestones, by half a cosine to 0,
            or exponentially to `final_lr`.
        final_lr: Rate after the last epoch of an exponential schedule.
        optimizer: SGD with momentum 0.9, or Adam.
        start: Weights at the start: N(0, 0.01) and biases of zero, or PyTorch's of a linear layer.

    Raises:
        UserError: if a number is out of range.
    """

    epochs: int
    batch_size: int
    lr: float
    milestones: tuple[int, ...]
    gamma: float
    weight_decay: float
    augmentation: str | None
    crop_scale_min: float
    source: str
    schedule: Literal["step", "cosine", "exponential"] = "step"
    final_lr: float = 0.0
    optimizer: Literal["sgd", "adam"] = "sgd"
    start: Literal["normal", "uniform"] = "normal"

    @property
    def views(self) -> ViewSettings:
        """The augmentation of the training images."""
        return replace(preset(self.augmentation or "none"), crop_scale_min=self.crop_scale_min)

    def __post_init__(self) -> None:
        check_number("epochs", self.epochs, at_least=1)
        check_number("batch_size", self.batch_size, at_least=1)
        check_number("lr", self.lr, above=0)
        check_number("weight_decay", self.weight_decay, at_least=0)

    def shortened(self, epochs: int) -> SGDSettings:
        """Return the settings with another number of epochs, the milestones moved in proportion.

        Raises:
            UserError: if `epochs` is less than 1.
        """
        moved = tuple(round(milestone * epochs / self.epochs) for milestone in self.milestones)
        return replace(self, epochs=epochs, milestones=moved)


def cmc_settings(data: str, color_space: str = "RGB", width: float = 1.0) -> SGDSettings:
    """Settings of CMC (arXiv 1906.05849), and of the code of image mixtures.

    60 epochs; for half-encoders (Lab, YCbCr) at learning rate 30, or 50 from width 2 on; for RGB
    encoders at 10 on ImageNet-100, 30 on ImageNet, and elsewhere 0.1, the default of the code.

    Args:
        data: Name of the data set, as "imagenet100" or "imagenet".
        color_space: "RGB", "Lab" or "YCbCr"; what the encoder sees.
        width: Width of the encoder.
    """
    if color_space == "RGB":
        lr = {"imagenet100": 10.0, "imagenet": 30.0}.get(data, 0.1)
        augmentation, source = "moco-v1", "eval_moco_ins.py, arXiv 1906.05849"
    else:
        lr = 50.0 if width >= 2 else 30.0
        augmentation, source = "cmc", "LinearProbing.py, arXiv 1906.05849"
    crop = 0.08 if data == "imagenet" else 0.2
    return SGDSettings(60, 256, lr, (30, 40, 50), 0.2, 0.0, augmentation, crop, source)


def moco_settings(data: str, color_space: str = "RGB", width: float = 1.0) -> SGDSettings:
    """Settings of MoCo (arXiv 1911.05722): 100 epochs at learning rate 30, whatever the encoder."""
    return SGDSettings(
        100, 256, 30.0, (60, 80), 0.1, 0.0, "cmc", 0.08, "main_lincls.py, arXiv 1911.05722"
    )


def swav_settings(data: str, color_space: str = "RGB", width: float = 1.0) -> SGDSettings:
    """Settings of SwAV (arXiv 2006.09882): rate 0.3 for batches of 256 (8 x 32), cosine."""
    return _cosine(0.3, 1e-6, "eval_linear.py, arXiv 2006.09882")


def barlow_settings(data: str, color_space: str = "RGB", width: float = 1.0) -> SGDSettings:
    """Settings of Barlow Twins (arXiv 2103.03230): SwAV's, at rate 0.3."""
    return _cosine(0.3, 1e-6, "evaluate.py and section 3.1, arXiv 2103.03230")


def vicreg_settings(data: str, color_space: str = "RGB", width: float = 1.0) -> SGDSettings:
    """Settings of VICReg (arXiv 2105.04906): SwAV's, at rate 0.02."""
    return _cosine(0.02, 1e-6, "evaluate.py and its README, arXiv 2105.04906")


def dino_settings(data: str, color_space: str = "RGB", width: float = 1.0) -> SGDSettings:
    """Settings of DINO (arXiv 2104.14294): rate 0.001, no weight decay; the last features alone.

    The released code gives a ViT-S's classifier the class tokens of the last four blocks. Here it
    is given the encoder's features, which are those of the last block, or a layer of choice.
    """
    return _cosine(0.001, 0.0, "eval_linear.py, arXiv 2104.14294")


def whitening_settings(data: str, color_space: str = "RGB", width: float = 1.0) -> SGDSettings:
    """Settings of W-MSE (arXiv 2007.06346, section 4): Adam on features that are encoded once.

    500 epochs, in batches of 1000, the rate falling exponentially from 1e-2 to 1e-6. The released
    code (eval/sgd.py) leaves out an incomplete last batch; here it counts.
    """
    return SGDSettings(
        500, 1000, 1e-2, (), 1.0, 5e-6, None, 1.0, "section 4 and eval/sgd.py, arXiv 2007.06346",
        "exponential", 1e-6, "adam", "uniform",
    )  # fmt: skip


def _cosine(lr: float, weight_decay: float, source: str) -> SGDSettings:
    """100 epochs of crops and flips in batches of 256."""
    return SGDSettings(100, 256, lr, (), 1.0, weight_decay, "cmc", 0.08, source, schedule="cosine")

"""Faster R-CNN on a ResNet that was pretrained, with a feature pyramid or on its fourth stage."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from unmix.backbones import HalfEncoders, is_vit
from unmix.errors import UserError, check_choice

__all__ = ["faster_rcnn"]

_STAGES = ("layer1", "layer2", "layer3", "layer4")


def faster_rcnn(
    backbone: nn.Module,
    classes: int,
    *,
    head: str = "fpn",
    batch_norm: str = "train",
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    sides: tuple[int, ...] = (800,),
    longest: int = 1333,
    proposals: int = 1000,
) -> FasterRCNN:
    """Build torchvision's Faster R-CNN (Ren et al., arXiv 1506.01497) on a copy of a backbone.

    `fpn`: a feature pyramid over the four stages (arXiv 1612.03144). `c4`: proposals and regions
    on the output of the third stage, and the fourth stage as the regions' head, with a batch norm
    after it that MoCo adds. As in MoCo (arXiv 1911.05722, Sec. 4.2 and appendix) all layers
    are trained, batch norm too, which is synchronized over devices, and what is new has batch norm.
    Anchors are scaled with the stages' strides, which a stem for small images halves.

    Args:
        backbone: A ResNet of this package or of timm; it is not changed.
        classes: Number of classes without the background.
        head: "fpn" or "c4".
        batch_norm: "train", or "frozen": the backbone's statistics and factors stay as they are,
            for batches of very few images.
        mean, std: Normalization of the encoder.
        sides: Length of the shorter side in training, of which one is drawn; the last in test.
        longest: Bound of the longer side.
        proposals: Regions of an image that the head classifies in test; in training it samples 512,
            or so many, of twice as many.

    Raises:
        UserError: if the backbone has no four stages.
    """
    check_choice("head", head, ("fpn", "c4"))
    check_choice("batch_norm", batch_norm, ("train", "frozen"))
    stages = _stages(backbone)
    if batch_norm == "frozen":
        for name in stages:
            stages[name] = _frozen(stages[name])
    for parameter in stages.parameters():
        parameter.requires_grad_(True)
    strides, channels = _measured(stages)
    options: dict[str, Any] = {
        "image_mean": list(mean), "image_std": list(std), "max_size": longest,
        "min_size": sides if len(sides) > 1 else sides[0],
        "rpn_post_nms_top_n_train": 2 * proposals, "rpn_post_nms_top_n_test": proposals,
        "box_batch_size_per_image": min(512, proposals),
    }  # fmt: skip
    if head == "fpn":
        pyramid = BackboneWithFPN(
            stages, {s: str(i) for i, s in enumerate(_STAGES)}, channels, 256,
            norm_layer=nn.BatchNorm2d,
        )  # fmt: skip
        levels = [*strides, 2 * strides[-1]]
        per_level = tuple((8 * stride,) for stride in levels)
        anchors = AnchorGenerator(per_level, ((0.5, 1.0, 2.0),) * len(per_level))
        return FasterRCNN(pyramid, classes + 1, rpn_anchor_generator=anchors, **options)
    trunk = _Trunk(stages, channels[2])
    sizes = (tuple(strides[2] * times for times in (2, 4, 8, 16, 32)),)
    return FasterRCNN(
        trunk, rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=14, sampling_ratio=2),
        box_head=_FourthStage(stages["layer4"], channels[3]),
        box_predictor=FastRCNNPredictor(channels[3], classes + 1), **options,
    )  # fmt: skip


class _Trunk(nn.Sequential):
    """A ResNet up to its third stage."""

    def __init__(self, stages: nn.ModuleDict, channels: int) -> None:
        super().__init__(*(stages[name] for name in stages if name != "layer4"))
        self.out_channels = channels


class _FourthStage(nn.Module):
    """The head of C4: the fourth stage on each region, batch norm, mean over the region."""

    def __init__(self, stage: nn.Module, channels: int) -> None:
        super().__init__()
        self.stage, self.norm = stage, nn.BatchNorm2d(channels)

    def forward(self, regions: Tensor) -> Tensor:
        """Map regions `(n, C, 14, 14)` to features `(n, D)`."""
        return self.norm(self.stage(regions)).mean(dim=(2, 3))


def _stages(backbone: nn.Module) -> nn.ModuleDict:
    """A copy of the children up to the last stage, in their order."""
    if isinstance(backbone, HalfEncoders):
        raise _unfit("CMC's two encoders see lightness and color apart, and make no map together")
    if is_vit(backbone):
        raise _unfit(
            "a vision transformer has one map of one stride, and no stages for a pyramid (ViTDet, "
            "arXiv 2203.16527, adds them)"
        )
    children = dict(backbone.named_children())
    if not all(stage in children for stage in _STAGES):
        raise _unfit(f"{type(backbone).__name__} has no four stages")
    names = list(children)
    kept = names[: names.index("layer4") + 1]
    return nn.ModuleDict({name: copy.deepcopy(children[name]) for name in kept})


def _unfit(why: str) -> UserError:
    return UserError(f"needs a ResNet, of unmix or timm: {why}.", parameter="run", flag="RUN")


@torch.no_grad()
def _measured(stages: nn.ModuleDict) -> tuple[list[int], list[int]]:
    """Stride and channels of each stage."""
    side, strides, channels = 256, [], []
    x = torch.zeros(1, 3, side, side)
    for name, module in stages.items():
        training = module.training
        x = module.eval()(x)
        module.train(training)
        if name in _STAGES:
            strides.append(side // x.shape[-1])
            channels.append(x.shape[1])
    return strides, channels


def _frozen(module: nn.Module) -> nn.Module:
    """The module with its batch norms replaced by fixed affine maps."""
    if isinstance(module, nn.BatchNorm2d):
        if hasattr(module, "act"):
            raise _unfit("its batch norms include the activation, and cannot be frozen")
        fixed = FrozenBatchNorm2d(module.num_features, eps=module.eps)
        state = {k: v for k, v in module.state_dict().items() if k != "num_batches_tracked"}
        fixed.load_state_dict(state)
        return fixed
    for name, child in module.named_children():
        setattr(module, name, _frozen(child))
    return module

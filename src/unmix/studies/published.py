"""Speeds of devices, from the training times that papers and repositories report.

None was measured with this library: each is the operations that the run needed, counted as
`unmix.studies.planning` counts them, over the GPU time that its authors give.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DEVICES", "RUNS", "Device", "PublishedRun"]


@dataclass(frozen=True)
class Device:
    """What a device did in a published training.

    Attributes:
        flops: Sustained operations per second, by kind of network: "convnet", "transformer".
        memory: Of the device, in bytes.
        precision: Of that training.
        source: For each kind, the training.
    """

    flops: dict[str, float]
    memory: float
    precision: str
    source: dict[str, str]


@dataclass(frozen=True)
class PublishedRun:
    """A training with its reported time.

    Attributes:
        name: Method, network and length.
        gflops: Operations of an image in a step, in 1e9.
        images: Of an epoch.
        epochs: Passes.
        gpus: How many.
        hours: Reported, of the whole training.
        device: In `DEVICES`.
        kind: Of the network.
        source: Where it is reported.
        calibrates: Whether the device's speed is from this very run.
    """

    name: str
    gflops: float
    images: float
    epochs: float
    gpus: int
    hours: float
    device: str
    kind: str
    source: str
    calibrates: bool = False

    @property
    def sustained(self) -> float:
        """Operations per second and GPU."""
        return 1e9 * self.gflops * self.images * self.epochs / (3600 * self.hours * self.gpus)


_IMAGENET = 1_281_167
# ResNet-50 at 224, 160 and 96 pixels, and DeiT-S/16 at 224 and 96: operations of one encoding in
# 1e9, two for each multiplication and addition. A trained encoding counts three times.
_R224, _R160, _R96 = 8.18, 4.17, 1.51
_S224, _S96 = 9.2, 1.7

RUNS = (
    PublishedRun(
        "MoCo v1, ResNet-50, 200 epochs", 4 * _R224, _IMAGENET, 200, 8, 53,
        "v100-fp32", "convnet", "facebookresearch/moco, README", calibrates=True,
    ),
    PublishedRun(
        "Barlow Twins, ResNet-50, 1000 epochs", 3 * 2 * (_R224 + 0.3), _IMAGENET, 1000, 16, 7 * 24,
        "v100", "convnet", "facebookresearch/barlowtwins, README", calibrates=True,
    ),
    PublishedRun(
        "SwAV, ResNet-50, 2x224 + 6x96, 1 epoch", 3 * (2 * _R224 + 6 * _R96), _IMAGENET, 1, 64,
        220 / 3600, "v100", "convnet", "facebookresearch/swav, README",
    ),
    PublishedRun(
        "DeepCluster-v2, ResNet-50, 2x160 + 4x96, 1 epoch", 3 * (2 * _R160 + 4 * _R96), _IMAGENET,
        1, 64, 193 / 3600, "v100", "convnet", "facebookresearch/swav, README",
    ),
    PublishedRun(
        "DINO, DeiT-S/16, 2x224 + 8x96, 100 epochs", 3 * (2 * _S224 + 8 * _S96) + 2 * _S224,
        _IMAGENET, 100, 8, 1.75 * 24, "v100", "transformer", "facebookresearch/dino, README",
        calibrates=True,
    ),
    PublishedRun(
        "DINO, DeiT-S/16, 2x224 + 8x96, 300 epochs", 3 * (2 * _S224 + 8 * _S96) + 2 * _S224,
        _IMAGENET, 300, 16, 2.6 * 24, "v100", "transformer", "facebookresearch/dino, README",
    ),
    # RegNetY-256GF (1.3 billion weights), 2x160 + 4x96 pixels; activation checkpointing encodes
    # again in the backward pass, so each view counts four times.
    PublishedRun(
        "SEER, RegNetY-256GF, a billion images", 4 * 512 * (2 * (160 / 224) ** 2
        + 4 * (96 / 224) ** 2), 1e9, 1, 512, 114_890 * 6.125 / 3600, "v100", "convnet",
        "Goyal et al. 2021 (arXiv 2103.01988), Sec. 3.2",
    ),
)  # fmt: skip
"""Reported trainings: those that give a device its speed, and others, to check the plan."""


def _devices() -> dict[str, Device]:
    found: dict[str, Device] = {}
    for run in RUNS:
        if run.calibrates:
            precision = "float32" if run.device.endswith("fp32") else "mixed, 16 bits"
            known = found.setdefault(run.device, Device({}, 32e9, precision, {}))
            known.flops[run.kind] = run.sustained
            known.source[run.kind] = f"{run.name}: {run.source}"
    return found


DEVICES = _devices()
"""By name; `unmix plan --on NAME`."""

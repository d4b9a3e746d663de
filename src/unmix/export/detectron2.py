"""Backbones for detectron2: a pickle of arrays under its names, and a configuration."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import yaml

from unmix.backbones import RESNETS
from unmix.export.base import Target, refusal

__all__ = ["Detectron2", "detectron2_name"]

_BASIC = ("resnet18", "resnet34")


def detectron2_name(name: str) -> str:
    """detectron2's name of a tensor of torchvision's ResNet.

    As in its converter of torchvision's weights: the stem stands before, stage n is res(n + 1), a
    batch norm is part of its convolution.
    """
    parts = name.split(".")
    if parts[0].startswith("layer"):
        parts[0] = f"res{int(parts[0][5:]) + 1}"
    else:
        parts.insert(0, "stem")
    joined = ".".join(parts).replace("downsample.0", "shortcut")
    joined = joined.replace("downsample.1", "shortcut.norm")
    return re.sub(r"\bbn(\d)\b", r"conv\1.norm", joined)


class Detectron2(Target):
    """A pickle for `MODEL.WEIGHTS`, and a YAML file with what its ResNet needs beside it."""

    default = "detectron2.pkl"
    endings = (".pkl",)

    def names(self, out: Path) -> tuple[str, ...]:
        """The pickle and the configuration."""
        return (out.name, out.with_suffix(".yaml").name)

    def write(self, folder: Path, out: Path) -> None:
        """Write both."""
        self._check()
        arrays = {
            detectron2_name(name): value.numpy()
            for name, value in self.source.weights().items()
            if not name.endswith("num_batches_tracked")
        }
        content = {"model": arrays, "__author__": "unmix", "matching_heuristics": True}
        with open(folder / out.name, "wb") as file:
            pickle.dump(content, file)
        text = yaml.safe_dump(self._config(out), sort_keys=False)
        (folder / self.names(out)[1]).write_text(text, encoding="utf-8")

    def _check(self) -> None:
        source = self.source
        name, base = source.backbone, 64 * float(source.facts["width"])
        if source.halves or name not in RESNETS or name == "resnet10":
            what = "two half-encoders" if source.halves else source.facts["backbone"]
            raise refusal("detectron2", f"has ResNets of 18 layers or more, and this is {what}")
        if source.stem != "large":
            raise refusal(
                "detectron2", f"has the stem of 224 pixels only, and this encoder has the "
                f"{source.stem} one",
            )  # fmt: skip
        if base != round(base) or (name in _BASIC and base != 64):
            raise refusal("detectron2", f"has no {name} of width {source.facts['width']:g}")

    def _config(self, out: Path) -> dict[str, object]:
        facts, name = self.source.facts, self.source.backbone
        base = round(64 * float(facts["width"]))
        resnets = {
            "DEPTH": int(name.removeprefix("resnet")),
            "STRIDE_IN_1X1": False,
            "STEM_OUT_CHANNELS": base,
            "RES2_OUT_CHANNELS": base if name in _BASIC else 4 * base,
            "WIDTH_PER_GROUP": base,
        }
        model = {
            "WEIGHTS": str(out.absolute()),
            "PIXEL_MEAN": [round(255 * value, 4) for value in facts["mean"]],
            "PIXEL_STD": [round(255 * value, 4) for value in facts["std"]],
            "RESNETS": resnets,
        }
        return {"MODEL": model, "INPUT": {"FORMAT": "RGB"}}

    def usage(self, out: Path) -> list[str]:
        """Lines that load it."""
        config = out.with_name(self.names(out)[1])
        return [
            "from detectron2.config import get_cfg",
            "cfg = get_cfg()  # then merge your model's configuration",
            f"cfg.merge_from_file({str(config)!r})",
        ]

"""A folder in the layout of the Hugging Face Hub: weights, configuration, and a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unmix.errors import UserError
from unmix.export.base import Target
from unmix.export.weights import save_safetensors, timm_arguments

__all__ = ["Hub"]

_CONFIG, _WEIGHTS, _CARD = "config.json", "model.safetensors", "README.md"


class Hub(Target):
    """Loads by `timm.create_model("hf-hub:USER/NAME")` where timm has the network.

    Otherwise (stems for small images, other widths, half-encoders) unmix.load_encoder loads it,
    and the card says so.
    """

    default = "hub"

    @property
    def folder(self) -> bool:
        """It is a folder."""
        return True

    def names(self, out: Path) -> tuple[str, ...]:
        """The files in the folder."""
        return (_WEIGHTS, _CONFIG, _CARD)

    def _timm(self) -> tuple[str, dict[str, Any]] | None:
        """Model and arguments of timm; None if it does not build this network."""
        if self.source.stem != "large":
            return None
        try:
            return timm_arguments(self.source, "hub")
        except (UserError, ImportError):
            return None

    def write(self, folder: Path, out: Path) -> None:
        """Write the files."""
        source = self.source
        save_safetensors(folder / _WEIGHTS, source.weights(), source.metadata())
        config = self._config()
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / _CONFIG).write_text(text, encoding="utf-8")
        library = "unmix" if self._timm() is None else "timm"
        how = [] if "fine_tuned" in source.facts else ["self-supervised-learning"]
        tags = ["image-feature-extraction", *how, source.facts["method"]]
        card = source.card.text(
            library=library, tags=[*tags, *dict.fromkeys(("unmix", library))],
            usage=self._card_usage(), prepared=self._prepared(),
        )  # fmt: skip
        (folder / _CARD).write_text(card, encoding="utf-8")

    def _prepared(self) -> list[str]:
        size = self.source.facts["size"]
        parts = [f"It takes {self.source.normalization}", *self.source.preparation.values()]
        found = [f"{part[0].upper()}{part[1:]}." for part in parts]
        if self._timm() is not None:
            found.append(
                f"Images of exactly {size} x {size} px were evaluated whole, which this transform "
                "would crop."
            )
        return found

    def _config(self) -> dict[str, Any]:
        facts, found = self.source.facts, self._timm()
        if found is None:
            return {"library_name": "unmix", "architecture": facts["backbone"], **facts}
        name, arguments = found
        backbone: Any = self.source.encoder.backbone
        size = facts["size"]
        resized = round(size * 256 / 224)
        pretrained = {
            "tag": "unmix", "custom_load": False, "input_size": [3, size, size],
            "fixed_input_size": False, "interpolation": "bilinear",
            # timm rounds size / crop_pct down, and the evaluation rounds it to the nearest.
            "crop_pct": size / (resized + 0.25), "crop_mode": "center",
            "mean": list(facts["mean"]), "std": list(facts["std"]), "num_classes": 0,
            "pool_size": None,
            "first_conv": getattr(backbone, "default_cfg", {}).get("first_conv", "conv1"),
            "classifier": getattr(backbone, "default_cfg", {}).get("classifier", "fc"),
        }  # fmt: skip
        return {
            "architecture": name, "num_classes": 0, "num_features": self.source.encoder.feature_dim,
            "model_args": arguments, "pretrained_cfg": pretrained,
        }  # fmt: skip

    def _card_usage(self) -> list[str]:
        """Lines for the card: from the Hub, under a name that the user gives."""
        if self._timm() is None:
            return [
                "import unmix",
                'encoder = unmix.load_encoder("FOLDER")  # a copy of this repository',
                'features = encoder.encode(["a.jpg", "b.jpg"])',
            ]
        return [
            "import timm",
            'model = timm.create_model("hf-hub:USER/NAME", pretrained=True).eval()',
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        ]

    def usage(self, out: Path) -> list[str]:
        """Lines that load it from the disk."""
        if self._timm() is None:
            return ["import unmix", f"encoder = unmix.load_encoder({str(out)!r})"]
        path = f"local-dir:{out}"
        return ["import timm", f"model = timm.create_model({path!r}, pretrained=True).eval()"]

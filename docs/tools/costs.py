"""What a step of each method costs, counted: the numbers of the page that helps to choose one.

python docs/tools/costs.py     counts, and rewrites docs/methods/costs.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(DOCS), str(DOCS.parent / "src")]

__all__ = ["COSTS", "WITH_TEACHERS", "cost", "kept"]

COSTS = DOCS / "methods" / "costs.json"
WITH_TEACHERS = {"distill"}
"""Methods whose cost is that of the teacher they are given, beside the student's."""
_IMAGES = 50_000


def cost(method: str) -> dict[str, Any]:
    """Forward-equivalents of a step and millions of parameters, by the recipe for CIFAR-10.

    Args:
        method: Its name.

    Returns:
        `plain` and `unmix`, forward-equivalents without a mixture and with Un-Mix; `parameters`,
        millions of all networks over those of the backbone; `backbone`, its name.
    """
    from unmix.config import Settings
    from unmix.config.recipes import resolve
    from unmix.studies.cost import forward_equivalents
    from unmix.training.run.parts import build_method

    of_method = resolve({"method": method, "data": "cifar10"}, method)[0]
    # A transformer of the method's recipe has patches for 224 pixels.
    of_patches = str(of_method.get("backbone")).startswith("timm:")
    words = resolve({}, f"{method}-cifar10")[0] if of_patches else of_method | {"size": 32}
    plain, mixed = (Settings.of({**words, "unmix": unmix}) for unmix in (False, True))
    built = build_method(plain, _IMAGES, 32)
    own = sum(p.numel() for p in built.backbone.parameters())
    return {
        "plain": round(forward_equivalents(plain, _IMAGES), 1),
        "unmix": round(forward_equivalents(mixed, _IMAGES), 1),
        "parameters": round(sum(p.numel() for p in built.parameters()) / own, 1),
        "backbone": plain.model.backbone,
    }


def kept() -> dict[str, dict[str, Any]]:
    """The numbers that were counted, by method."""
    return json.loads(COSTS.read_text(encoding="utf-8"))


def _write() -> None:
    from unmix.methods import METHODS

    found = {}
    for name in sorted(METHODS.keys() - WITH_TEACHERS):
        found[name] = cost(name)
        print(name, found[name], flush=True)
    ordered = {name: found[name] for name in METHODS if name in found}
    COSTS.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    _write()

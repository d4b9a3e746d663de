"""Lists that follow the registries: the table of methods, and the features on the first pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tools.costs import WITH_TEACHERS, kept
from tools.markdown import table

__all__ = ["choices", "features", "methods"]

DOCS = Path(__file__).resolve().parents[1]
# The names in the literature of what the settings call coin, global and region.
SEED_WORDS = {"coin": "Un-Mix (MixUp or CutMix)", "global": "MixUp", "region": "CutMix"}


def read_page(path: Path) -> tuple[dict[str, Any], str]:
    """The front matter and the title of a page."""
    head, body = path.read_text(encoding="utf-8").removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(head), body.strip().splitlines()[0].removeprefix("# ")


def pages() -> dict[str, tuple[dict[str, Any], str]]:
    """Front matter and title of the page of every registered method, oldest paper first.

    Raises:
        FileNotFoundError: if a method has no page.
    """
    from unmix.methods import METHODS

    found = {name: read_page(DOCS / "methods" / f"{name}.md") for name in METHODS}
    return dict(sorted(found.items(), key=lambda item: (item[1][0]["year"], item[1][0]["arxiv"])))


def methods() -> str:
    """The methods with the front matter of their pages."""
    rows = []
    for name, (facts, title) in pages().items():
        year = f"[{facts['year']}](https://arxiv.org/abs/{facts['arxiv']})"
        columns = ("compares", "negatives", "memory", "against_collapse", "views")
        rows.append([f"[{title}]({name}.md)", year, *(str(facts[column]) for column in columns)])
    head = ("method", "year", "compares", "negatives", "memory", "against collapse", "views")
    return table(head, rows)


def choices() -> str:
    """What speaks for each method and against it, and what its step costs."""
    costs, rows = kept(), []
    for name, (facts, title) in pages().items():
        if name in WITH_TEACHERS:
            of_step = "3 + teacher", "6 + teacher", "teacher's"
        else:
            found = costs[name]
            of_step = f"{found['plain']:g}", f"{found['unmix']:g}", f"{found['parameters']:g}"
        rows.append([f"[{title}]({name}.md)", facts["pros"], facts["cons"], *of_step])
    head = ("method", "for it", "against it", "cost", "with Un-Mix", "parameters")
    return table(head, rows)


def features(base: str = "") -> str:
    """What the package has, counted from its registries.

    Args:
        base: Where the links of the table start, such as "docs/" in the README.
    """
    from unmix.config.catalog import catalog
    from unmix.config.recipes import recipe_names
    from unmix.export import TARGETS
    from unmix.mixtures import MIXTURES

    def code(names: Any) -> str:
        return ", ".join(f"`{name}`" for name in names)

    titles = ", ".join(title for _, title in pages().values())
    mixtures = ", ".join(SEED_WORDS.get(n, choice.kind.__name__) for n, choice in MIXTURES.items())
    rules, exports = catalog().rules, ", ".join(TARGETS)
    rows = [
        (
            f"[{len(pages())} methods]({base}methods/index.md)",
            f"{titles}; [your own]({base}how-to/own-method.md)",
        ),
        (
            f"[{len(MIXTURES)} mixtures]({base}usage.md#mixtures)",
            f"{mixtures}; image space (`--IM`), Cutout, RandomErasing, DACL",
        ),
        (f"[{len(rules)} mixing rules]({base}rules.md)", f"{code(rules)}"),
        (
            f"[{len(recipe_names())} recipes]({base}reference/recipes.md)",
            "settings of published experiments, with the source of each number",
        ),
        (
            f"[backbones and data]({base}usage.md)",
            "ResNets, AlexNet, any timm model or `nn.Module`; built-in sets, folders, lists, "
            "packs, PyTorch and Hugging Face data sets, 8 to 16 bits",
        ),
        (
            f"[large data and machines]({base}how-to/large-data.md)",
            f"WebDataset shards by URL; [torchrun, SLURM, Ray]({base}how-to/several-devices.md), "
            f"batches in parts, a [plan]({base}scaling.md) of time, memory and cost, "
            f"runs that [survive]({base}reliability.md) kills, full disks and lost processes",
        ),
        (
            f"[studies]({base}studies.md)",
            "conditions x paired seeds, equal compute, exact tests, a verdict in words",
        ),
        (
            f"[weights to start from]({base}how-to/continue-from-weights.md)",
            "checkpoints of other projects, timm, torchvision and Hugging Face, checked tensor by "
            "tensor",
        ),
        (
            f"[evaluation]({base}how-to/evaluate.md)",
            "kNN, linear probes by published protocols, fine-tuning on all labels or a part, "
            f"transfer, [detection]({base}how-to/detection.md), "
            f"[quality without labels]({base}how-to/without-labels.md)",
        ),
        (
            f"[reports and figures]({base}how-to/figures.md)",
            "comparison by condition with a verdict, interactive, live; softmax, t-SNE, UMAP ...",
        ),
        (
            f"[use of the encoder]({base}how-to/use-the-encoder.md)",
            "features of a folder, nearest neighbors, near-duplicates; classes, after fine-tuning; "
            f"export to {exports}",
        ),
        (
            f"[speed]({base}performance.md)",
            "data and views on the device, bfloat16, one forward per mixture; CPU, CUDA, MPS, DDP, "
            "FSDP2",
        ),
    ]
    return table(("feature", "supported"), rows)

"""Tables of the published evaluation settings, made from the registries."""

from __future__ import annotations

from tools.markdown import table

__all__ = ["fine_tuning", "probes"]


def probes() -> str:
    """The settings of the linear classifiers."""
    from unmix.evaluation import PROBES, PROTOCOLS
    from unmix.evaluation.sgd import SGDProbe

    rows = []
    for name in PROBES:
        protocol = PROTOCOLS[name]
        if not isinstance(protocol, SGDProbe):
            continue
        found = protocol.published("imagenet", "RGB", 1.0)
        falls = {
            "step": f"x {found.gamma:g} after {', '.join(map(str, found.milestones))}",
            "cosine": "cosine to 0",
            "exponential": f"exponential to {found.final_lr:g}",
        }[found.schedule]
        color = "crop, flip, color" if found.views.jitter_p else "crop, flip"
        images = color if protocol.needs_images else "none, encoded once"
        rows.append(
            (f"`{name}`", {"sgd": "SGD", "adam": "Adam"}[found.optimizer], f"{found.lr:g}", falls,
             str(found.epochs), str(found.batch_size), f"{found.weight_decay:g}", images,
             found.source)
        )  # fmt: skip
    head = ("protocol", "optimizer", "rate", "falls", "epochs", "batch", "weight decay",
            "augmentation", "source")  # fmt: skip
    return table(head, rows)


def fine_tuning() -> str:
    """The settings of fine-tuning, with 1% and with 10% of the labels."""
    from unmix.evaluation.finetuning import FINE_TUNING

    rows = []
    for name, published in FINE_TUNING.items():
        few, many = published(0.01), published(0.1)

        def both(word: str, few: object = few, many: object = many) -> str:
            pair = [f"{getattr(each, word):g}" for each in (few, many)]
            return pair[0] if pair[0] == pair[1] else " / ".join(pair)

        falls = (
            f"x {many.gamma:g} after {', '.join(map(str, many.milestones))}"
            if many.schedule == "step"
            else "cosine"
        )
        kind = {"sgd": "SGD", "nesterov": "SGD, Nesterov", "adamw": "AdamW"}[many.optimizer]
        rows.append(
            (f"`{name}`", kind, both("lr"), both("head_lr"), falls, both("epochs"),
             str(many.batch_size), f"{many.weight_decay:g}", f"{many.lr_decay:g}", many.source)
        )  # fmt: skip
    head = ("settings", "optimizer", "rate of the encoder", "of the classifier", "fall", "epochs",
            "batch", "weight decay", "layer decay", "source")  # fmt: skip
    return table(head, rows)

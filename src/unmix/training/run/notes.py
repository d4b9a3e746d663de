"""Notes and warnings about settings, printed before a run starts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from unmix.backbones import has_batch_norm, layer_scales
from unmix.config import MixtureSettings, OptimizerSettings, Settings, ViewSettings
from unmix.config.augmentation import RECIPE
from unmix.config.catalog import catalog
from unmix.config.groups import TIMM
from unmix.display import counted
from unmix.methods import Method, method_class
from unmix.mixtures import Cutout, MixtureOperator
from unmix.training.loop.accumulation import accumulation_line
from unmix.views.kinds import view_kinds

__all__ = [
    "cutout_line",
    "note_on_width",
    "notes_on_image_space",
    "notes_on_layers",
    "notes_on_mixture",
    "notes_on_parts",
    "notes_on_queue",
    "notes_on_rates",
    "notes_on_schedule",
    "notes_on_settings",
    "notes_on_sizes",
    "notes_on_sub_batches",
    "notes_on_views",
    "notes_on_weights",
    "top_of_warmup",
]

_PUBLISHED = 224
_LARGE_SHARE = 0.25
# The widest published encoders are of width 4 (SimCLR, BYOL).
_WIDE = 4.0


def notes_on_views(settings: Settings, method: Method) -> tuple[str, ...]:
    """The augmentation, if it was given by name; a note if views are all alike and not mixed."""
    name, mixture = settings.run.augmentation, settings.mixture
    lines = [f"augmentation: {name}"] if name != RECIPE else []
    alike = settings.views.changes_nothing and method.views > 1
    if alike and not (mixture.unmix or mixture.IM):
        lines.append(
            "note: the views of an image are all the same, since nothing is augmented and nothing "
            "is mixed; --unmix gives the encoder something harder to learn from"
        )
    return tuple(lines)


def notes_on_settings(
    settings: Settings,
    method: Method,
    operators: Sequence[MixtureOperator],
    size: int,
    images: int,
) -> tuple[str, ...]:
    """All notes on how the settings of a run go together.

    Args:
        settings: Of the run.
        method: As it was built.
        operators: Its label-space mixtures.
        size: Side of the views in pixels.
        images: Number of training images.
    """
    return (
        *notes_on_queue(method, images),
        *notes_on_sub_batches(settings, method),
        *notes_on_layers(settings, method),
        *notes_on_parts(settings, method),
        *(line for each in operators for line in notes_on_mixture(method, each)),
        *notes_on_image_space(settings.mixture),
        *notes_on_schedule(settings),
        *notes_on_rates(settings),
        *notes_on_sizes(settings.mixture, settings.views, size),
    )


def notes_on_queue(method: Method, images: int) -> tuple[str, ...]:
    """A note if a queue holds more keys than there are images to train on."""
    longest = method.queue_length
    if longest <= images:
        return ()
    return (
        f"note: the queue of {longest:,} keys is longer than the {images:,} images, so that it "
        "holds earlier keys of the images that are compared with it; usual is at most a tenth of "
        f"the images: --queue_size {max(1, images // 10)}",
    )


def notes_on_sub_batches(settings: Settings, method: Method) -> tuple[str, ...]:
    """A note if devices cannot share the sub-batches of batch norm that were asked for."""
    wanted, devices = settings.method.get("bn_splits"), settings.machine.processes
    if wanted is None or not has_batch_norm(method.backbone):
        return ()
    each = -(-wanted // devices)
    if each * devices == wanted:
        return ()
    batch = settings.run.batch_size // settings.machine.accumulate
    return (
        f"note: --bn_splits {wanted} is {each * devices} on {devices} devices, {each} on each: a "
        f"batch norm sees {batch // (each * devices)} images of a batch, not {batch // wanted}",
    )


def notes_on_sizes(mixture: MixtureSettings, views: ViewSettings, size: int) -> tuple[str, ...]:
    """Notes about settings in pixels, Cutout's square and the blur, for views of `size` pixels."""
    lines = []
    operator = mixture.image_space()
    if isinstance(operator, Cutout):
        lines.append(cutout_line(operator, size))
    kinds = view_kinds(views, size, 2)
    sigma = next((k.settings.blur_sigma for k in kinds if k.settings.blur_p > 0), None)
    if sigma is not None and size <= _PUBLISHED // 2:
        low, high = sigma
        lines.append(
            f"note: --blur_sigma {low:g} {high:g} is in pixels; for their size, views of {size} px "
            f"are blurred {_PUBLISHED / size:.3g} times as much as the published ones of "
            f"{_PUBLISHED} px"
        )
    return tuple(lines)


def cutout_line(operator: Cutout, size: int) -> str:
    """A line about the share of an image that Cutout erases; a warning above a quarter."""
    side = operator.side(size, size)
    mean, most = operator.erased(size, size)
    share = f"{mean:.0%} of the picture on average, {most:.0%} at most"
    if operator.mask_size is None:
        return f"Cutout: squares of {side} px, 50/224 of the side as published; {share}"
    if most <= _LARGE_SHARE:
        return f"Cutout: squares of {side} px; {share}"
    right = Cutout().side(size, size)
    return (
        f"warning: --mask_size {side} erases {share}; without it, Cutout would be as published, "
        f"squares of {right} px"
    )


def notes_on_image_space(mixture: MixtureSettings) -> tuple[str, ...]:
    """A note if settings of another `IM_type` were changed: the released code ignores them too."""
    if not mixture.IM:
        return ()
    kind, found = mixture.IM_type, catalog().image_space
    used = {n for n in found[kind] if n[:2] == {"global": "g_", "region": "r_"}.get(kind, n[:2])}
    others = sorted({name for names in found.values() for name in names} - used)
    changed = [f"--{n}" for n in others if getattr(mixture, n) != getattr(MixtureSettings, n)]
    if not changed:
        return ()
    verb = "does" if len(changed) == 1 else "do"
    return (f"note: {', '.join(changed)} {verb} not apply to --IM_type {kind}",)


def notes_on_schedule(settings: Settings) -> tuple[str, ...]:
    """Which steps are mixed, in a line, if not all are."""
    when = settings.mixture.schedule().describe(settings.run.epochs)
    return (f"mixed steps: {when}; the others are plain steps without a mixture",) if when else ()


def notes_on_rates(settings: Settings) -> tuple[str, ...]:
    """Notes if a warmup takes the whole run, or milestones are at its end or after it."""
    chosen, epochs = settings.optimizer, settings.run.epochs
    lines = []
    for start, end in pairwise((0, *chosen.restarts, epochs)):
        top = top_of_warmup(chosen, start, end)
        if top is not None:
            part = f" from epoch {start}" if chosen.restarts else ""
            lines.append(
                f"note: --warmup_epochs {chosen.warmup_epochs:g} takes all of the "
                f"{counted(end - start, 'epoch')}{part}, so that the learning rate only rises, "
                f"to {top:.3g} of {chosen.lr:g}"
            )
    late = [each for each in chosen.milestones if each >= epochs]
    if late and chosen.schedule == "step":
        lines.append(
            f"note: --milestones {' '.join(map(str, late))}: the run ends with epoch {epochs}, so "
            "that the learning rate is not lowered there"
        )
    return tuple(lines)


def top_of_warmup(chosen: OptimizerSettings, start: int, end: int) -> float | None:
    """The learning rate to which a warmup rises that nothing follows; None if something does.

    Args:
        chosen: The settings of the schedule.
        start: The epoch at which the schedule starts, at first or again.
        end: The epoch before which it starts again, or the run ends.
    """
    warmup = chosen.warmup_epochs
    if end - start > warmup or (start > 0 and chosen.schedule != "cosine"):
        return None
    low = chosen.warmup_start_lr if start == 0 else chosen.final_lr
    return low + (chosen.lr - low) * (end - start) / warmup


def notes_on_parts(settings: Settings, method: Method) -> tuple[str, ...]:
    """What the parts of a step share with a whole batch, in a line, if there are several."""
    parts, mixtures = settings.machine.accumulate, settings.mixture.unmix
    if parts == 1:
        return ()
    return (accumulation_line(method, parts, settings.run.batch_size, mixtures),)


def notes_on_weights(backbone: str, init: str | None = None) -> tuple[str, ...]:
    """A note if the backbone's name is one of trained weights, as timm's with a tag.

    Args:
        backbone: Its name.
        init: What the run starts from; None for random weights.
    """
    name, _, tag = backbone.removeprefix(TIMM).partition(".")
    if not backbone.startswith(TIMM) or not tag or init is not None:
        return ()
    return (
        f"note: {backbone} starts from random weights, as {TIMM}{name} does; to start from the "
        f"trained ones that {tag} names, add --init {backbone}",
    )


def notes_on_layers(settings: Settings, method: Method) -> tuple[str, ...]:
    """What `lr_decay` and `freeze_backbone_epochs` do, in a line each, if they are given.

    Raises:
        UserError: if the layers of the backbone are not known.
    """
    chosen, lines = settings.optimizer, []
    if chosen.lr_decay != 1:
        scales = sorted(set(layer_scales(method.backbone, chosen.lr_decay).values()))
        lines.append(
            f"learning rates: {chosen.lr:g} for what follows the backbone's layers, times "
            f"{chosen.lr_decay:g} for each layer before, to {chosen.lr * scales[0]:.3g} in the "
            "first"
        )
    if chosen.patch_embed_lr_mult != 1:
        layer_scales(method.backbone, chosen.lr_decay, chosen.patch_embed_lr_mult)  # or an error
        lines.append(f"learning rate of the patch embedding: times {chosen.patch_embed_lr_mult:g}")
    if frozen := chosen.freeze_backbone_epochs:
        which = "first epoch" if frozen == 1 else f"first {frozen} epochs"
        lines.append(
            f"backbone: frozen for the {which}, weights and batch-norm statistics; the schedule of "
            "the learning rate runs meanwhile"
        )
        if settings.model.init is None:
            lines.append("note: what is frozen are random weights; --init starts from trained ones")
    return tuple(lines)


def notes_on_mixture(method: Method, operator: MixtureOperator | None) -> tuple[str, ...]:
    """A line if the edges of mixtures are at those of the patches that the loss is by."""
    if operator is None or operator.cell is None or not method.position_pairs:
        return ()
    whole = "" if operator.cell == method.cell else ", whole patches"
    return (
        f"mixtures: boxes and masks in cells of {operator.cell} px{whole}, so that each patch of "
        "the loss is of one image",
    )


def note_on_width(settings: Settings) -> str | None:
    """A note with the number of parameters of an encoder that is wider than any published one."""
    model = settings.model
    if model.width <= _WIDE:
        return None
    kind, size = method_class(settings.run.method), settings.run.size or _PUBLISHED

    def parameters(width: float) -> int:
        with torch.device("meta"):  # takes no memory
            backbone = kind.build_backbone(
                model.backbone,
                width=width,
                stem=model.stem,
                size=size,
                patch=model.patch,
                heads=model.heads,
                depth=model.depth,
                registers=model.registers,
                class_token=model.class_token,
                pooling=model.pooling,
            )
        return sum(p.numel() for p in backbone.parameters())

    usual, wide = parameters(1.0), parameters(model.width)
    return (
        f"note: --width {model.width:g} multiplies the channels: {model.backbone} has "
        f"{wide / 1e6:,.0f} M parameters with it, {wide / usual:.0f} times as many as with width 1"
    )

"""`unmix detect`: object detection with a run's encoder as backbone."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from unmix.commands.finished import FinishedRun, Say
from unmix.commands.rows import NotSavedError
from unmix.detection import evaluate, faster_rcnn, load_boxes, train
from unmix.detection.training import DetectionSchedule, average_precision_metric
from unmix.display import counted, duration
from unmix.errors import UserError, check_choice, check_given, check_number
from unmix.files import atomic_path
from unmix.hardware.threads import CoreMeter
from unmix.names import shown
from unmix.results import load_results, write_results
from unmix.training.console import quiet_libraries
from unmix.training.console import say as print_line
from unmix.training.run.lock import results_lock

__all__ = ["detect"]


def detect(
    run: Path | str,
    *,
    data: str,
    head: str = "fpn",
    batch_norm: str = "train",
    steps: int = 24_000,
    batch_size: int = 16,
    lr: float = 0.02,
    train_sides: tuple[int, int] = (480, 800),
    test_side: int = 800,
    longest: int = 1333,
    proposals: int = 1000,
    seed: int = 0,
    out: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    threads: int | None = None,
    say: Say = print_line,
) -> dict[str, Any]:
    """Train torchvision's Faster R-CNN on a run's encoder, and measure its average precision.

    The defaults are MoCo's on PASCAL VOC (arXiv 1911.05722, Sec. 4.2). The result is added to the
    run's `results.json`, under `detection`. Not resumable.

    Args:
        run: Run folder, or an encoder file; a ResNet.
        data: Folder of images with boxes, in the layout of PASCAL VOC or of COCO.
        head: fpn (a feature pyramid) or c4 (the third stage, the fourth on each region).
        batch_norm: train, as MoCo does, or frozen, for batches of very few images.
        steps: Steps of the optimizer.
        batch_size: Images in a batch.
        lr: Learning rate for batches of 16; it is scaled with the batch size.
        train_sides: Smallest and largest length of the shorter side in training.
        test_side: Length of the shorter side in test.
        longest: Bound of the longer side.
        proposals: Regions of an image that are classified; at most 512 of them in training.
        seed: Seed of new layers, order and flips.
        out: File to keep the detector's weights in (safetensors).
        device: auto, cpu, cuda or mps.
        workers: Processes that decode files; by default from the number of cores.
        threads: Number of CPU threads; by default the number of free cores.
        say: Prints a line.

    Returns:
        `ap`, `ap50` and `ap75` in percent, `per_class`, and the settings.

    Raises:
        NotSavedError: if `results.json` cannot be written.
        UserError: if the run is not complete or no ResNet, the data cannot be read, a value is out
            of range, or pycocotools is missing.
    """
    check_given("data", data)
    check_choice("head", head, ("fpn", "c4"))
    check_choice("batch_norm", batch_norm, ("train", "frozen"))
    sizes = (("steps", steps), ("batch_size", batch_size), ("proposals", proposals))
    for name, value in sizes:
        check_number(name, value, at_least=1)
    check_number("lr", lr, above=0)
    low, high = train_sides
    check_number("train_sides", low, at_least=16)
    check_number("train_sides", high, at_least=low)
    check_number("test_side", test_side, at_least=16)
    check_number("longest", longest, at_least=max(high, test_side))
    check_number("seed", seed, at_least=0)
    target = None if out is None else _free(out)
    average_precision_metric()  # its package is missed now, not after hours
    quiet_libraries()
    cores = CoreMeter()
    finished = FinishedRun.open(run, device)
    train_images, test_images = load_boxes(data)
    facts = finished.encoder.facts
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = faster_rcnn(
            finished.encoder.backbone.cpu(), len(train_images.classes), head=head,
            batch_norm=batch_norm, mean=tuple(facts["mean"]), std=tuple(facts["std"]),
            sides=_sides(low, high, test_side), longest=longest,
            proposals=proposals,
        )  # fmt: skip
    for line in (*train_images.noted.lines(), *test_images.noted.lines()):
        say(line)
    say(
        f"detection on {shown(data)}: {counted(len(train_images), 'training image')} with "
        f"{counted(train_images.objects, 'object')} of {len(train_images.classes)} classes, "
        f"{counted(len(test_images), 'test image')} with {counted(test_images.objects, 'object')}"
    )
    schedule = DetectionSchedule(steps, batch_size, lr, seed=seed)
    where = finished.machine.device
    started = time.perf_counter()
    with finished.computing(threads, cores, say):
        count = finished.machine.workers if workers is None else workers
        loss = train(
            model, train_images, schedule, accelerator=finished.machine.accelerator,
            workers=count or 0, say=say,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        model.transform.min_size = (test_side,)
        found = evaluate(model, test_images, where, workers=count or 0)
    row = {
        "data": data, "head": head, "batch_norm": batch_norm, "steps": steps,
        "batch_size": batch_size, "lr": lr, "train_sides": list(train_sides),
        "test_side": test_side, "longest": longest, "proposals": proposals,
        "seed": seed, **found, "loss": loss,
        "images": len(train_images), "test_images": len(test_images), "seconds": seconds,
    }  # fmt: skip
    say(f"{_line(found)}   after {duration(seconds)} of training")
    if target is not None:
        _write(model, target)
        say(f"detector: {shown(target)}")
    _keep(finished, row, say)
    return row


def _line(found: Mapping[str, Any]) -> str:
    names = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}
    return "  ".join(f"{name} {found[key] or 0.0:.1f}" for key, name in names.items())


def _sides(low: int, high: int, test: int) -> tuple[int, ...]:
    """Lengths of the shorter side, of which torchvision draws one: about every 32 pixels."""
    count = max(1, round((high - low) / 32))
    steps = sorted({round(low + (high - low) * i / count) for i in range(count + 1)})
    return (*steps, test) if steps[-1] != test else tuple(steps)


def _free(out: str) -> Path:
    check_given("out", out)
    path = Path(out).expanduser()
    if path.exists():
        raise UserError(f"{path} exists; give another file.", parameter="out")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}.", parameter="out")
    return path


def _write(model: torch.nn.Module, path: Path) -> None:
    from safetensors.torch import save

    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with atomic_path(path) as beside:
        beside.write_bytes(save(tensors))


def _keep(run: FinishedRun, row: Mapping[str, Any], say: Say) -> None:
    """Add the row to `results.json`, in place of one with the same settings."""
    if run.alone:
        say("the encoder file belongs to no run folder, so this is not saved")
        return
    measured = {"ap", "ap50", "ap75", "per_class", "loss", "seconds"}

    def how(entry: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in entry.items() if k not in measured}

    try:
        with results_lock(run.folder.path):
            load_results(run.folder.path)
            content = json.loads(run.folder.results.read_text(encoding="utf-8"))
            rows = [e for e in content.get("detection") or [] if how(e) != how(dict(row))]
            write_results(run.folder.results, {**content, "detection": [*rows, dict(row)]})
    except UserError as error:
        raise NotSavedError(error, [row]) from error

"""`unmix detect`: object detection with a run's encoder as backbone."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torchvision.models.detection import FasterRCNN

from unmix.checksums import weight_bytes
from unmix.commands.finished import FinishedRun, Say, located_data
from unmix.commands.rows import NotSavedError
from unmix.detection import BoxImages, Detector, evaluate, faster_rcnn, load_boxes, train
from unmix.detection.training import DetectionSchedule, average_precision_metric
from unmix.display import counted, duration
from unmix.errors import Interrupted, UserError, check_choice, check_given, check_number
from unmix.files import as_path, atomic_path, read_json
from unmix.hardware.threads import CoreMeter
from unmix.names import shown
from unmix.results import load_results, write_results
from unmix.training.console import quiet_libraries
from unmix.training.console import say as print_line
from unmix.training.loop.stopping import Stopping
from unmix.training.run.checkpoints import LAST, AtomicCheckpoints, latest_intact
from unmix.training.run.lock import results_lock, run_lock

__all__ = ["detect"]

_SAVED = 50  # times that a training is saved


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
    run's `results.json`, under `detection`. The same command continues an interrupted training,
    from a checkpoint in the run's folder `detection`, which is removed at the end. It runs on one
    device.

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
    train_images, test_images = load_boxes(data, finished.encoder.range)
    facts = finished.encoder.facts
    words = {
        "head": head, "batch_norm": batch_norm, "steps": steps, "batch_size": batch_size, "lr": lr,
        "train_sides": list(train_sides), "test_side": test_side, "longest": longest,
        "proposals": proposals, "seed": seed,
    }  # fmt: skip
    work = None if finished.alone else _folder(finished, words, train_images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = faster_rcnn(
            finished.encoder.backbone.cpu(), len(train_images.classes), head=head,
            batch_norm=batch_norm, mean=tuple(facts["mean"]), std=tuple(facts["std"]),
            sides=_sides(low, high), longest=longest,
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
    locked = nullcontext() if work is None else run_lock(work, say, "--run")
    with locked, finished.computing(threads, cores, say):
        count = (finished.machine.workers if workers is None else workers) or 0
        loss, seconds = _trained(model, train_images, schedule, finished, work, count, say)
        model.transform.min_size = (test_side,)
        found = evaluate(model, test_images, finished.machine.device, workers=count)
        row = {
            "data": located_data(data), **words, **found, "loss": loss,
            "images": len(train_images), "test_images": len(test_images), "seconds": seconds,
        }  # fmt: skip
        say(f"{_line(found)}   after {duration(seconds)} of training")
        if target is not None:
            _write(model, target)
            say(f"detector: {shown(target)}")
        _keep(finished, row, say)
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
    return row


def _folder(finished: FinishedRun, words: Mapping[str, Any], images: BoxImages) -> Path:
    """Where a training is kept: the name is a digest of settings, images and encoder."""
    digest = hashlib.blake2b(json.dumps(words).encode(), digest_size=8)
    digest.update(finished.encoder.prepares.encode())
    for one in images.images:
        size = one.path.stat().st_size if one.path.is_file() else 0
        digest.update(f"{one.path.name} {size} ".encode(errors="surrogateescape"))
        digest.update(one.boxes.numpy().tobytes() + one.labels.numpy().tobytes())
    for part in weight_bytes(finished.encoder.backbone.state_dict()):
        digest.update(part)
    return finished.folder.path / "detection" / digest.hexdigest()


def _trained(
    model: FasterRCNN,
    images: BoxImages,
    schedule: DetectionSchedule,
    finished: FinishedRun,
    work: Path | None,
    workers: int,
    say: Say,
) -> tuple[float | None, float]:
    """Train, or go on with it; the loss of the last step, and the seconds of all of it."""
    start: dict[str, Any] | None = None
    if work is None:
        say("note: an encoder file has no folder for checkpoints, so this training starts anew if "
            "it is interrupted")  # fmt: skip
    else:
        path, content, damaged = latest_intact(work)
        for error in damaged:
            say(f"{error}.")
        if path is not None:
            start = content
            say(f"continuing after step {content['step']:,}")
    stopping = Stopping()
    kept = _Kept(work, stopping, max(1, schedule.steps // _SAVED), start)
    with stopping:
        loss = train(
            model, images, schedule, accelerator=finished.machine.accelerator, workers=workers,
            say=say, start=start, callbacks=[] if work is None else [kept],
        )  # fmt: skip
    if kept.stopped:
        raise Interrupted(stopping.received or signal.SIGINT)
    return loss, kept.seconds()


class _Kept(Callback):
    """Saves a training from time to time, at its end, and when a signal stops it."""

    def __init__(
        self, work: Path | None, stopping: Stopping, every: int, start: Mapping[str, Any] | None
    ) -> None:
        self.work, self.stopping, self.every = work, stopping, every
        self.before = 0.0 if start is None else float(start["seconds"])
        self.began, self.stopped = time.perf_counter(), False

    def seconds(self) -> float:
        """Of training, before an interruption and after it."""
        return self.before + time.perf_counter() - self.began

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stopping.install()  # again, after Lightning's own
        self.stopping.unsaved = True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, Detector)
        assert self.work is not None
        step, due = pl_module.step, self.stopping.due()
        ended = step == pl_module.schedule.steps
        if due or ended or step % self.every == 0:
            content = {**pl_module.state(), "seconds": self.seconds()}
            AtomicCheckpoints().save_checkpoint(content, self.work / LAST)
        if due and not ended:
            self.stopped = trainer.should_stop = True
        self.stopping.unsaved = not ended


def _line(found: Mapping[str, Any]) -> str:
    names = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}
    return "  ".join(f"{name} {found[key] or 0.0:.1f}" for key, name in names.items())


def _sides(low: int, high: int) -> tuple[int, ...]:
    """Lengths of the shorter side, of which torchvision draws one: about every 32 pixels."""
    count = max(1, round((high - low) / 32))
    return tuple(sorted({round(low + (high - low) * i / count) for i in range(count + 1)}))


def _free(out: str) -> Path:
    check_given("out", out)
    path = as_path(out)
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
            content = read_json(run.folder.results)
            rows = [e for e in content.get("detection") or [] if how(e) != how(dict(row))]
            write_results(run.folder.results, {**content, "detection": [*rows, dict(row)]})
    except UserError as error:
        raise NotSavedError(error, [row]) from error

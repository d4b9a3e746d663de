"""All processes of a run encode for an evaluation; the first measures what it would alone."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor
from torch.multiprocessing import start_processes

from forked import program
from unmix import distributed
from unmix.config import Settings
from unmix.data import FileImages
from unmix.distributed import gather_in_first, pace, rank
from unmix.evaluation.features import NotFiniteError
from unmix.training.loop import evaluator as evaluators
from unmix.training.loop.callbacks import Reporter
from unmix.training.loop.evaluator import Evaluator
from unmix.training.run.parts import build_parts

PROCESSES = 3
SMALL = {
    "method": "moco", "data": "digits", "limit": 100, "size": 8, "batch_size": 30,
    "backbone": "resnet10", "width": 0.125, "queue_size": 60, "bn_splits": 2, "device": "cpu",
    "precision": "32", "knn_k": 5,
}  # fmt: skip
ROWS = (5, 0, 3)
BROKEN = (3, 17, *range(30, 50))


def rows_of(number: int) -> Tensor:
    rows = torch.arange(ROWS[number] * 2.0).view(-1, 2) + 100 * number
    return rows if len(rows) else torch.empty(0, 0)


def pictures(folder: Path) -> FileImages:
    """50 files, of which the last 20 and a few others are broken."""
    (files := folder / "files").mkdir(exist_ok=True)
    paths = [files / f"{i:02}.png" for i in range(50)]
    if rank() == 0:
        for i, path in enumerate(paths):
            Image.new("RGB", (8, 8), (i, 5 * i, 255 - i)).save(path)
            if i in BROKEN:
                path.write_bytes(path.read_bytes()[:40])
    dist.barrier()
    return FileImages(
        name="pictures", split="train", labels=None, classes=None, mean=(0.5,) * 3,
        std=(0.2,) * 3, paths=paths,
    )  # fmt: skip


def statistics(evaluator: Evaluator) -> list[Tensor]:
    return [each.clone() for each in evaluator.module.method.buffers()]


def run(number: int, folder: Path) -> None:
    """What each process does: its batch norm has statistics of its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder / 'meet'}", rank=number, world_size=PROCESSES)
    distributed._EXCHANGED = 16  # bytes: two rows at a time
    evaluators._BATCH = 16
    parts = build_parts(Settings.of(SMALL))
    evaluator = Evaluator(
        parts.module, parts.labeled, parts.test, parts.settings.evaluation, parts.machine
    )
    for name, buffer in parts.module.method.named_buffers():
        if "running" in name:
            buffer.add_(0.1 * number)
    before = statistics(evaluator)
    found: dict[str, Any] = {"rows": gather_in_first(rows_of(number), "cpu"), "encoded": 0}
    original = evaluators.split_features

    def counted(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        found["encoded"] += len(result.index)
        return result

    evaluators.split_features = counted  # type: ignore[assignment]
    start = pace.ticks
    if rank() == 0:
        measured, train = evaluator(("knn", "linear"), 1, together=True)
        found["together"] = [each.row for each in measured], train
    else:
        evaluator.assist()
    found["ticks"] = pace.ticks - start
    evaluators.split_features = original
    if rank() == 0:
        measured, train = evaluator(("knn", "linear"), 1)
        found["alone"] = [each.row for each in measured], train
    files = pictures(folder)
    found["files"] = evaluator.features(files, together=True).index.tolist()
    found["broken"] = sorted(path.name for path in files.skipped.paths)
    evaluator.encode_together()
    if rank() == 0:
        monkey = pytest.MonkeyPatch()
        monkey.setattr(evaluators, "split_features", None)
        found["last"] = evaluator(("knn",), 2)[0][0].row["top1"]
    found["kept"] = all(map(torch.equal, before, statistics(evaluator)))
    torch.save(found, folder / f"{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the processes found, started once for all tests."""
    folder = tmp_path_factory.mktemp("processes")
    start_processes(run, (folder,), PROCESSES, start_method="fork")
    return [torch.load(folder / f"{number}.pt", weights_only=False) for number in range(PROCESSES)]


def test_rows_are_gathered_in_the_first_whatever_each_has(processes: list[Any]) -> None:
    expected = torch.cat([rows_of(0), rows_of(2)])
    assert torch.equal(processes[0]["rows"], expected)
    assert [found["rows"] for found in processes[1:]] == [None, None]


def test_the_first_measures_what_it_would_alone(processes: list[Any]) -> None:
    """To the bit, as the batches are the same, with the statistics of the first in all."""
    rows, train = processes[0]["together"]
    alone, features = processes[0]["alone"]
    for row in (*rows, *alone):
        row.pop("seconds", None)
    assert rows == alone
    assert torch.equal(train.features, features.features)
    assert torch.equal(train.labels, features.labels)
    assert torch.equal(train.index, features.index)


def test_each_encodes_a_part_and_keeps_its_statistics(processes: list[Any]) -> None:
    parts = build_parts(Settings.of(SMALL))
    assert parts.test is not None
    shares = [found["encoded"] for found in processes]
    assert sum(shares) == len(parts.train) + len(parts.test)
    assert max(shares) - min(shares) <= 2 * 16
    assert all(found["kept"] for found in processes)


def test_the_first_knows_what_the_others_could_not_read(processes: list[Any]) -> None:
    assert processes[0]["files"] == [i for i in range(50) if i not in BROKEN]
    for found in processes:
        assert found["broken"] == [f"{i:02}.png" for i in BROKEN]


def test_what_all_encoded_last_is_not_encoded_again(processes: list[Any]) -> None:
    rows, _ = processes[0]["alone"]
    assert processes[0]["last"] == rows[0]["top1"]


def test_processes_that_encode_are_even_afterwards(processes: list[Any]) -> None:
    """Otherwise one of them would be taken for stuck, behind the others."""
    assert len({found["ticks"] for found in processes}) == 1


def test_a_run_of_two_measures_the_same_when_one_evaluates_alone(tmp_path: Path) -> None:
    def alone(patch: pytest.MonkeyPatch) -> None:
        def measure(self: Reporter, protocols: tuple[str, ...], epoch: int, _: Any) -> Any:
            if rank() > 0:
                return {}
            measured, _ = self.evaluator(protocols, epoch)
            return {each.row["protocol"]: each.row["top1"] for each in measured}

        patch.setattr(Reporter, "_measure", measure)

    def rows(name: str, change: Any) -> list[tuple[str, str]]:
        words = [f"--{key}={value}" for key, value in SMALL.items()]
        words += ["--epochs=2", "--knn_every=1", "--linear_every=1", "--devices=2", "--threads=1",
                  "--logger=none", f"--run={tmp_path / name}"]  # fmt: skip
        said = tmp_path / f"{name}.txt"
        ended = program(["pretrain", *words], said, devices=2, change=change)
        assert ended.wait() == 0, said.read_text()
        with (tmp_path / name / "metrics.csv").open() as file:
            return [(row["knn"], row["linear"]) for row in csv.DictReader(file) if row["knn"]]

    together = rows("together", None)
    assert len(together) == 1
    assert together == rows("alone", alone)


def test_an_error_in_the_part_of_another_process_ends_all_with_its_line(tmp_path: Path) -> None:
    def broken(patch: pytest.MonkeyPatch) -> None:
        original = evaluators.split_features

        def encode(*arguments: Any, **options: Any) -> Any:
            if rank() == 1:
                raise NotFiniteError("the features of 3 of 9 images are not finite; x")
            return original(*arguments, **options)

        patch.setattr(evaluators, "split_features", encode)

    words = [f"--{key}={value}" for key, value in SMALL.items()]
    words += ["--epochs=2", "--knn_every=1", "--devices=2", "--threads=1", "--logger=none",
              f"--run={tmp_path / 'run'}"]  # fmt: skip
    ended = program(["pretrain", *words], tmp_path / "said", devices=2, change=broken)
    assert ended.wait() == 2
    lines = (tmp_path / "said").read_text().splitlines()
    said = [line for line in lines if line.startswith("unmix: error: ")]
    assert len(said) == 1
    assert said[0].startswith("unmix: error: the features of 3 of 9 images are not finite; ")
    assert "Traceback" not in "".join(lines)

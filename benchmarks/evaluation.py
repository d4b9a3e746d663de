"""kNN, the linear probe and the extraction of features, timed; a table, and JSON if asked.

    python benchmarks/evaluation.py --threads 2 [--data_dir DIR] [--json FILE] [--large 500]

With `--data_dir` (which holds cifar-10-batches-py/) the probes are timed on the features of all
60,000 images of CIFAR-10 by an untrained ResNet-18; without, on random ones of the same shapes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import facts, save, seconds_of, summary
from torch import Tensor

from unmix.evaluation import extract, knn_accuracy, linear_probe, split_features
from unmix.training.run.parts import Parts, build_parts
from unmix.training.run.pretrain import settings_for

Split = tuple[Tensor, Tensor]


def parts_of(data_dir: str) -> Parts:
    """An untrained ResNet-18 for CIFAR-10, set up as a run sets it up."""
    words = {
        "method": "moco", "data": "cifar10", "data_dir": data_dir, "backbone": "resnet18",
        "stem": "small", "size": 32, "batch_size": 128,
    }  # fmt: skip
    return build_parts(settings_for(words)[0])


def random_features(n: int, m: int, d: int, classes: int) -> tuple[Split, Split]:
    """Features of classes that overlap, as those of a trained encoder do."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(classes, d, generator=generator)
    splits = []
    for count in (n, m):
        labels = torch.randint(classes, (count,), generator=generator)
        features = torch.randn(count, d, generator=generator).mul_(4)
        for start in range(0, count, 10_000):
            features[start : start + 10_000] += centers[labels[start : start + 10_000]]
        splits.append((features.relu_(), labels))
    return splits[0], splits[1]


def extraction(parts: Parts, images: int, repeats: int) -> dict[str, Any]:
    """Images per second of `split_features` beside bare forward passes, in turn."""
    subset = parts.labeled.evenly(images)
    module, machine = parts.module, parts.machine
    encode, views = module.method.features, module.views
    prepared = [views.plain(chunk) for chunk in subset.images.split(256)]  # type: ignore[attr-defined]
    module.method.eval()

    def bare() -> None:
        with torch.inference_mode(), torch.autocast("cpu", machine.autocast):
            for batch in prepared:
                encode(batch)

    def ours() -> None:
        split_features(encode, subset, views.plain, views.size, dtype=machine.autocast)

    extract(encode, prepared[:1], device="cpu", dtype=machine.autocast)
    speeds: dict[str, list[float]] = {"forward passes alone": [], "split_features": []}
    for _ in range(repeats):
        for name, call in zip(speeds, (bare, ours), strict=True):
            start = time.perf_counter()
            call()
            speeds[name].append(len(subset) / (time.perf_counter() - start))
    return {name: summary(values) for name, values in speeds.items()}


def peak_growth(call: Callable[[], Any]) -> int | None:
    """By how many bytes the process grows at most during a call; None where Linux is not."""
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return None
    clear.write_text("5")
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def probes(train: Split, test: Split, repeats: int) -> dict[str, Any]:
    """The seconds of kNN and of the linear probe, the memory of kNN, and their accuracies."""
    accuracies: dict[str, float] = {}

    def knn() -> None:
        accuracies["knn"] = knn_accuracy(*train, *test, classes=10, k=200)["top1"]

    def linear() -> None:
        generator = torch.Generator().manual_seed(0)
        accuracies["linear"] = linear_probe(*train, *test, classes=10, generator=generator)["top1"]

    return {
        "knn_memory_bytes": peak_growth(knn),
        "knn": seconds_of(knn, repeats),
        "linear": seconds_of(linear, repeats),
        "top1": accuracies,
    }


def large_knn(queries: int) -> dict[str, Any]:
    """The seconds and memory of kNN against 1.28 million features of 512 numbers, 1,000 classes."""
    train, test = random_features(1_280_000, queries, 512, 1000)
    seconds: list[float] = []

    def knn() -> None:
        start = time.perf_counter()
        knn_accuracy(*train, *test, classes=1000, k=200)
        seconds.append(time.perf_counter() - start)

    memory = peak_growth(knn)
    return {"queries": queries, "memory_bytes": memory, "seconds": seconds[0]}


def show(found: dict[str, Any]) -> None:
    print(f"{'':44}{'median':>10}{'min':>10}{'max':>10}")
    rows = [(f"{name}, images/s", row) for name, row in found.get("extraction", {}).items()]
    rows += [("kNN, 50,000 x 10,000, s", found["probes"]["knn"])]
    rows += [("linear probe, 50,000 + 10,000, s", found["probes"]["linear"])]
    for name, row in rows:
        print(f"{name:44}{row['median']:10.2f}{row['min']:10.2f}{row['max']:10.2f}")
    print(f"kNN grew the process by {(found['probes']['knn_memory_bytes'] or 0) / 2**20:.0f} MiB")
    print(f"top-1 in percent: {found['probes']['top1']}")
    if "large" in found:
        large = found["large"]
        print(
            f"kNN, 1,280,000 x {large['queries']:,}: {large['seconds']:.1f} s, grew the process by "
            f"{(large['memory_bytes'] or 0) / 2**20:.0f} MiB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", help="holds cifar-10-batches-py/; without, random features")
    parser.add_argument("--threads", type=int, help="of PyTorch; by default its own choice")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=5120, help="for the speed of extraction")
    parser.add_argument("--features", type=Path, help="keep CIFAR-10's features in this file")
    parser.add_argument("--large", type=int, default=0, help="queries against 1.28 million images")
    parser.add_argument("--json", type=Path, help="write all measurements here")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    found: dict[str, Any] = facts(sys.argv)
    if given.data_dir is None:
        train, test = random_features(50_000, 10_000, 512, 10)
    else:
        parts = parts_of(given.data_dir)
        if given.images:
            found["extraction"] = extraction(parts, given.images, given.repeats)
        train, test = cached(parts, given.features)
    save(given.json, found)
    found["probes"] = probes(train, test, given.repeats)
    if given.large:
        found["large"] = large_knn(given.large)
    show(found)
    save(given.json, found)


def cached(parts: Parts, path: Path | None) -> tuple[Split, Split]:
    """Features and labels of both splits, from a file if it is there."""
    if path is None or not path.exists():
        found = {}
        for name, images in (("train", parts.labeled), ("test", parts.test)):
            assert images is not None
            split = split_features(
                parts.module.method.features, images, parts.module.views.plain, 32,
                dtype=parts.machine.autocast,
            )  # fmt: skip
            assert split.labels is not None
            found[name] = split.features, split.labels
        if path is None:
            return found["train"], found["test"]
        torch.save(found, path)
    found = torch.load(path, weights_only=True)
    return found["train"], found["test"]


if __name__ == "__main__":
    main()

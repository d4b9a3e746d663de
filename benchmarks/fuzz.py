"""Fuzz what is read back, for minutes: random mutations of packs, runs and images.

    python benchmarks/fuzz.py --minutes 10 --seed 0

Each file is changed in bytes or in values; what reads it must end well or with a UserError. The
first traceback of each kind is printed, with the seed that repeats it; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from hostile_images import hostile_files  # type: ignore[import-not-found]
from mutations import (  # type: ignore[import-not-found]
    WRONG_VALUES,
    changed,
    places,
    without,
)
from unmix.commands.pack import pack
from unmix.config.yaml_files import parse_yaml
from unmix.data.decoding import Decoding, decode
from unmix.data.imageset import Skipped
from unmix.data.packed import load_pack
from unmix.errors import UserError
from unmix.figures import read_metrics
from unmix.results import load_results, write_results
from unmix.training.run.folder import RunFolder

RESULTS = {
    "schema": 1, "name": "a", "method": "moco", "mixture": "IM", "data": "digits",
    "backbone": "resnet10", "width": 0.5, "size": 8, "epochs": 2, "seed": 0, "command": "unmix",
    "evaluations": [{"protocol": "knn", "epoch": 2, "top1": 50.0, "k": 5}],
}  # fmt: skip


def mutated(content: bytes, by: random.Random) -> bytes:
    """Bytes with a few changes: other bytes, cuts, repetitions, insertions."""
    data = bytearray(content)
    for _ in range(by.choice((1, 1, 2, 4, 16))):
        at = by.randrange(len(data) + 1)
        kind = by.randrange(5)
        if kind == 0 and at < len(data):
            data[at] = by.randrange(256)
        elif kind == 1:
            del data[at : at + by.randrange(1, 40)]
        elif kind == 2:
            data[at:at] = data[at : at + by.randrange(1, 40)]
        elif kind == 3:
            data[at:at] = by.choice((b"9", b"-", b"[", b"{", b"nan", b"1e999", b"\0", b"&a", b"*a"))
        else:
            del data[at:]
    return bytes(data)


def json_mutated(content: bytes, by: random.Random) -> bytes:
    """JSON with another value somewhere, or changed bytes."""
    if by.random() < 0.3:
        return mutated(content, by)
    value = json.loads(content)
    for _ in range(by.choice((1, 2, 3))):
        at = by.choice(list(places(value)))
        wrong = by.choice(WRONG_VALUES)
        value = without(value, at) if at and by.random() < 0.2 else changed(value, at, wrong)
    return json.dumps(value).encode()


def use_pack(folder: Path) -> None:
    """Read all of a pack."""
    images = load_pack(folder, "train", Skipped())
    for i in range(len(images)):
        with suppress(UserError):
            images.decode(i)


Target = tuple[Path, Callable[[bytes, random.Random], bytes], Callable[[], object]]


def files(folder: Path) -> list[Target]:
    """Write a pack and a run; of each file its path, how it is changed, and what reads it."""
    noise = np.random.default_rng(0)
    for i in range(12):
        path = folder / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
    pack(str(folder / "images"), out=str(folder / "pack"), say=lambda _: None)
    write_results(folder / "run" / "results.json", RESULTS)
    (folder / "run" / "config.yaml").write_text("method: moco\ndata: digits\nmean: [0.1, 1, 0]\n")
    (folder / "run" / "metrics.csv").write_text("epoch,step,loss\n0,10,5\n1,20,3.5\n")
    run, packed = folder / "run", folder / "pack"
    return [
        (packed / "pack.json", json_mutated, lambda: use_pack(packed)),
        (packed / "train.npz", mutated, lambda: use_pack(packed)),
        (packed / "train-00000.tar", mutated, lambda: use_pack(packed)),
        (run / "results.json", json_mutated, lambda: load_results(run)),
        (run / "config.yaml", mutated, lambda: RunFolder(run).settings()),
        (run / "metrics.csv", mutated, lambda: read_metrics(run / "metrics.csv")),
    ]


def main() -> int:
    """Fuzz for the time given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10, help="of CPU")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    targets = files(Path(tempfile.mkdtemp()))
    pictures = {name: data for name, data in hostile_files().items() if 0 < len(data) < 20_000}
    tried: Counter[str] = Counter()
    found: dict[tuple[str, str, int | None], str] = {}
    end, case = time.process_time() + 60 * given.minutes, given.seed * 10**9
    while time.process_time() < end:
        case += 1
        by = random.Random(case)
        which = by.randrange(len(targets) + 2)
        original: bytes | None = None
        try:
            if which < len(targets):
                path, change, use = targets[which]
                name, original = path.name, path.read_bytes()
                path.write_bytes(change(original, by))
                use()
            elif which == len(targets):
                name = "image"
                key = by.choice(list(pictures))
                place = Path("x" + Path(key.decode(errors="replace")).suffix)
                decode(place, 8, mutated(pictures[key], by), Decoding(max_pixels=1_000_000))
            else:
                name = "yaml"
                text = "a: &a [1, {b: 2}]\nc: *a\nd: 0x1f\ne: 1e5\nf: 'x'\n"
                with suppress(ValueError):
                    parse_yaml(mutated(text.encode(), by).decode(errors="replace"))
        except UserError:
            pass
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            kind = (type(error).__name__, last.filename[-40:], last.lineno)
            if kind not in found:
                found[kind] = f"case {case}, {name}"
                print(kind, found[kind], error, flush=True)
        finally:
            tried[name] += 1
            if original is not None:
                path.write_bytes(original)
    print(f"{sum(tried.values()):,} cases, {len(found)} kinds of tracebacks;", dict(tried))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

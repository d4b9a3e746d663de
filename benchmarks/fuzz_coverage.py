"""Fuzz what is read back, guided by coverage: atheris (libFuzzer) on images, packs and runs.

    pip install atheris
    python benchmarks/fuzz_coverage.py --minutes 10

Each target runs in a process of its own for a share of the minutes of CPU. Coverage is that of this
package's reading code, Pillow's plugins, PyYAML, csv, json and zipfile. What reads must end
well or with a UserError; the first input of each other kind is kept in `--out`, with its traceback,
and the exit status is 1 then. So it is for an input that takes more than 20 s or 2 GB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
INSTRUMENTED = (
    "unmix.data", "unmix.config", "unmix.schema", "unmix.results", "unmix.files", "unmix.figures",
    "unmix.training.run", "PIL", "yaml", "csv", "json", "zipfile",
)  # fmt: skip
NAMES = ("image", "pack.json", "train.npz", "train-00000.tar", "results.json", "config.yaml",
         "metrics.csv", "list.csv")  # fmt: skip
_LIMITS = ("-timeout=20", "-rss_limit_mb=2500", "-max_len=20000")


def fuzz_one(name: str, out: Path, seconds: float) -> None:
    """Fuzz one target for seconds of CPU; does not return."""
    import atheris  # type: ignore[import-untyped]
    import fuzz

    from unmix.data import load
    from unmix.data.decoding import Decoding, decode
    from unmix.errors import UserError

    folder = out / f"work-{name}"
    given = fuzz.files(folder)
    table = folder / "list.csv"
    table.write_text("path,label,split\nimages/a/0.png,1,train\nx.png,a,test\n")
    paths = {path.name: path for path, _, _ in given} | {"list.csv": table}
    uses = {path.name: use for path, _, use in given} | {"list.csv": lambda: load(table, "train")}
    known: set[tuple[str, str, int | None]] = set()
    count, end = 0, time.process_time() + seconds
    suffixes = ("png", "jpg", "gif", "tif", "webp", "bmp", "ppm")

    def image(data: bytes) -> None:
        kind = suffixes[data[0] % len(suffixes)] if data else "png"
        decode(Path(f"x.{kind}"), 8, data[1:], Decoding(max_pixels=1_000_000))

    def read_file(data: bytes) -> None:
        paths[name].write_bytes(data)
        uses[name]()

    def one(data: bytes) -> None:
        nonlocal count
        if time.process_time() > end:
            print(f"{count} runs", flush=True)
            os._exit(0)
        count += 1
        try:
            (image if name == "image" else read_file)(data)
        except UserError:
            pass
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            kind = (type(error).__name__, last.filename, last.lineno)
            if kind not in known:
                known.add(kind)
                key = hashlib.sha256(data).hexdigest()[:12]
                (out / f"found-{name}-{key}").write_bytes(data)
                (out / f"found-{name}-{key}.txt").write_text(traceback.format_exc())

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        by = random.Random(seed)
        if by.random() < 0.5:
            with suppress(ValueError):
                return fuzz.json_mutated(data, by)[:most]
        return bytes(atheris.Mutate(data, most))

    corpus = out / f"corpus-{name}"
    corpus.mkdir(exist_ok=True)
    for i, content in enumerate(seeds(name, paths)):
        (corpus / f"seed-{i}").write_bytes(content)
    more = {"custom_mutator": mutated} if name.endswith(".json") else {}
    atheris.Setup([sys.argv[0], *_LIMITS, str(corpus)], one, **more)
    atheris.Fuzz()


def seeds(name: str, paths: dict[str, Path]) -> list[bytes]:
    """What a target begins with."""
    if name != "image":
        return [paths[name].read_bytes()]
    from hostile_images import hostile_files  # type: ignore[import-not-found]

    kinds = {b"png": 0, b"jpg": 1, b"gif": 2, b"tif": 3, b"webp": 4, b"bmp": 5, b"ppm": 6}
    return [
        bytes([kinds.get(file.rpartition(b".")[2], 0)]) + data
        for file, data in hostile_files().items()
        if 0 < len(data) < 20_000
    ]


def run(name: str, seconds: float, out: Path) -> dict[str, Any]:
    """Fuzz a target in a process of its own; what it did."""
    place = out / f"log-{name}.txt"
    pid = os.fork()
    if pid == 0:
        log_file = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log_file, 1)
        os.dup2(log_file, 2)
        try:
            fuzz_one(name, out, seconds)
        finally:
            traceback.print_exc()
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    log = place.read_text(errors="replace")
    counts = [int(each) for each in re.findall(r"^(\d+) runs$", log, re.MULTILINE)]
    covered = [int(each) for each in re.findall(r"cov: (\d+)", log)]
    found = sorted(path.name for path in out.glob(f"found-{name}-*") if path.suffix != ".txt")
    stopped = re.findall(r"ERROR: libFuzzer: (.*)", log)
    return {
        "target": name, "runs": counts[-1] if counts else 0, "status": status,
        "branches_first": covered[0] if covered else 0,
        "branches": covered[-1] if covered else 0, "found": found, "stopped": stopped,
    }  # fmt: skip


def main() -> int:
    """Fuzz all targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="of CPU, in all")
    parser.add_argument("--target", choices=NAMES, action="append", help="only these")
    parser.add_argument("--out", type=Path, help="folder of inputs and logs")
    given = parser.parse_args()
    out = given.out or Path(tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    import atheris  # type: ignore[import-untyped]

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        import fuzz  # noqa: F401 - before the processes are made: instrumenting takes long
    names = given.target or NAMES
    results = []
    for name in names:
        results.append(run(name, 60 * given.minutes / len(names), out))
        print(json.dumps(results[-1]), flush=True)
        with suppress(OSError):
            shutil.rmtree(out / f"work-{name}")
    print(f"{sum(each['runs'] for each in results):,} runs; inputs and logs are in {out}")
    return int(any(each["found"] or each["stopped"] or each["status"] for each in results))


if __name__ == "__main__":
    sys.exit(main())

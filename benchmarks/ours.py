"""Steps of unmix on the CPU through Lightning, as `unmix pretrain` does them; prints a JSON line.

    python benchmarks/ours.py --threads 2 -- --method moco --data cifar10 --data_dir DIR \
        --backbone resnet18 --stem small --size 32 --batch_size 128 --bn_splits 8 --no-symmetric

What stands behind `--` are flags of `unmix pretrain`. Measured from the end of the last warm-up
step to the end of the last step, so that views, mixtures, loss, optimizer and Lightning count.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from typing import Any

import torch
import yaml
from timing import peak_bytes

from unmix.training.console import quiet_libraries
from unmix.training.profiling import whole_steps
from unmix.training.run.parts import build_parts
from unmix.training.run.pretrain import settings_for


def words_of(flags: list[str]) -> dict[str, Any]:
    """Flags of `unmix pretrain` as the words of its Python form."""
    words: dict[str, Any] = {}
    rest = list(flags)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            raise SystemExit(f"{flag}: expected a flag, such as --method")
        name, given, value = flag[2:].partition("=")
        values = [value] if given else []
        while rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        if values:
            read = [yaml.safe_load(text) for text in values]
            words[name] = read[0] if len(read) == 1 else read
        elif name.startswith("no-"):
            words[name[3:]] = False
        else:
            words[name] = True
    return words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="steps that are timed")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them")
    parser.add_argument("--threads", type=int, help="of PyTorch; by default its own choice")
    parser.add_argument("flags", nargs="*", help="behind --: flags of unmix pretrain")
    given = parser.parse_args()
    if min(given.steps, given.warmup) < 1:
        raise SystemExit("--steps, --warmup: must be at least 1")
    if given.threads:
        torch.set_num_threads(given.threads)
    quiet_libraries()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    settings, recipes = settings_for(words_of(given.flags))
    parts = build_parts(settings)
    seconds = whole_steps(parts, given.steps, given.warmup)
    found = {
        "images_per_second": len(seconds) * settings.run.batch_size / sum(seconds),
        "seconds": sum(seconds),
        "steps": len(seconds),
        "peak_memory_bytes": peak_bytes(),
        "precision": parts.machine.precision,
        "threads": torch.get_num_threads(),
        "mixture": parts.settings.mixture.name,
        "method": parts.settings.method,
        "recipes": recipes,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""How often `unmix.statistics` is right: coverage of its intervals, false verdicts, power.

Differences of known mean are drawn, as many as a study has paired seeds, and put through the very
functions that a study uses.

    python benchmarks/coverage.py --json benchmarks/results/coverage.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import scipy

from unmix.files import atomic_write
from unmix.statistics import compare_paired, holm, verdict

PAIRS = (6, 8, 10)
SHAPES = ("normal", "heavy-tailed (t3)", "skewed (exponential)")


def draw(shape: str, rng: np.random.Generator, n: int) -> np.ndarray:
    """Differences of mean 0 and standard deviation 1."""
    if shape == "normal":
        return rng.normal(size=n)
    if shape.startswith("heavy"):
        return rng.standard_t(3, n) / np.sqrt(3)
    return rng.exponential(size=n) - 1


def simulate(shape: str, n: int, effect: float, studies: int, seed: int) -> dict[str, float | str]:
    """Shares of made-up studies whose intervals hold the truth, and whose verdict claims one."""
    rng = np.random.default_rng([seed, n, round(effect * 10)])
    covered = bca = claimed = wrong = 0
    for _ in range(studies):
        d = draw(shape, rng, n) + effect
        found = compare_paired(dict(enumerate(d)), dict.fromkeys(range(n), 0.0))
        assert found is not None
        assert found.interval is not None
        assert found.bca is not None
        covered += found.interval[0] <= effect <= found.interval[1]
        bca += found.bca[0] <= effect <= found.bca[1]
        words = verdict(holm([found])[0])
        claims = words.startswith(("better", "worse"))
        claimed += claims
        wrong += claims and (effect == 0 or (found.mean > 0) != (effect > 0))
    return {
        "shape": shape,
        "pairs": n,
        "effect": effect,
        "studies": studies,
        "coverage": covered / studies,
        "coverage_bca": bca / studies,
        "claims": claimed / studies,
        "wrong": wrong / studies,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1000, help="made-up studies of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    for shape in SHAPES:
        for n in PAIRS:
            for effect in (0.0, 1.0):
                rows.append(simulate(shape, n, effect, options.studies, options.seed))
                row = rows[-1]
                print(
                    f"{shape:<22} {n:>3} pairs, effect {effect:g} sd: t covers "
                    f"{row['coverage']:.1%}, BCa {row['coverage_bca']:.1%}, "
                    f"claims {row['claims']:.1%}, wrong {row['wrong']:.1%}",
                    flush=True,
                )
    content = {"schema": 1, "scipy": scipy.__version__, "seed": options.seed, "rows": rows}
    atomic_write(options.json, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()

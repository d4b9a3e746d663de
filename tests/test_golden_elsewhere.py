"""The golden tests take any folder's files: here of other sizes and another seed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from plain_golden import write_all

TESTS = Path(__file__).parent


def test_golden_tests_hold_for_other_sizes_and_seeds(tmp_path: Path) -> None:
    """Every file is read, and every size is from the files: the committed ones have others."""
    write_all(tmp_path, seed=20)
    committed = {path.name for path in (TESTS / "golden").glob("*.npz")}
    assert {path.name for path in tmp_path.glob("*.npz")} == committed
    asking = [path for path in TESTS.glob("test_*.py") if "golden(" in path.read_text("utf-8")]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "golden", "-p", "no:cacheprovider",
         *map(str, sorted(asking))],
        env={**os.environ, "UNMIX_GOLDEN": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, cwd=TESTS.parent, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:]
    assert re.search(r"\d\d passed", result.stdout)
    assert "skipped" not in result.stdout

"""Worker process of a study: trains one cell after another with `pretrain`."""

from __future__ import annotations

import gc
import sys
from typing import Any

from unmix.errors import UserError
from unmix.plugins import load
from unmix.training.run.pretrain import pretrain
from unmix.workers import serve

__all__ = ["train"]


def train(task: dict[str, Any]) -> None:
    """Train and measure a cell.

    Args:
        task: `config` and `settings`, as `pretrain` takes them.

    Raises:
        SystemExit: if the settings or the run are refused.
    """
    try:
        pretrain(task["config"], **task["settings"])
    except UserError as error:
        sys.exit(f"unmix: error: {error}")
    finally:
        gc.collect()  # Lightning's objects hold one another


if __name__ == "__main__":
    load()
    serve(train)

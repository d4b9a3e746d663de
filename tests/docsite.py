"""The documentation site, built as `make docs` does, and served to a browser on this machine."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "docs"))

from tools.api import PAGES, names, pages_of  # noqa: E402
from tools.assemble import as_on_the_site, assemble  # noqa: E402
from tools.formulas import render_math  # noqa: E402
from tools.notebook import executed  # noqa: E402
from tools.reference import parser_of  # noqa: E402
from tools.tables import fill_tables, readme  # noqa: E402
from tools.tables import pages as generated  # noqa: E402

__all__ = [
    "PAGES",
    "ROOT",
    "as_on_the_site",
    "build",
    "executed",
    "fill_tables",
    "generated",
    "names",
    "pages_of",
    "parser_of",
    "readme",
    "render_math",
    "served",
]


def build(project: Path) -> Path:
    """Build the site in a folder of its own and give the folder of its pages."""
    shutil.copy(ROOT / "mkdocs.yml", project)
    for folder in ("src", "examples"):
        (project / folder).symlink_to(ROOT / folder)
    assemble(project / "build" / "docs")
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    ran = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "No issues found" in ran.stdout + ran.stderr
    return project / "site"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on a free port of this machine."""
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()

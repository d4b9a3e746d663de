"""Shards of small images, and a server with ranges of bytes that can fail on request."""

from __future__ import annotations

import io
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, kind: str = "jpg", side: int = 24) -> bytes:
    """An encoded image."""
    noise = np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(noise).resize((side, side + 2))
    image.save(file, "JPEG" if kind == "jpg" else kind.upper())
    return file.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar file of these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_shards(
    folder: Path, counts: list[int], name: str = "train", classes: int = 3, first: int = 0
) -> list[Path]:
    """Shards NAME-0000.tar with as many images each, labeled in turn; 0 classes for none."""
    paths = []
    number = first
    for shard, count in enumerate(counts):
        members: list[tuple[str, bytes]] = []
        for _ in range(count):
            kind = ("jpg", "png", "webp")[number % 3]
            members.append((f"{number:06d}.{kind}", picture(number, kind)))
            if classes:
                members.append((f"{number:06d}.cls", str(number % classes).encode()))
            number += 1
        paths.append(write_tar(folder / f"{name}-{shard:04d}.tar", members))
    return paths


@dataclass
class Server:
    """What a server does, and what it was asked.

    Attributes:
        folder: The files.
        ranges: Whether it knows ranges.
        fail: Called with path and number of the request; a status to fail with, or 0.
        delay: Seconds before each answer.
        asked: Number of requests by method and path.
        sent: Bytes by path.
    """

    folder: Path
    url: str = ""
    ranges: bool = True
    fail: Callable[[str, int], int] = lambda path, number: 0
    delay: float = 0.0
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    close: Callable[[], None] = lambda: None
    leave: Callable[[], None] = lambda: None  # closes it in a process that was forked


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve a folder on this machine."""
    server = Server(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            with server.lock:
                server.asked[self.command, self.path] += 1
                number = sum(server.asked.values())
            time.sleep(server.delay)
            status = server.fail(self.path, number)
            path = folder / self.path.lstrip("/")
            if status == 0 and not path.is_file():
                status = 404
            if status == -1:  # gone without an answer
                self.close_connection = True
                return
            if status:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            size = path.stat().st_size
            wanted = self.headers.get("Range")
            start, stop = 0, size
            if wanted and server.ranges:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                start, stop = int(first), min(int(last) + 1 if last else stop, stop)
            self.send_response(206 if wanted and server.ranges else 200)
            self.send_header("Content-Length", str(stop - start))
            self.send_header("ETag", f'"{path.stat().st_mtime_ns:x}"')
            if wanted and server.ranges:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
            self.end_headers()
            if body:
                with path.open("rb") as file:
                    file.seek(start)
                    self.wfile.write(file.read(stop - start))
                with server.lock:
                    server.sent[self.path] += stop - start

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(
        target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()

    def close() -> None:
        server.fail = lambda path, number: -1  # of connections that are open
        http.shutdown()
        http.server_close()

    server.close, server.leave = close, http.server_close
    try:
        yield server
    finally:
        close()

"""One page on this machine alone: an HTTP server for a browser that runs here."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from unmix.errors import UserError, check_number

__all__ = ["HOST", "PORT", "Page", "address", "bound", "serving"]

HOST = "127.0.0.1"
PORT = 8642
"""Where a free port is looked for."""
_TRIED = 20

# Nothing but the page itself may use it: no other site, no frame, no guess of its type.
_HEADERS = {
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Page(NamedTuple):
    """What is served: HTML, and a text that is another one for any other HTML."""

    html: str
    tag: str


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    page: Callable[[], Page]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Show an error, except that of a browser that closes its connection."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "unmix", ""
    timeout = 30

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _refuse_method(self) -> None:
        self._send(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD\n", {"Allow": "GET, HEAD"})

    def _answer(self, body: bool) -> None:
        # A site may give its own name this address (DNS rebinding), and would then read the page.
        port = self.server.server_address[1]
        names = [self.headers.get_all("Host", []), [f"{HOST}:{port}", f"localhost:{port}"]]
        if len(names[0]) != 1 or names[0][0].lower() not in names[1]:
            text = f"this page is at http://{HOST}:{port}/ only\n".encode()
            self._send(HTTPStatus.MISDIRECTED_REQUEST, text, body=body)
            return
        path = self.path.partition("?")[0]
        if path == "/favicon.ico":
            self._send(HTTPStatus.NO_CONTENT, b"", body=False)
        elif path != "/":
            self._send(HTTPStatus.NOT_FOUND, b"there is only one page: /\n", body=body)
        else:
            page = self.server.page()
            content = page.html.encode(errors="backslashreplace")
            tag = f'"{page.tag}"'
            known = [each.strip() for each in self.headers.get("If-None-Match", "").split(",")]
            if tag in known or f"W/{tag}" in known:
                self._send(HTTPStatus.NOT_MODIFIED, b"", {"ETag": tag}, body=False)
            else:
                kind = {"Content-Type": "text/html; charset=utf-8", "ETag": tag}
                self._send(HTTPStatus.OK, content, kind, body=body)

    def _send(
        self, status: HTTPStatus, content: bytes, more: dict[str, str] | None = None,
        body: bool = True,
    ) -> None:  # fmt: skip
        self.send_response(status)
        headers = {"Content-Type": "text/plain; charset=utf-8", **_HEADERS, **(more or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        if status not in (HTTPStatus.NOT_MODIFIED, HTTPStatus.NO_CONTENT):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):  # any other method
            return self._refuse_method
        raise AttributeError(name)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal shows how far the training is."""


def bound(port: int | None = None) -> _Server:
    """Take a port of this machine, on its own address alone.

    Args:
        port: By default the first free one from 8642 on.

    Raises:
        UserError: if it cannot be had.
    """
    if port is not None:
        check_number("port", port, at_least=1, at_most=65535)
        try:
            return _Server((HOST, port), _Handler)
        except OSError as error:
            raise UserError(
                f"{port} cannot be used ({error.strerror}); give another one, or none for a free "
                "one.",
                parameter="port",
            ) from None
    for candidate in (*range(PORT, PORT + _TRIED), 0):
        try:
            return _Server((HOST, candidate), _Handler)
        except OSError as error:
            reason = error.strerror
    raise UserError(f"no port of {HOST} is free ({reason}).", parameter="port")


def address(server: _Server) -> str:
    """Where the page is."""
    return f"http://{HOST}:{server.server_address[1]}/"


@contextmanager
def serving(server: _Server, page: Callable[[], Page]) -> Iterator[str]:
    """Serve a page, beside what the program does; gives its address.

    Args:
        server: Of `bound`.
        page: Gives it as it is now; called from several threads.
    """
    server.page = page
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        yield address(server)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

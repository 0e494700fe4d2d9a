"""A small web server over one function, for this machine or an inner network: plain HTTP, GET alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[int, str, str]
"""Status, content type and text."""


def web_server(
    host: str, port: int, answer: Callable[[BaseHTTPRequestHandler], Answer], headers: Mapping[str, str] | None = None
) -> ThreadingHTTPServer:
    """Return a server that gives ``answer`` of every request, with some headers; the caller runs and closes it.

    Port 0 takes a free one. It keeps nothing of who asks. OSError is raised where it cannot listen there.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, kind, text = answer(self)
            content = text.encode()
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Type": f"{kind}; charset=utf-8"}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Write no line for a request."""

    return ThreadingHTTPServer((host, port), Handler)

"""Serves the page from memory: GET and HEAD alone, nothing is taken in, no other host is allowed to the page."""

import gzip
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from sqzoo.demo.page import Page
from sqzoo.errors import ArgumentError

_HEADERS = {
    # The browser itself refuses whatever is not listed: a picture could not leave, even if the page's code tried.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def serve(page: Page, host: str = "127.0.0.1", port: int = 8000) -> ThreadingHTTPServer:
    """Return a server that listens; `serve_forever` answers, `server_close` ends it. Port 0 takes any free one.

    Raises `ArgumentError` where the address cannot be had.
    """
    handler = type("Handler", (_Handler,), {"page": page})
    try:
        return ThreadingHTTPServer((host, port), handler)
    except (OSError, OverflowError) as e:
        raise ArgumentError(f"Cannot listen at {host}:{port} ({e}); choose another with --port or --host.") from e


class _Handler(BaseHTTPRequestHandler):
    page: Page
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        asset = self.page.assets.get("/index.html" if path == "/" else path)
        if asset is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        if self.headers.get("If-None-Match") == asset.etag:
            self.send_response(HTTPStatus.NOT_MODIFIED)
            self.end_headers()
            return
        packs = "gzip" in self.headers.get("Accept-Encoding", "")
        body = asset.packed if packs else gzip.decompress(asset.packed)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", asset.media)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", asset.etag)
        self.send_header("Vary", "Accept-Encoding")
        if packs:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def end_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the terminal is the user's."""

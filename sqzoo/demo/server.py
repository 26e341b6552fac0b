"""Serves the page from memory: GET and HEAD alone, under its own names alone, and nothing is taken in."""

import gzip
import ipaddress
import re
import socket
import socketserver
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from sqzoo.demo.page import Page
from sqzoo.errors import ArgumentError, printable, why

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

    host: an IPv4 or IPv6 address, or a name. Raises `ArgumentError` where the address cannot be had.
    """
    handler = type("Handler", (_Handler,), {"page": page})
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        server = type("Server", (_Server,), {"address_family": family})
        return server((address[0], port), handler, host)
    except (OSError, OverflowError, UnicodeError, ValueError) as e:
        raise ArgumentError(
            f"Cannot listen at {printable(host)}:{port} ({why(e)}); choose another with --port or --host."
        ) from e


class _Server(ThreadingHTTPServer):
    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], host: str) -> None:
        self.host = host.strip("[]").casefold()
        super().__init__(address, handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's asks the network for the machine's name
        self.server_name, self.server_port = self.host, self.server_address[1]

    def answers_to(self, name: str) -> bool:
        """Whether the page may be asked for under a name (the request's Host).

        A name that another site's owner has pointed to this machine (DNS rebinding) is not among them: else that
        site's page could read what is served here.
        """
        found = re.fullmatch(r"\[(.*)\](:\d*)?|([^:]*)(:\d*)?", name.strip().casefold())
        name = (found[1] or found[3] or "").rstrip(".") if found else ""
        here = ipaddress.ip_address(str(self.server_address[0]))
        try:
            asked = ipaddress.ip_address(name)
        except ValueError:
            own = {"localhost"} if here.is_loopback else {"localhost", socket.gethostname().casefold()}
            return name in own | {self.host}
        return asked.is_loopback if here.is_loopback else True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a browser that goes away, and one line of anything else."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            print(f"sqzoo: a request failed ({type(error).__name__}: {printable(error)}).", file=sys.stderr)


class _Handler(BaseHTTPRequestHandler):
    page: Page
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds without a word from the browser

    def do_GET(self) -> None:
        if not self.server.answers_to(self.headers.get("Host", "")):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            return
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

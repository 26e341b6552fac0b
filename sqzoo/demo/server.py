"""Serve the page from memory: GET and HEAD only, for its own host names only; no uploads."""

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
    # The browser refuses whatever is not listed: an image cannot leave, even if the page's code tried.
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
    """Return a bound server for `serve_forever`.

    Args:
        page: what to serve.
        host: IPv4 or IPv6 address to bind, or a name.
        port: to bind; 0 takes any free one.

    Raises:
        ArgumentError: the address cannot be bound.
    """
    handler = type("Handler", (_Handler,), {"page": page})
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        server = type("Server", (_Server,), {"address_family": family})
        return server((address[0], port), handler, host)
    except (OSError, OverflowError, UnicodeError, ValueError) as e:
        raise ArgumentError(
            f"Cannot bind {printable(host)}:{port} ({why(e)}); choose another with --port or --host."
        ) from e


class _Server(ThreadingHTTPServer):
    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], host: str) -> None:
        self.host = host.strip("[]").casefold()
        super().__init__(address, handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's asks the network for the machine's name
        self.server_name, self.server_port = self.host, self.server_address[1]

    def answers_to(self, name: str) -> bool:
        """Whether a request's Host is one of this server's names.

        Refuses a name that another site pointed to this machine (DNS rebinding), whose page could else read this one.
        """
        match = re.fullmatch(r"\[(.*)\](:\d*)?|([^:]*)(:\d*)?", name.strip().casefold())
        name = (match[1] or match[3] or "").rstrip(".") if match else ""
        here = ipaddress.ip_address(str(self.server_address[0]))
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            own = {"localhost"} if here.is_loopback else {"localhost", socket.gethostname().casefold()}
            return name in own | {self.host}
        return address.is_loopback if here.is_loopback else True

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a browser that disconnects; print one line for anything else."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            print(f"sqzoo: a request failed ({type(error).__name__}: {printable(error)}).", file=sys.stderr)


class _Handler(BaseHTTPRequestHandler):
    page: Page
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds of silence

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
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", asset.media)
        self.send_header("Content-Length", str(len(asset.body)))
        self.send_header("ETag", asset.etag)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(asset.body)

    do_HEAD = do_GET

    def end_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the terminal is the user's."""

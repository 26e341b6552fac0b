"""GitHub on loopback, as far as torch.hub asks it: branches, tags and zipballs of repositories, behind a proxy.

    with GitHubServer(folder) as github:
        github.put("org/name", {"main": zipball})
        subprocess.run(command, env=os.environ | github.env)  # urllib goes by HTTPS_PROXY and trusts SSL_CERT_FILE

torch.hub's addresses are fixed, so this is an HTTPS proxy that answers for github.com, api.github.com and
codeload.github.com itself, with certificates of an authority of its own. `limited` makes the API refuse who sends no
good token, as GitHub does after 60 calls in an hour.
"""

import hashlib
import json
import re
import ssl
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme

HOSTS = ("github.com", "api.github.com", "codeload.github.com")
LIMITED = (
    "API rate limit exceeded for 127.0.0.1. (But here's the good news: Authenticated requests get a higher limit.)"
)


class GitHubServer:
    """Serves from `with` on. `requests` has (address, Authorization header or None) of every request, in order."""

    def __init__(self, folder: Path, token: str = "good") -> None:
        self.token, self.limited = token, False
        self.requests: list[tuple[str, str | None]] = []
        self.repos: dict[str, dict[str, bytes]] = {}  # ORG/NAME: branch or tag: zipball
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(folder / "authority.pem"))
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*HOSTS).configure_cert(self.tls)
        self._listener = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._listener.github = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.02,))
        proxy = f"http://127.0.0.1:{self._listener.server_port}"
        self.env = {"HTTPS_PROXY": proxy, "https_proxy": proxy, "NO_PROXY": "", "no_proxy": ""}
        self.env["SSL_CERT_FILE"] = str(folder / "authority.pem")

    def __enter__(self) -> "GitHubServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()

    def put(self, name: str, zipballs: dict[str, bytes]) -> None:
        self.repos[name] = zipballs

    def paths(self, part: str) -> list[str]:
        """The addresses asked for, so far, that contain `part`."""
        return [address for address, _ in self.requests if part in address]


class _Handler(BaseHTTPRequestHandler):
    github: GitHubServer
    host = ""

    def do_CONNECT(self) -> None:
        self.host = self.path.partition(":")[0]
        if self.host not in HOSTS:
            return self.send_error(502)
        self.send_response(200)
        self.end_headers()
        with suppress(OSError):  # a client that does not trust us, or leaves early
            tls = self.server.github.tls  # type: ignore[attr-defined]
            with tls.wrap_socket(self.connection, server_side=True) as self.connection:
                with self.connection.makefile("rb") as self.rfile, self.connection.makefile("wb") as self.wfile:
                    self.handle_one_request()

    def do_GET(self) -> None:
        github: GitHubServer = self.server.github  # type: ignore[attr-defined]
        sent = self.headers.get("Authorization")
        github.requests.append((self.host + self.path, sent))
        route = re.fullmatch(r"(?:/repos)?/([^/]+/[^/]+)/(tree|branches|tags|zipball|legacy\.zip)(.*)", self.path)
        refs = github.repos.get(route[1], {}) if route else {}
        if not route or not refs:
            return self._send(404, {"message": "Not Found"})
        kind, rest = route[2], route[3].strip("/")
        if self.host == "api.github.com":
            if sent is not None and sent != f"token {github.token}":
                return self._send(401, {"message": "Bad credentials"})
            if github.limited and sent is None:
                return self._send(403, {"message": LIMITED}, {"X-RateLimit-Limit": "60", "X-RateLimit-Remaining": "0"})
            listed = [{"name": r, "commit": {"sha": hashlib.sha1(z).hexdigest()}} for r, z in refs.items()]
            return self._send(200, listed if kind == "branches" and rest.endswith("&page=1") else [])
        if rest not in refs:
            return self._send(404, {"message": "Not Found"})
        if kind == "zipball":
            return self._send(302, {}, {"Location": f"https://codeload.github.com/{route[1]}/legacy.zip/{rest}"})
        return self._send(200, refs[rest] if kind == "legacy.zip" else b"<html></html>")

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass

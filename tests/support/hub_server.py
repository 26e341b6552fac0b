"""A Hugging Face Hub on loopback: the real `huggingface_hub` client talks to it, and it fails in the ways it is told.

    with HubServer(token="secret") as server:
        commit = server.put("org/name", {"config.json": b"{}"})
        hf_hub_download("org/name", "config.json", endpoint=server.url, cache_dir=folder)
        server.fault = Fault("cut", after=1000, path="model.safetensors")

A data set is named `datasets/org/name`. Uploads of LFS files need HF_HUB_DISABLE_XET=1, which `server.env` has: where
hf_xet is installed, no answer makes the client fall back. Missing, and mostly answered by 501: Xet, multipart
uploads, branches but main, tags, pull requests, sizes in `repo_info`, pages of long listings, compression.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

DATE = "2026-01-01T00:00:00.000Z"
LFS_SUFFIXES = (".safetensors", ".bin", ".npz", ".onnx", ".parquet", ".pt", ".pth")
LFS_SIZE = 10_000_000  # bytes; above it a file of any name is LFS
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()


@dataclass
class Fault:
    """What goes wrong with the next `times` requests (None: all) of `method` whose path and query contain `path`.

    - cut: the connection ends after `after` bytes of the body, with `after=None` before any answer
    - reset: the same by a TCP reset; stall: the same by silence, but the rest does come after `seconds`
    - slow: `after` bytes every `seconds`
    - length: the whole body under a Content-Length that is `by` bytes too large, or too small where `by` is negative
    - flip: the body with one bit of its middle byte changed, under the true length and ETag
    - status: `status`, with Retry-After if `retry_after` seconds are given
    - redirect: to the very same URL
    - json: the answer as `change` makes it of the true one; by default its first half, which is no JSON

    Only under status and redirect is the request not carried out: a commit whose answer is cut is there. A fault of the
    body spares HEAD unless `method` asks for it.
    """

    kind: Literal["cut", "reset", "stall", "slow", "length", "flip", "status", "redirect", "json"]
    times: int | None = 1
    path: str = ""
    method: str | None = None
    after: int | None = None
    seconds: float = 60
    by: int = -1
    status: int = 500
    retry_after: int | None = None
    change: Callable[[Any], Any] | None = None

    def strikes(self, method: str, path: str) -> bool:
        """Whether this request is one of them, which is then counted."""
        whole = self.kind in ("status", "redirect") or (self.kind in ("cut", "reset", "stall") and self.after is None)
        if method != self.method and (self.method or (method == "HEAD" and not whole)):
            return False
        if self.times == 0 or self.path not in path:
            return False
        self.times = self.times and self.times - 1
        return True


class Answer(Exception):
    """Returned, or raised where it refuses. A body that is not bytes is sent as JSON."""

    def __init__(self, status: int, body: Any = b"", headers: Mapping[str, str] | None = None) -> None:
        plain = isinstance(body, bytes)
        self.status, self.body = status, body if plain else json.dumps(body).encode()
        kind = {"Content-Type": "application/octet-stream" if plain else "application/json"}
        self.headers = kind | dict(headers or {})


def refusal(status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None) -> Answer:
    """`code` is X-Error-Code, by which the client chooses the error that it raises."""
    one_line = " ".join(message.split()).encode("ascii", "replace").decode()
    coded = {"X-Error-Code": code} if code else {}
    return Answer(status, {"error": message}, {"X-Error-Message": one_line, **coded, **(headers or {})})


# What the Hub keeps


def is_lfs(path: str, size: int) -> bool:
    """Empty files never are: the client commits them as text, whatever the server says."""
    return size > 0 and (path.endswith(LFS_SUFFIXES) or size > LFS_SIZE)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(path: str, content: bytes) -> str:
    return sha256(content) if is_lfs(path, len(content)) else git_oid(content)


def tree_entry(path: str, content: bytes) -> dict[str, Any]:
    oid, size = etag(path, content), len(content)
    entry = {"type": "file", "path": path, "size": size, "oid": oid}
    if is_lfs(path, size):
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n".encode()
        entry |= {"oid": git_oid(pointer), "lfs": {"oid": oid, "size": size, "pointerSize": len(pointer)}}
    return entry


@dataclass
class Repo:
    name: str
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)  # SHA-256: content, as LFS looks for it
    main: str = ""

    def commit(self, title: str, files: dict[str, bytes]) -> str:
        oids = {path: sha256(files[path]) for path in sorted(files)}
        self.main = hashlib.sha1(json.dumps([self.main, title, oids]).encode()).hexdigest()
        self.commits[self.main] = {path: files[path] for path in oids}
        self.blobs |= {oid: files[path] for path, oid in oids.items()}
        return self.main

    def sha(self, revision: str) -> str:
        sha = self.main if revision == "main" else revision
        if sha not in self.commits:
            raise refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha


# The protocol

Endpoint = Callable[..., Any]
ROUTES: list[tuple[str, re.Pattern[str], Endpoint]] = []
API = "/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+/[^/]+)"
WEB = "/(?:(?P<kind>datasets|spaces)/)?(?P<name>[^/]+/[^/]+)"
REVISION = "/(?P<revision>[^/]+)"
LFS = f"/lfs{WEB}/(?P<oid>[0-9a-f]{{64}})"


def route(method: str, pattern: str) -> Callable[[Endpoint], Endpoint]:
    """The endpoint gets the request, the repository if the pattern names one, and the pattern's other groups."""

    def register(endpoint: Endpoint) -> Endpoint:
        ROUTES.append((method, re.compile(pattern), endpoint))
        return endpoint

    return register


class HubServer:
    """Serves from `with` on, at `url`. `token` may write, `read_token` may only read; without `token` anyone may write.

    `requests` has (method, path and query) of every request, in order, and `headers` its headers at the same place.
    `fault` is a `Fault`, or a function of method and path that returns one or None.
    """

    def __init__(self, token: str | None = None, read_token: str | None = None) -> None:
        self.token, self.read_token = token, read_token
        self.requests: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.fault: Fault | Callable[[str, str], Fault | None] | None = None
        self.stopping = threading.Event()
        self._repos: dict[str, Repo] = {}
        self._lock = threading.RLock()
        # LFS files come from a port of their own, as the Hub's come from another host: there the client stops following
        # redirects by itself and leaves the token out.
        self._listeners = [_Listener(self), _Listener(self)]
        self.url, self.cdn = (f"http://127.0.0.1:{listener.server_port}" for listener in self._listeners)
        self._threads = [threading.Thread(target=listener.serve_forever, args=(0.02,)) for listener in self._listeners]

    @property
    def env(self) -> dict[str, str]:
        """Environment variables that lead a client here."""
        ours = {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
        return ours | ({"HF_TOKEN": self.token} if self.token else {})

    def __enter__(self) -> "HubServer":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close every connection, stalled ones too; afterwards connections to `url` are refused."""
        self.stopping.set()
        for listener, thread in zip(self._listeners, self._threads, strict=True):
            if thread.is_alive():
                listener.shutdown()
                for connection in listener.connections:
                    with suppress(OSError):  # closed long ago
                        connection.shutdown(socket.SHUT_RDWR)
                listener.server_close()
                thread.join()

    def create(self, name: str, private: bool = False) -> None:
        with self._lock:
            self._repos[name] = Repo(name, private)
            self._repos[name].commit("initial commit", {".gitattributes": GITATTRIBUTES})

    def put(self, name: str, files: Mapping[str, bytes | None]) -> str:
        """Commit `files` (None deletes) onto main, of a new repository if it is missing; returns the commit."""
        with self._lock:
            if name not in self._repos:
                self.create(name)
            merged = {**self.files(name), **files}
            return self._repos[name].commit("put", {p: content for p, content in merged.items() if content is not None})

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        with self._lock:
            return dict(self._repos[name].commits[self._repos[name].sha(revision)])

    def record(self, request: "_Handler") -> Fault | None:
        method, path = request.command, request.path
        with self._lock:
            self.requests.append((method, path))
            self.headers.append({name.lower(): value for name, value in request.headers.items()})
            fault = self.fault(method, path) if callable(self.fault) else self.fault
            return fault if fault and fault.strikes(method, path) else None

    def answer(self, request: "_Handler") -> Answer:
        method, path = request.command.replace("HEAD", "GET"), urlsplit(request.path).path
        try:
            for known, pattern, endpoint in ROUTES:
                if known == method and (match := pattern.fullmatch(path)):
                    groups: dict[str, Any] = {key: part and unquote(part) for key, part in match.groupdict().items()}
                    with self._lock:
                        if "name" in groups:
                            kind, name = groups.pop("kind"), groups.pop("name")
                            name = name if kind in (None, "models") else f"{kind}/{name}"
                            groups["repo"] = self._repo(request, name, write=method == "POST")
                        found = endpoint(self, request, **groups)
                    return found if isinstance(found, Answer) else Answer(200, found)
            return refusal(501, f"tests/hub_server.py has no {method} {path}")
        except Answer as refused:
            return refused
        except Exception:  # 501 is an error that the client never tries again, so a bug in here shows at once
            return refusal(501, traceback.format_exc())

    def _role(self, request: "_Handler") -> Literal["write", "read"] | None:
        sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.token is None or sent == self.token:
            return "write"
        if sent and sent != self.read_token:
            raise refusal(401, "Invalid credentials in Authorization header")
        return "read" if sent else None

    def _repo(self, request: "_Handler", name: str, write: bool) -> Repo:
        # The CDN asks for no token, as the Hub signs the address instead.
        role, repo = "write" if request.path.startswith("/lfs/") else self._role(request), self._repos.get(name)
        # Strangers are not told whether a private repository exists. From an https address the client takes any 401 for
        # "repository not found"; from this one it needs the code.
        if role is None and (repo is None or repo.private or write):
            raise refusal(401, "Invalid username or password.", "RepoNotFound")
        if repo is None:
            raise refusal(404, "Repository not found", "RepoNotFound")
        if write and role != "write":
            raise refusal(403, f"You don't have the rights to write to {name} with this token")
        return repo

    @route("GET", "/api/whoami-v2")
    def _whoami(self, request: "_Handler") -> Any:
        if not request.headers.get("Authorization"):
            raise refusal(401, "Invalid username or password.")
        access = {"displayName": "test", "role": self._role(request)}
        return {"type": "user", "id": "0", "name": "tester", "orgs": [], "auth": {"accessToken": access}}

    @route("POST", "/api/repos/create")
    def _create_repo(self, request: "_Handler") -> Any:
        wish, role = request.json(), self._role(request)
        if role != "write":
            raise refusal(403 if role else 401, "You don't have the rights to create a repository with this token")
        prefix = "" if wish.get("type") in (None, "model") else f"{wish['type']}s/"
        name = f"{prefix}{wish.get('organization') or 'tester'}/{wish['name']}"
        found = {"name": name, "url": f"{self.url}/{name}"}
        if name in self._repos:
            return Answer(409, found | {"error": "You already created this repo"})
        self.create(name, wish.get("visibility") == "private" or wish.get("private") is True)
        return found

    @route("POST", "/api/validate-yaml")
    def _validate_card(self, request: "_Handler") -> Any:
        """The standard library reads no YAML: only a line that is no part of a mapping is found."""
        block = re.match(r"---\n(.*?)^---$", request.json()["content"], re.DOTALL | re.MULTILINE)
        if block is None:
            return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
        wrong = [line for line in block[1].splitlines() if not re.match(r"\s|#|- |$|[\w.-]+:(\s|$)", line)]
        return Answer(400 if wrong else 200, {"errors": [{"message": f"bad metadata: {line}"} for line in wrong]})

    @route("GET", f"{API}(?:/revision{REVISION})?")
    def _info(self, request: "_Handler", repo: Repo, revision: str | None) -> Any:
        sha = repo.sha(revision or "main")
        siblings = [{"rfilename": path} for path in repo.commits[sha]]
        *_, author, name = repo.name.split("/")
        about = {"author": author, "private": repo.private, "gated": False, "disabled": False, "tags": []}
        return {"id": f"{author}/{name}", "sha": sha, "lastModified": DATE, "siblings": siblings, **about}

    @route("GET", f"{API}/tree{REVISION}(?:/(?P<folder>.+))?")
    def _tree(self, request: "_Handler", repo: Repo, revision: str, folder: str | None) -> Any:
        found = {path: tree_entry(path, content) for path, content in repo.commits[repo.sha(revision)].items()}
        for parent in {str(parent) for path in found for parent in PurePosixPath(path).parents} - {"."}:
            found[parent] = {"type": "directory", "path": parent, "size": 0, "oid": git_oid(parent.encode())}
        if folder and found.get(folder, {}).get("type") != "directory":
            raise refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        depth = None if "recursive=true" in request.path else 1
        inside = {path: list(map(str, PurePosixPath(path).parents))[:depth] for path in found}
        return [found[path] for path in sorted(found) if (folder or ".") in inside[path]]

    @route("GET", f"{WEB}/resolve{REVISION}/(?P<path>.+)")
    def _resolve(self, request: "_Handler", repo: Repo, revision: str, path: str) -> Answer:
        sha = repo.sha(revision)
        content, headers = repo.commits[sha].get(path), {"X-Repo-Commit": sha}
        if content is None:
            raise refusal(404, "Entry not found", "EntryNotFound", headers)
        oid = etag(path, content)
        if not is_lfs(path, len(content)):
            return _ranged(request, content, headers | {"ETag": f'"{oid}"'})
        headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content)), "Accept-Ranges": "bytes"}
        location = f"{self.cdn}/lfs/{repo.name}/{oid}?filename={quote(path)}"
        return Answer(302, headers=headers | {"Location": location})

    @route("POST", f"{API}/preupload{REVISION}")
    def _preupload(self, request: "_Handler", repo: Repo, revision: str) -> Any:
        there, files = repo.commits[repo.sha(revision)], []
        for path, size in ((wish["path"], wish["size"]) for wish in request.json()["files"]):
            mode = "lfs" if is_lfs(path, size) else "regular"
            oid = etag(path, there[path]) if path in there else None  # the client leaves out a file that has it already
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": files}

    @route("POST", rf"{WEB}\.git/info/lfs/objects/batch")
    def _lfs_batch(self, request: "_Handler", repo: Repo) -> Any:
        objects = [{"oid": wish["oid"], "size": wish["size"]} for wish in request.json()["objects"]]
        for wanted in (wish for wish in objects if wish["oid"] not in repo.blobs):
            upload = {"href": f"{self.cdn}/lfs/{repo.name}/{wanted['oid']}"}
            wanted["actions"] = {"upload": upload, "verify": {"href": f"{self.url}/{repo.name}.git/info/lfs/verify"}}
        return {"transfer": "basic", "objects": objects}

    @route("GET", LFS)
    def _lfs_get(self, request: "_Handler", repo: Repo, oid: str) -> Answer:
        return _ranged(request, repo.blobs[oid], {"ETag": f'"{oid}"'})

    @route("PUT", LFS)
    def _lfs_put(self, request: "_Handler", repo: Repo, oid: str) -> Answer:
        if sha256(request.body) != oid:
            raise refusal(400, f"{len(request.body)} bytes that are not {oid}")
        repo.blobs[oid] = request.body
        return Answer(200)

    @route("POST", rf"{WEB}\.git/info/lfs/verify")
    def _lfs_verify(self, request: "_Handler", repo: Repo) -> Any:
        oid, size = request.json()["oid"], request.json()["size"]
        if len(repo.blobs.get(oid, b"")) != size:
            raise refusal(404, f"No upload of {oid}")
        return {}

    @route("POST", f"{API}/commit{REVISION}")
    def _commit(self, request: "_Handler", repo: Repo, revision: str) -> Any:
        if revision != "main":
            raise refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        header, *operations = (json.loads(line) for line in request.body.splitlines())
        if not repo.main.startswith(header["value"].get("parentCommit", "")):
            raise refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[repo.main])
        for key, value in ((operation["key"], operation["value"]) for operation in operations):
            path = value["path"]
            gone = [f for f in files if f == path or (key == "deletedFolder" and f.startswith(path.rstrip("/") + "/"))]
            if key == "file":
                files[path] = base64.b64decode(value["content"])
            elif key == "lfsFile" and value["oid"] in repo.blobs:
                files[path] = repo.blobs[value["oid"]]
            elif key.startswith("deleted") and gone:
                files = {file: content for file, content in files.items() if file not in gone}
            elif key.startswith("deleted"):
                raise refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            else:
                raise refusal(400, f"Cannot commit {key} {path}")
        sha = repo.commit(header["value"]["summary"], files)
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{repo.name}/commit/{sha}"}


def _ranged(request: "_Handler", content: bytes, headers: Mapping[str, str]) -> Answer:
    size, headers = len(content), {"Accept-Ranges": "bytes", **headers}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", ""))
    if request.command == "HEAD" or wanted is None or not any(wanted.groups()):
        return Answer(200, content, headers)
    first, last = wanted.groups()
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last) + 1, size) if first and last else size
    if start >= end:
        raise refusal(416, f"No {wanted.group()} in {size} bytes", headers={"Content-Range": f"bytes */{size}"})
    return Answer(206, content[start:end], headers | {"Content-Range": f"bytes {start}-{end - 1}/{size}"})


# The wire


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes, 40 ms apart otherwise
    server: "_Listener"

    def log_message(self, *_: object) -> None:
        pass

    def json(self) -> Any:
        return json.loads(self.body)

    def do_GET(self) -> None:
        hub, self.body = self.server.hub, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = hub.record(self)
        if fault and fault.kind == "status":
            wait = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            answer = refusal(fault.status, f"Fault {fault.status}", headers=wait)
        elif fault and fault.kind == "redirect":
            answer = Answer(302, headers={"Location": self.path})
        else:
            answer = hub.answer(self)
        if fault and fault.kind == "json":
            half = answer.body[: len(answer.body) // 2]
            answer.body = json.dumps(fault.change(json.loads(answer.body))).encode() if fault.change else half
        self._send(answer, fault or Fault("status", times=0))

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # huggingface_hub sends no chunked bodies

    def _send(self, answer: Answer, fault: Fault) -> None:
        body, kind, after = answer.body, fault.kind, fault.after
        if kind in ("cut", "reset", "stall") and after is None and self._broken(fault):
            return
        self.send_response(answer.status)
        length = len(body) + (fault.by if body and kind == "length" else 0)
        for name, value in {**answer.headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind == "flip" and body:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        if kind in ("cut", "reset", "stall") and after is not None:
            self.wfile.write(body[:after])
            body = b"" if self._broken(fault) else body[after:]
        step = (after or 1) if kind == "slow" else max(len(body), 1)
        for start in range(0, len(body), step):
            self.wfile.write(body[start : start + step])
            if kind == "slow":
                self.server.hub.stopping.wait(fault.seconds)
        self.close_connection |= kind == "length"

    def _broken(self, fault: Fault) -> bool:
        """Whether the connection is at its end now."""
        self.close_connection = fault.kind != "stall" or self.server.hub.stopping.wait(fault.seconds)
        if fault.kind == "reset":  # closed with no time to linger, and before socketserver says goodbye
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()
        return self.close_connection


class _Listener(ThreadingHTTPServer):
    daemon_threads = False  # so that server_close waits for them, and none outlives the test
    request_queue_size = 64

    def __init__(self, hub: HubServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.connections: list[socket.socket] = []

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that left early is no error
            super().handle_error(request, client_address)

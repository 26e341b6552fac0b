"""The Hub on loopback, by the real client: what it serves, what it refuses, and what each fault does to a download."""

import hashlib
import json
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import CommitOperationDelete, HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.numpy import save

from tests.support.fork import python
from tests.support.hub_server import Fault, HubServer

REPO, WEIGHTS, CARD = "org/name", "model.safetensors", b"---\nlicense: mit\ntags:\n- tiny\n---\n# A model\n"
DATA = save({"w": np.arange(500_000, dtype=np.float32)})  # 2 MB
FILES = {"config.json": b'{"mid": 8}', "sub folder/notes.txt": b"some text", "README.md": CARD, WEIGHTS: DATA}


@pytest.fixture()
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """What `server.env` sets is set in the client's constants here, as it reads the environment at import alone."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    with HubServer(token="secret", read_token="reader") as running:
        yield running


@pytest.fixture()
def api(server: HubServer) -> HfApi:
    return HfApi(endpoint=server.url, token="secret")


@pytest.fixture()
def fetch(server: HubServer, tmp_path: Path) -> Callable[..., bytes]:
    """The bytes of a file as the client has them at last."""

    def read(file: str = WEIGHTS, repo: str = REPO, token: str | bool = "secret", **options: Any) -> bytes:
        where = {"endpoint": server.url, "cache_dir": tmp_path / "cache", "etag_timeout": 1}
        return Path(hf_hub_download(repo, file, token=token, **{**where, **options})).read_bytes()

    return read


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def downloads(server: HubServer) -> list[str]:
    return [method for method, path in server.requests if WEIGHTS in path]


# What it serves


def test_folder_goes_up_and_comes_back_by_environment_alone(server: HubServer, tmp_path: Path) -> None:
    folder = write(tmp_path / "folder", FILES)
    code = (
        "from huggingface_hub import HfApi, hf_hub_download\n"
        "HfApi().create_repo('org/name')\n"
        f"print(HfApi().upload_folder(repo_id='org/name', folder_path={str(folder)!r}).oid)\n"
        f"print(hf_hub_download('org/name', {WEIGHTS!r}))\n"
    )
    done = subprocess.run(
        [python(timm=False), "-c", code],
        env={"HF_HOME": str(tmp_path / "home"), "PATH": "", **server.env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    commit, path = done.stdout.split()
    assert Path(path).read_bytes() == DATA
    assert (
        server.files(REPO, commit)
        == server.files(REPO)
        == {".gitattributes": server.files(REPO)[".gitattributes"], **FILES}
    )
    oid = hashlib.sha256(DATA).hexdigest()
    large = [(m, p) for m, p in server.requests if "lfs" in p]
    assert large == [
        ("POST", f"/{REPO}.git/info/lfs/objects/batch"),
        ("PUT", f"/lfs/{REPO}/{oid}"),
        ("POST", f"/{REPO}.git/info/lfs/verify"),
        ("GET", f"/lfs/{REPO}/{oid}?filename={WEIGHTS}"),
    ]
    storage = [
        headers for (_, path), headers in zip(server.requests, server.headers, strict=True) if path[:5] == "/lfs/"
    ]
    assert all("authorization" not in headers for headers in storage)  # the token stays with the Hub


def test_branch_and_old_commits(server: HubServer, api: HfApi, fetch: Callable[..., bytes]) -> None:
    first = server.put(REPO, FILES)
    second = api.upload_file(path_or_fileobj=b"new" * 9, path_in_repo=WEIGHTS, repo_id=REPO).oid
    assert len({first, second}) == 2 and all(len(sha) == 40 and int(sha, 16) for sha in (first, second))
    assert fetch() == fetch(revision=second) == b"new" * 9
    assert fetch(revision=first) == DATA
    assert server.put("org/copy", FILES) == first != server.put("org/other", FILES | {WEIGHTS: b"other"})
    assert [api.model_info(REPO, revision=r).sha for r in (None, "main", first)] == [second, second, first]
    seen = len(server.requests)
    assert fetch(revision=first) == DATA and len(server.requests) == seen  # a commit that is cached needs no network


def test_listings(server: HubServer, api: HfApi) -> None:
    first, _ = server.put(REPO, FILES), server.put(REPO, {"config.json": None})
    names = sorted([".gitattributes", *FILES])
    assert api.list_repo_files(REPO, revision=first) == names
    assert [s.rfilename for s in api.model_info(REPO, revision=first).siblings or []] == names
    assert api.list_repo_files(REPO) == [name for name in names if name != "config.json"]
    top = {entry.path: entry for entry in api.list_repo_tree(REPO)}
    assert sorted(top) == [".gitattributes", "README.md", WEIGHTS, "sub folder"]
    assert (top[WEIGHTS].size, top[WEIGHTS].lfs.sha256) == (len(DATA), hashlib.sha256(DATA).hexdigest())
    assert [entry.path for entry in api.list_repo_tree(REPO, "sub folder")] == ["sub folder/notes.txt"]
    assert api.file_exists(REPO, "README.md") and not api.file_exists(REPO, "config.json")
    assert api.whoami()["name"] == "tester"


def test_snapshot_of_a_private_dataset(server: HubServer, api: HfApi, tmp_path: Path) -> None:
    for _ in range(2):
        assert (
            api.create_repo("org/pictures", repo_type="dataset", private=True, exist_ok=True).repo_id == "org/pictures"
        )
    server.put("datasets/org/pictures", FILES)
    there = dict(endpoint=server.url, repo_type="dataset", cache_dir=tmp_path / "cache")
    with pytest.raises(RepositoryNotFoundError):
        snapshot_download("org/pictures", token=False, **there)
    folder = Path(snapshot_download("org/pictures", token="reader", **there))
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES


def test_commits(server: HubServer, api: HfApi, tmp_path: Path) -> None:
    folder = write(tmp_path / "folder", FILES)
    server.put(REPO, FILES)
    head = api.model_info(REPO).sha
    assert api.upload_folder(repo_id=REPO, folder_path=folder).oid == head  # nothing has changed
    assert not any("commit" in path or method == "PUT" for method, path in server.requests)
    gone = [CommitOperationDelete("sub folder/"), CommitOperationDelete("config.json")]
    api.create_commit(REPO, gone, commit_message="tidy", parent_commit=head)
    assert sorted(server.files(REPO)) == [".gitattributes", "README.md", WEIGHTS]
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as caught:
        api.create_commit(REPO, gone, commit_message="tidy", parent_commit=head)
    assert caught.value.response.status_code == 412
    with pytest.raises(RemoteEntryNotFoundError, match="doesn't exist"):
        api.create_commit(REPO, gone, commit_message="tidy")


def test_cards_are_validated(server: HubServer, api: HfApi) -> None:
    server.put(REPO, {})
    with pytest.raises(ValueError, match="bad metadata: license"):
        api.upload_file(path_or_fileobj=b"---\nlicense\n---\n", path_in_repo="README.md", repo_id=REPO)
    with pytest.warns(UserWarning, match="empty or missing yaml"):
        api.upload_file(path_or_fileobj=b"# A model", path_in_repo="README.md", repo_id=REPO)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        api.upload_file(path_or_fileobj=CARD, path_in_repo="README.md", repo_id=REPO)
    assert server.files(REPO)["README.md"] == CARD


def test_ranges(server: HubServer) -> None:
    server.put(REPO, FILES)
    session = huggingface_hub.get_session()
    for name in ("config.json", WEIGHTS):  # both kinds of files, the large one behind a redirect
        url, data = f"{server.url}/{REPO}/resolve/main/{name}", FILES[name]
        wanted = {"bytes=3-5": data[3:6], "bytes=7-": data[7:], "bytes=-2": data[-2:], f"bytes=0-{len(data)}": data}
        for header, expected in wanted.items():
            part = session.get(url, headers={"Range": header, "Authorization": "Bearer secret"})
            assert (part.status_code, part.content) == (206, expected)
            assert part.headers["Content-Range"].endswith(f"/{len(data)}")
        beyond = session.get(url, headers={"Range": f"bytes={len(data)}-", "Authorization": "Bearer secret"})
        assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{len(data)}")


# What it refuses


def test_what_is_not_there(server: HubServer, api: HfApi, fetch: Callable[..., bytes]) -> None:
    server.put(REPO, FILES)
    with pytest.raises(RemoteEntryNotFoundError):
        fetch("nothing.txt")
    with pytest.raises(RevisionNotFoundError):
        fetch(revision="nowhere")
    with pytest.raises(RevisionNotFoundError):
        fetch(revision="0" * 40)
    for token in ("secret", False):
        with pytest.raises(RepositoryNotFoundError):
            fetch(repo="org/nothing", token=token)
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(REPO, "nothing"))
    with pytest.raises(HfHubHTTPError, match=r"tests/hub_server.py has no GET /api/models/org/name/refs"):
        api.list_repo_refs(REPO)


def test_who_may_do_what(server: HubServer, api: HfApi, fetch: Callable[..., bytes]) -> None:
    server.create(REPO, private=True)
    server.put(REPO, FILES)
    server.put("org/open", FILES)
    assert fetch(token="reader") == fetch(repo="org/open", token=False) == DATA
    with pytest.raises(RepositoryNotFoundError):
        fetch("config.json", token=False)
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as caught:
        fetch("config.json", token="wrong")
    assert caught.value.response.status_code == 401 and not isinstance(caught.value, RepositoryNotFoundError)
    for token, status in (("reader", 403), ("wrong", 401), (False, 401)):
        other = HfApi(endpoint=server.url, token=token)
        with pytest.raises(HfHubHTTPError) as caught:
            other.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="org/open")
        assert caught.value.response.status_code == status
        with pytest.raises(HfHubHTTPError) as caught:
            other.create_repo("org/new")
        assert caught.value.response.status_code == status
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(endpoint=server.url, token="wrong").whoami()
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_repo("org/open")
    assert caught.value.response.status_code == 409
    assert "x.txt" not in server.files("org/open")


# What its faults do to the client


@pytest.mark.parametrize(
    ("fault", "methods", "seconds"),
    [
        (Fault("cut", after=1000), "HEAD GET GET", 1),  # before a download is tried again it waits a second
        (Fault("stall", after=1000), "HEAD GET GET", 2),
        (Fault("length", by=10), "HEAD GET GET", 1),
        (Fault("slow", after=500_000, seconds=0.3), "HEAD GET", 1.2),  # longer than its timeout, which is for a silence
        (Fault("status", status=503), "HEAD HEAD GET", 0),  # after the first error it waits for nothing
        (Fault("status", status=429, times=2, retry_after=1), "HEAD HEAD HEAD GET", 2),  # a second more than asked
    ],
    ids=lambda value: f"{value.kind}-{value.after or value.status}" if isinstance(value, Fault) else "",
)
def test_faults_that_the_client_gets_over(
    fault: Fault, methods: str, seconds: float, server: HubServer, fetch: Callable[..., bytes]
) -> None:
    server.put(REPO, FILES)
    server.fault, start = replace(fault, path=WEIGHTS), time.monotonic()
    assert fetch() == DATA
    assert downloads(server) == methods.split() and server.fault.times == 0
    assert time.monotonic() - start >= seconds


def test_a_cut_download_goes_on_where_it_was(server: HubServer, fetch: Callable[..., bytes]) -> None:
    """To whole chunks of 10 MiB that is; what came of the next one is dropped, and so is all of a smaller file."""
    chunk, large = constants.DOWNLOAD_CHUNK_SIZE, DATA * 6
    server.put(REPO, {"large": large})
    server.fault = Fault("cut", after=chunk + 1000, path="large")
    assert fetch("large") == large
    gets = [headers for (m, _), headers in zip(server.requests, server.headers, strict=True) if m == "GET"]
    assert [headers.get("range") for headers in gets] == [None, f"bytes={chunk}-"]


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (Fault("cut"), httpx2.RemoteProtocolError, "without sending a response"),
        (Fault("reset"), httpx2.ReadError, "reset"),
        (Fault("reset", after=1000), httpx2.ReadError, "reset"),
        (Fault("status", status=500, method="GET"), HfHubHTTPError, "500"),
        (Fault("length", by=-10), OSError, "should be of size"),
        (Fault("redirect", times=None), httpx2.TooManyRedirects, "20 redirects"),
        (Fault("redirect", times=None, method="GET"), httpx2.TooManyRedirects, "maximum allowed"),
    ],
    ids=lambda value: f"{value.kind}-{value.after or value.method}" if isinstance(value, Fault) else "",
)
def test_faults_that_end_a_download(
    fault: Fault, error: type[Exception], message: str, server: HubServer, fetch: Callable[..., bytes], tmp_path: Path
) -> None:
    server.put(REPO, FILES)
    server.fault = replace(fault, path=WEIGHTS)
    with pytest.raises(error, match=message):
        fetch()
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and f.stat().st_size > 1000]
    server.fault = None
    assert fetch() == DATA


def test_a_hub_that_stays_down_and_a_file_in_the_cache(server: HubServer, fetch: Callable[..., bytes]) -> None:
    """While a server is down the client hands out the file of the last time, and refuses who insists on a new one."""
    server.put(REPO, FILES)
    assert fetch() == DATA
    server.put(REPO, {WEIGHTS: b"newer"})
    for fault in (Fault("status", times=None), Fault("status", status=429, times=None), Fault("stall", times=None)):
        server.fault = fault
        assert fetch() == DATA
    server.stop()
    assert fetch() == DATA
    with pytest.raises(ValueError, match="Force download failed"):
        fetch(force_download=True)
    with pytest.raises(LocalEntryNotFoundError):
        fetch("config.json", local_files_only=True)


def test_wrong_bytes_are_believed(server: HubServer, fetch: Callable[..., bytes]) -> None:
    """The client compares sizes and no hash, so whoever needs to know must hash; the wrong file stays in its cache."""
    server.put(REPO, FILES)
    server.fault = Fault("flip", path=WEIGHTS)
    wrong = fetch()
    assert len(wrong) == len(DATA) and sum(a != b for a, b in zip(wrong, DATA, strict=True)) == 1
    assert fetch() == wrong and fetch(force_download=True) == DATA


def test_mutated_json(server: HubServer, api: HfApi, tmp_path: Path) -> None:
    server.put(REPO, FILES)
    server.fault = Fault("json", path="/api/models/")
    with pytest.raises(json.JSONDecodeError):
        api.model_info(REPO)
    server.fault = Fault("json", path="/api/models/", change=lambda answer: answer | {"sha": None})
    with pytest.raises(AssertionError, match="must have a revision sha"):
        snapshot_download(REPO, endpoint=server.url, token="secret", cache_dir=tmp_path)
    assert api.model_info(REPO).sha is not None


def test_faults_of_uploads(server: HubServer, api: HfApi) -> None:
    """The upload of a large file is tried again, the commit never, though one without an answer may well be there."""
    server.put(REPO, {})
    server.fault = Fault("reset", path="/lfs/", method="PUT")
    api.upload_file(path_or_fileobj=DATA, path_in_repo=WEIGHTS, repo_id=REPO)
    assert server.files(REPO)[WEIGHTS] == DATA and [method for method, _ in server.requests].count("PUT") == 2
    for name, kind, there in (("a.txt", "cut", True), ("b.txt", "status", False)):
        server.fault = Fault(kind, path="/commit/")
        with pytest.raises((httpx2.RemoteProtocolError, HfHubHTTPError)):
            api.upload_file(path_or_fileobj=b"text", path_in_repo=name, repo_id=REPO)
        assert (name in server.files(REPO)) is there


def test_a_function_decides_by_request(server: HubServer, fetch: Callable[..., bytes]) -> None:
    server.put(REPO, FILES)
    asked = []
    server.fault = lambda method, path: asked.append(method) or (Fault("status") if len(asked) == 2 else None)
    with pytest.raises(HfHubHTTPError, match="Fault 500"):
        fetch()
    assert asked == ["HEAD", "GET"]


def test_stops_at_once_under_a_stalled_client(server: HubServer, fetch: Callable[..., bytes]) -> None:
    server.put(REPO, FILES)
    server.fault, ended = Fault("stall", path=WEIGHTS), []

    def wait() -> None:
        with pytest.raises(httpx2.RemoteProtocolError):
            fetch(etag_timeout=60)
        ended.append(time.monotonic())

    client = Thread(target=wait)
    client.start()
    while not downloads(server):
        time.sleep(0.01)
    start = time.monotonic()
    server.stop()
    assert time.monotonic() - start < 2
    client.join()
    assert ended and ended[0] - start < 5

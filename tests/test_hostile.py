"""Files, folders, caches and servers that want sqzoo to load another tensor, unpickle, hang, or write elsewhere.

Each of them ends in one clear sentence, or in the right tensors; a pickle that is read leaves a mark.
"""

import ast
import hashlib
import json
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save

import sqzoo
from sqzoo import cache, cli, hub
from sqzoo.weights import load_trunk, remote
from sqzoo.weights.remote import CONFIG, WEIGHTS
from tests.support.hub import REPO, cached_files, same
from tests.support.hub_server import HubServer
from tests.support.sentences import refused

Files = dict[str, bytes]


class Bomb:
    """Writes a file as it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture()
def bomb(tmp_path: Path) -> Path:
    """A pickle; the test fails if anything has read it."""
    file, mark = tmp_path / "bomb.pth", tmp_path / "unpickled"
    file.write_bytes(pickle.dumps(Bomb(mark)))
    return file


@pytest.fixture(autouse=True)
def nothing_unpickled(tmp_path: Path) -> Any:
    yield
    assert not (tmp_path / "unpickled").exists()


@pytest.fixture()
def folder(tmp_path: Path, files: Files) -> Path:
    """A folder that save_pretrained wrote."""
    (tmp_path / "saved").mkdir()
    for name, content in files.items():
        (tmp_path / "saved" / name).write_bytes(content)
    return tmp_path / "saved"


def change(folder: Path, **changes: Any) -> None:
    """Change fields of config.json; `pretrained_cfg` and `model_args` are added to."""
    config = json.loads((folder / CONFIG).read_text())
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(config.get(key), dict)
        config[key] = config[key] | value if both else value
    (folder / CONFIG).write_text(json.dumps(config))


def open_folder(folder: Path) -> torch.nn.Module:
    return sqzoo.create_model(f"local-dir:{folder}")


# config.json


@pytest.mark.parametrize(
    "changes",
    [
        {"model_args": {"checkpoint_path": "BOMB"}},
        {"model_args": {"pretrained_cfg_overlay": {"file": "BOMB"}}},
        {"model_args": {"pretrained_cfg": {"file": "BOMB"}}},
        {"model_args": {"cache_dir": "BOMB"}},
        {"model_args": {"features_only": True}},
        {"model_args": {"device": "meta"}},
        {"model_args": {"mid": 10**12}},
        {"model_args": {"mid": 10**30}},
        {"model_args": {"mid": "8"}},
        {"model_args": {"global_pool": {}}},
        {"model_args": ["mid"]},
        {"num_classes": 10**11},
        {"num_classes": -1},
        {"num_classes": True},
        {"num_classes": 4.0},
        {"architecture": ["sq1"]},
        {"architecture": "x" * 5000},
        {"sha256": 5},
        {"sha256": ""},
        {"pretrained_cfg": {"input_size": [3, 10**9, 10**9]}},
        {"pretrained_cfg": {"input_size": 224}},
        {"pretrained_cfg": {"mean": [float("nan")] * 3}},
        {"pretrained_cfg": {"std": [0.0, 1.0, 1.0]}},
        {"pretrained_cfg": {"crop_pct": float("inf")}},
        {"model_args": {"upsample": []}},
        {"model_args": {"upsample": [160]}},
        {"model_args": {"upsample": [256, 224, 160]}},
        {"pretrained_cfg": {"crop_pct": 1e-300, "std": "1"}},
        {"pretrained_cfg": {"interpolation": "os.system"}},
        {"pretrained_cfg": {"interpolation": []}},
        {"pretrained_cfg": {"label_names": ["\x1b[2J", "b", "c", "d"]}},
        {"pretrained_cfg": {"label_names": "abcd"}},
    ],
    ids=lambda c: json.dumps(c)[:60],
)
def test_a_configuration_that_asks_for_more(changes: dict[str, Any], folder: Path, bomb: Path) -> None:
    change(folder, **json.loads(json.dumps(changes).replace("BOMB", str(bomb))))
    refused(lambda: open_folder(folder), folder)


@pytest.mark.parametrize("size", [64, [64, 64]])
def test_an_enlargement_is_one_number_or_two(size: Any, folder: Path) -> None:
    change(folder, model_args={"upsample": size})
    upsample: Any = open_folder(folder).upsample
    assert (upsample.resize, upsample.crop) == (64, 64)


@pytest.mark.parametrize(
    "edit",
    [
        lambda t: t.replace('"num_classes": 4', '"num_classes": 4, "num_classes": 5', 1).encode(),
        lambda t: t.replace('"crop_pct": ', '"crop_pct": 1e999, "was": ').encode(),
        lambda t: t.encode("utf-8-sig"),
        lambda t: t.encode("utf-16"),
        lambda t: t.replace('"sq1"', '"sq1\udc80"').encode(errors="surrogatepass"),
        lambda t: (t + " " * (1 << 21)).encode(),
        lambda t: b'{"a":' * 100_000,
        lambda t: b"[" + b"9" * 100_000 + b"]",
    ],
)
def test_a_configuration_of_two_meanings(edit: Callable[[str], bytes], folder: Path) -> None:
    (folder / CONFIG).write_bytes(edit((folder / CONFIG).read_text()))
    refused(lambda: open_folder(folder), folder / CONFIG)


def test_a_configuration_leads_nowhere_else(folder: Path, bomb: Path, model: torch.nn.Module) -> None:
    """timm would go to these places, or take these layers for the first and the last."""
    lures = {"source": "hf-hub", "hf_hub_id": "evil/model", "hf_hub_filename": "bomb.pth", "file": str(bomb)}
    lures |= {"url": f"file://{bomb}", "state_dict": {"fc2.bias": [1]}, "custom_load": True}
    lures |= {"label_offset": 1, "classifier": "conv", "first_conv": "fc1", "num_classes": 7}
    change(folder, pretrained_cfg=lures)
    for loaded in (open_folder(folder), timm.create_model(f"local-dir:{folder}", pretrained=True)):
        assert same(loaded, model)
        assert not {"source", "url", "file", "hf_hub_id", "state_dict"} & loaded.pretrained_cfg.keys()
        assert loaded.pretrained_cfg["classifier"] == "fc2" and loaded.num_classes == 4


# Ways into timm's own reader


def test_timms_ways_to_a_pickle_are_closed(folder: Path, bomb: Path) -> None:
    (folder / WEIGHTS).unlink()
    shutil.copy(bomb, folder / "pytorch_model.bin")
    refused(lambda: timm.create_model(f"local-dir:{folder}", pretrained=True), folder / WEIGHTS)
    overlays: list[dict[str, Any]] = [{"file": str(bomb)}, {"url": f"file://{bomb}"}, {"source": "local-dir"}]
    for overlay in (*overlays, {"file": str(folder)}, {"file": str(folder / "none")}):
        for create in (sqzoo.create_model, timm.create_model):
            refused(
                lambda c=create, o=overlay: c("sq1", pretrained=True, pretrained_cfg_overlay=o | {"file": str(bomb)})
            )
            refused(lambda c=create, o=overlay: c("sq1", pretrained=True, pretrained_cfg=o | {"architecture": "sq1"}))
    refused(lambda: sqzoo.create_model("sq1", checkpoint_path=str(bomb)), "checkpoint_path", "local-dir")


def test_timms_name_for_a_folder_or_the_hub_is_verified_too(
    server: HubServer,
    files: Files,
    folder: Path,
) -> None:
    data = bytearray(files[WEIGHTS])
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    refused(lambda: timm.create_model(f"local-dir:{folder}", pretrained=True), "is damaged")
    server.put(REPO, {CONFIG: files[CONFIG], WEIGHTS: bytes(data)})
    refused(lambda: timm.create_model(f"hf-hub:{REPO}", pretrained=True), "not what it should be")


def test_the_packages_file_is_verified_however_it_is_named(tmp_path: Path) -> None:
    entry = sqzoo.get_weights("sq1")
    cfg = timm.get_pretrained_cfg("sq1")
    loaded = timm.create_model("sq1", pretrained=True, pretrained_cfg=cfg)
    assert same(loaded, sqzoo.create_model("sq1", pretrained=True)) and cfg.file == str(entry.path)


# The header of a safetensors file


def headed(data: bytes, change: Callable[[dict[str, Any]], Any], encoding: str = "utf-8") -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    changed = change(header)
    text = changed if isinstance(changed, str) else json.dumps(header if changed is None else changed)
    raw = text.encode(encoding, "surrogatepass")
    return len(raw).to_bytes(8, "little") + raw + data[8 + length :]


def entry(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda h: h["fc2.bias"].update(fields)


@pytest.mark.parametrize(
    "edit",
    [
        lambda h: (
            json.dumps(h).replace('{"fc2.bias"', '{"fc2.bias": {}, "fc2.bias"', 1).replace("{", '{"a":1,"a":1,', 1)
        ),
        lambda h: h["fc1.bias"].update(data_offsets=h["fc2.bias"]["data_offsets"]),
        lambda h: h["fc2.bias"].update(data_offsets=[n + 4 for n in h["fc2.bias"]["data_offsets"]]),
        lambda h: h["fc2.bias"].update(data_offsets=[n + (1 << 39) for n in h["fc2.bias"]["data_offsets"]]),
        lambda h: h["fc2.bias"].update(data_offsets=h["fc2.bias"]["data_offsets"][::-1]),
        entry(data_offsets=[1 << 63, (1 << 63) + 16]),
        entry(shape=[1 << 62, 4]),
        entry(shape=[1 << 32, 1 << 32, 4]),
        entry(shape=[0, 1 << 39, 1 << 39, 1 << 39], data_offsets=[0, 0]),
        entry(shape=[3] * 300_000),
        entry(shape=[(1 << 40) - 1] * 70_000),
        entry(shape=[-4]),
        entry(shape=[4.0]),
        entry(shape=[True, 4]),
        entry(shape="4"),
        entry(shape=None),
        entry(shape={"4": 4}),
        entry(dtype="F8_E4M3"),
        entry(dtype=["F32"]),
        entry(dtype="I32"),
        lambda h: h.update({"no bytes": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
        lambda h: h.update({"\x1b]0;x\n" * 1000: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
        lambda h: h.update({"\ud800": h.pop("fc2.bias")}),
        lambda h: h.update(__metadata__={"format": 5}),
        lambda h: h.update(__metadata__=[]),
        lambda h: h.update({"fc2.bias": [*h["fc2.bias"]]}),
        lambda h: [h],
        lambda h: json.dumps(h).replace('"shape": [4]', '"shape": [NaN]', 1),
        lambda h: json.dumps(h).replace('"shape": [4]', '"shape": [4e0]', 1),
        lambda h: "\ufeff" + json.dumps(h),
        lambda h: json.dumps(h) + "}",
        lambda h: '{"a":' * 100_000,
    ],
    ids=range(32),
)
def test_a_header_that_lies(edit: Callable[[dict[str, Any]], Any], folder: Path, files: Files) -> None:
    """No hash is stated, so the header is all that stands between."""
    (folder / WEIGHTS).write_bytes(headed(files[WEIGHTS], edit))
    change(folder, sha256=None)
    refused(lambda: open_folder(folder), folder / WEIGHTS)


def test_a_header_in_another_encoding(folder: Path, files: Files) -> None:
    change(folder, sha256=None)
    for encoding in ("utf-16", "utf-32"):
        (folder / WEIGHTS).write_bytes(headed(files[WEIGHTS], lambda h: None, encoding))
        refused(lambda: open_folder(folder), folder / WEIGHTS)


# Paths


@pytest.mark.parametrize("name", ["", "\0", "a\0b", "\ud800", "x" * 5000, "/dev", "/proc/self/mem", "..", "hf-hub:a/b"])
def test_odd_folders(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(sqzoo.SqzooError):
        sqzoo.create_model(f"local-dir:{name}")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes and /dev")
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("kind", ["pipe", "zero", "loop", "folder"])
def test_files_that_never_end(kind: str, name: str, folder: Path) -> None:
    (folder / name).unlink()
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).symlink_to("/dev/zero" if kind == "zero" else name)
    refused(lambda: open_folder(folder), folder / name)


def test_links_in_a_folder_are_followed(folder: Path, tmp_path: Path, model: torch.nn.Module) -> None:
    """As a snapshot of the client's cache has them."""
    (tmp_path / "links").mkdir()
    for name in (CONFIG, WEIGHTS):
        (tmp_path / "links" / name).symlink_to(folder / name)
    assert same(open_folder(tmp_path / "links"), model)
    refused(lambda: hub.save_pretrained(sqzoo.create_model("sq1"), tmp_path / "links"), "link")  # nor through them
    assert same(open_folder(folder), model) and same(open_folder(tmp_path / "links"), model)


@pytest.mark.parametrize(
    "revision", ["../../../../x", "a/../../../x", "/tmp/x", "..", "-x", "a b", "a\nb", "a\0b", "x" * 300]
)
def test_a_revision_cannot_leave_the_cache(revision: str, server: HubServer, tmp_path: Path) -> None:
    for call in (
        lambda: sqzoo.create_model(f"hf-hub:{REPO}", revision=revision),
        lambda: sqzoo.create_model(f"hf-hub:{REPO}@{revision}"),
        lambda: hub.from_pretrained(REPO, revision=revision),
    ):
        refused(call, "revision")
    assert not server.requests and not cached_files(tmp_path)


@pytest.mark.parametrize("name", ["../../x", "..", "a/../../b", "/etc/x", "a\\..\\b", "", "a\0b", "a--b/c", "%2e%2e/x"])
def test_a_repository_cannot_leave_the_cache(name: str, server: HubServer, tmp_path: Path) -> None:
    refused(lambda: sqzoo.create_model(f"hf-hub:{name}"), "ORG/NAME")
    refused(lambda: hub.push(sqzoo.create_model("sq1"), name or "/"), "ORG/NAME")
    assert cli.main(["cache", "--remove", name]) == (0 if name == "" else 2)  # an empty one lists
    assert not [path for method, path in server.requests if method == "POST" and "create" not in path]


# Servers


def test_a_file_too_large_is_not_downloaded(server: HubServer, files: Files, tmp_path: Path) -> None:
    server.put(REPO, files | {WEIGHTS: bytes(20_000_000)})
    refused(lambda: sqzoo.create_model(f"hf-hub:{REPO}"), "20,000,000 bytes", "was not downloaded")
    assert not [path for method, path in server.requests if method == "GET" and WEIGHTS in path]
    server.put(REPO, files | {CONFIG: files[CONFIG] + b" " * 2_000_000})
    refused(lambda: sqzoo.create_model(f"hf-hub:{REPO}", force_download=True), "bytes")
    assert sum(f.stat().st_size for f in (tmp_path / "hub cache é").rglob("*") if f.is_file()) < 100_000


@pytest.mark.parametrize("header", ["ETag", "X-Repo-Commit", "X-Linked-Etag"])
def test_a_server_that_names_paths_for_hashes(
    header: str,
    server: HubServer,
    files: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client makes file names of them."""
    server.put(REPO, files)
    true = server.answer

    def lying(request: Any) -> Any:
        answer = true(request)
        answer.headers = {**answer.headers, header: '"../../../../outside"'}
        return answer

    monkeypatch.setattr(server, "answer", lying)
    refused(lambda: sqzoo.create_model(f"hf-hub:{REPO}"), REPO)
    assert not [f for f in tmp_path.rglob("*outside*")]


# Caches that others write to


def plant(tmp_path: Path, name: str, target: Path) -> Path:
    """Put a link to another file in the place of one that is cached of REPO."""
    (link,) = (f for f in cached_files(tmp_path) if f.name == name and f.parents[2].name == "models--some-org--sq1")
    link.unlink()
    link.symlink_to(target)
    return link


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_planted_link_costs_no_file(
    name: str,
    server: HubServer,
    files: Files,
    model: torch.nn.Module,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.put(REPO, files)
    sqzoo.create_model(f"hf-hub:{REPO}")
    precious = tmp_path / ("0" * 64)  # a name that looks like a hash, which the contents are not of
    precious.write_bytes(files[name].replace(b"sq1", b"sq2") if name == CONFIG else b"precious")
    link = plant(tmp_path, name, precious)
    before = precious.read_bytes()
    if name == WEIGHTS:  # with the configuration gone it would not be listed
        assert cli.main(["cache", "--remove", REPO]) == 2 and "leads out of the cache" in capsys.readouterr().err
        assert cli.main(["cache", "--verify"]) == 1
        assert "damaged" in capsys.readouterr().out
    assert same(sqzoo.create_model(f"hf-hub:{REPO}"), model)
    assert precious.read_bytes() == before and link.read_bytes() == files[name]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_the_cache_command_outlives_what_lies_in_it(
    server: HubServer,
    files: Files,
    tmp_path: Path,
) -> None:
    for number, content in enumerate([b"[" * 100_000, b"null", b"\xff", b"{}"]):
        server.put(f"some-org/odd{number}", files | {CONFIG: content})
        with pytest.raises(sqzoo.SqzooError):
            sqzoo.create_model(f"hf-hub:some-org/odd{number}")
    server.put(REPO, files)
    sqzoo.create_model(f"hf-hub:{REPO}")
    assert [k.name for k in cache.entries() if k.kind == "hub"] == [REPO]
    plant(tmp_path, WEIGHTS, Path("/dev/zero"))
    assert cli.main(["cache", "--verify"]) == 1
    plant(tmp_path, CONFIG, Path("/dev/zero"))
    assert cli.main(["cache", "--verify"]) == 0  # it is no model of ours any more


# Between the check and the use


def test_a_file_that_changes_as_it_is_read(folder: Path, files: Files, model: torch.nn.Module) -> None:
    """What was hashed is what is loaded: never the tensors of the other file, which changes place with ours."""
    ours, theirs = files[WEIGHTS], save({k: v + 1 for k, v in model.state_dict().items()})
    assert len(theirs) <= len(ours)
    theirs = theirs[:-4] + ours[-4:] + ours[len(theirs) :]
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for number, data in enumerate((theirs, ours)):
                if number % 2:
                    (folder / "new").write_bytes(data)
                    (folder / "new").replace(folder / WEIGHTS)
                else:
                    (folder / WEIGHTS).write_bytes(data)
                time.sleep(0.005)

    thread = threading.Thread(target=swap)
    thread.start()
    own = {k: v.to("meta") for k, v in model.state_dict().items()}
    config = {"sha256": hashlib.sha256(ours).hexdigest()}
    outcome = {"right": 0, "refused": 0}
    try:
        end = time.monotonic() + 60
        while min(outcome.values()) < 20 and time.monotonic() < end:
            try:
                tensors = remote.read_weights(remote.Source(str(folder), folder=True), config, own)
            except sqzoo.SqzooError:
                outcome["refused"] += 1
            else:
                assert all(torch.equal(v, tensors[k]) for k, v in model.state_dict().items())
                outcome["right"] += 1
    finally:
        stop.set()
        thread.join()
    assert min(outcome.values()) >= 20


def test_a_trunk_changed_in_place_after_its_check(trunks: Path, tmp_path: Path) -> None:
    file = tmp_path / "squeezenet1_1_features.safetensors"
    shutil.copyfile(trunks / file.name, file)
    true = load_file(trunks / file.name)
    tensors = load_trunk("squeezenet1_1", tmp_path)
    with file.open("r+b") as stream:
        stream.seek(10_000)
        stream.write(b"\0" * 1_000_000)
    assert all(torch.equal(v, true[k]) for k, v in tensors.items())


@pytest.mark.parametrize(
    "content",
    [
        {"features.0.weight": torch.zeros(3, 3).to_sparse()},
        {"features.0.weight": torch.empty(3, device="meta")},
        {"features.0.weight": torch.zeros(3, dtype=torch.complex64).conj()},
        {"features.0.weight": [torch.zeros(3)]},
        {5: torch.zeros(3)},
        [torch.zeros(3)],
        torch.zeros(3),
    ],
    ids=range(7),
)
def test_a_trunk_of_odd_tensors(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "squeezenet1_1-b8a52dc0.pth")
    refused(lambda: load_trunk("squeezenet1_1", tmp_path), tmp_path)


def test_a_trunk_that_is_a_bomb(bomb: Path) -> None:
    refused(lambda: load_trunk("squeezenet1_1", bomb), bomb, "not a readable weights file")


# Nothing is unpickled: no module of sqzoo names what reads pickles, so no command can reach one through our code.

PICKLE_MACHINES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "pandas"}
READERS = {
    *("torch.load", "torch.jit.load", "torch.package", "torch.hub.load", "torch.hub.load_state_dict_from_url"),
    *("numpy.load", "numpy.fromfile", "timm.models.load_checkpoint", "timm.models.load_state_dict"),
}


def pickle_machines(code: str) -> set[str]:
    """Return the modules and functions that read pickles and are imported or named in some code."""
    tree = ast.parse(code)
    nodes = list(ast.walk(tree))
    named = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    named |= {f"{n.module}.{alias.name}" for n in nodes if isinstance(n, ast.ImportFrom) for alias in n.names}
    named |= {ast.unparse(n) for n in nodes if isinstance(n, ast.Attribute)}
    named = {f"numpy{name[2:]}" if name.startswith("np.") else name for name in named}
    found = {name for name in named if name.partition(".")[0] in PICKLE_MACHINES or name in READERS}
    return found | {n.arg for n in nodes if isinstance(n, ast.keyword) and n.arg in ("allow_pickle", "weights_only")}


def test_no_pickle_machine_is_reachable() -> None:
    files = [*Path(sqzoo.__file__).parent.rglob("*.py")]
    assert len(files) > 80
    assert {f.name: found for f in files if (found := pickle_machines(f.read_text(encoding="utf-8")))} == {}
    assert pickle_machines("from pickle import loads") == {"pickle.loads"}
    assert pickle_machines("import numpy as np\nnp.load(f, allow_pickle=True)") == {"numpy.load", "allow_pickle"}
    assert pickle_machines("def f():\n    import torch\n    return torch.load(f)") == {"torch.load"}

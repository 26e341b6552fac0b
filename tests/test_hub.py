"""Models on the Hub and in folders: there and back, verified, whole or not at all, without needless network calls.

The Hub is a real server on loopback (hub_server.py) that speaks its protocol; the client is huggingface_hub's own.
"""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load, save

import sqzoo
from sqzoo import cache, cli, hub
from sqzoo.errors import ArgumentError, UnknownModelError, WeightsError
from sqzoo.predict import predict
from sqzoo.weights import loading, read_manifest, remote
from sqzoo.weights.remote import CONFIG, WEIGHTS
from tests.support import ROOT, javascript
from tests.support.fork import python
from tests.support.hub import REPO, cached_files, same, spoil
from tests.support.hub_server import Fault, HubServer
from tests.support.sentences import assert_one_sentence, refused

# There and back


def test_pushed_model_comes_back_by_every_way(server: HubServer, model: torch.nn.Module) -> None:
    commit = hub.push(model, REPO, token="secret", transformers_js=False)
    stored = server.files(REPO)
    assert {CONFIG, WEIGHTS, "README.md"} <= stored.keys()
    config = json.loads(stored[CONFIG])
    assert config["architecture"] == "sq1" and config["model_args"]["mid"] == 8 and config["num_classes"] == 4
    for loaded in (
        sqzoo.create_model(f"hf-hub:{REPO}"),
        sqzoo.create_model(f"hf-hub:{REPO}@{commit}"),
        hub.from_pretrained(REPO, revision=commit),
        timm.create_model(f"hf-hub:{REPO}", pretrained=True),
    ):
        assert same(loaded, model) and not loaded.training
    assert sqzoo.create_model(f"hf-hub:{REPO}").pretrained_cfg["num_classes"] == 4


def test_a_card_that_an_interrupted_save_left_is_not_its_owners(tmp_path: Path) -> None:
    model = sqzoo.create_model("sq1", pretrained=True)
    hub.save_pretrained(model, tmp_path)
    saved = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    (tmp_path / CONFIG).unlink()  # it is written last
    hub.save_pretrained(model, tmp_path)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == saved


def test_a_tag_is_pushed_whole_with_its_card(server: HubServer, trunks: Path) -> None:
    hub.push("sq1.paper_cifar10", REPO, token="secret", transformers_js=False, trunk=trunks)
    stored = server.files(REPO)
    expected = sqzoo.create_model("sq1.paper_cifar10", pretrained=True, trunk=trunks)
    tensors = load(stored[WEIGHTS])
    assert tensors.keys() == expected.state_dict().keys() and any(k.startswith("features.") for k in tensors)
    assert stored["README.md"].decode() == (ROOT / "MODEL_CARDS" / "sq1.paper_cifar10.md").read_text(encoding="utf-8")
    assert stored["sq1.paper_cifar10.svg"] == (ROOT / "MODEL_CARDS" / "sq1.paper_cifar10.svg").read_bytes()
    assert same(sqzoo.create_model(f"hf-hub:{REPO}"), expected)


def test_a_folders_card_names_the_repository(server: HubServer, model: torch.nn.Module, tmp_path: Path) -> None:
    head = "---\nlibrary_name: sqzoo\n---\n"
    hub.save_pretrained(model, tmp_path, f'{head}predict --model THIS_FOLDER\ncreate_model("local-dir:THIS_FOLDER")')
    hub.push(f"local-dir:{tmp_path}", REPO, token="secret", transformers_js=False)
    card = server.files(REPO)["README.md"].decode()
    assert card == f'{head}predict --model hf-hub:{REPO}\ncreate_model("hf-hub:{REPO}")'


def test_new_head_features_and_channels(server: HubServer, model: torch.nn.Module, files: dict[str, bytes]) -> None:
    server.put(REPO, files)
    fresh = sqzoo.create_model(f"hf-hub:{REPO}", num_classes=7)
    assert fresh.num_classes == 7 and torch.equal(fresh.conv.weight, model.conv.weight)
    maps = sqzoo.create_model(f"hf-hub:{REPO}", features_only=True)(torch.rand(1, 3, 64, 64))
    assert len(maps) == 4
    assert sqzoo.create_model(f"hf-hub:{REPO}", in_chans=1).features[0].weight.shape[1] == 1


def test_folder_there_and_back(model: torch.nn.Module, tmp_path: Path) -> None:
    folder = tmp_path / "a folder é"
    hub.save_pretrained(model, folder)
    assert {f.name for f in folder.iterdir()} == {CONFIG, WEIGHTS, "README.md"}
    for loaded in (
        sqzoo.create_model(f"local-dir:{folder}"),
        hub.from_pretrained(folder),
        timm.create_model(f"local-dir:{folder}", pretrained=True),
    ):
        assert same(loaded, model)
    hub.save_pretrained(sqzoo.create_model("fire_next"), folder)  # over another
    assert type(hub.from_pretrained(folder)).__name__ == "FireNext"


def test_private_repository_needs_its_token(server: HubServer, model: torch.nn.Module) -> None:
    hub.push(model, REPO, token="secret", transformers_js=False, private=True)
    refused(lambda: sqzoo.create_model(f"hf-hub:{REPO}", token=False), REPO, "token")
    assert same(sqzoo.create_model(f"hf-hub:{REPO}", token="secret"), model)


@pytest.mark.slow
def test_push_by_command_and_environment(server: HubServer, tmp_path: Path) -> None:
    """As a user does it: HF_ENDPOINT and HF_TOKEN in the environment, another process."""
    environment = os.environ | server.env | {"HF_TOKEN": "secret", "HF_HOME": str(tmp_path / "home")}
    command = [python(timm=False), "-m", "sqzoo", "push", "sq1.ft_cifar10", "--repo", REPO]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert same(sqzoo.create_model(f"hf-hub:{REPO}"), sqzoo.create_model("sq1.ft_cifar10", pretrained=True))
    bad = subprocess.run(command, cwd=ROOT, env=environment | {"HF_TOKEN": "wrong"}, capture_output=True, text=True)
    assert bad.returncode == 2 and bad.stderr.startswith("sqzoo: Could not push") and "Traceback" not in bad.stderr


@pytest.mark.slow
def test_a_pushed_tag_opens_in_transformers_and_transformers_js(server: HubServer, tmp_path: Path) -> None:
    """The same repository for both, whose files have the same names and other contents."""
    hub.push("sq1.ft_cifar10", REPO, token="secret")
    stored = server.files(REPO)
    assert {"onnx/model.onnx", "onnx/model_quantized.onnx", "preprocessor_config.json"} <= stored.keys()
    cat = ROOT / "examples" / "cat.jpg"
    [expected] = predict(sqzoo.create_model("sq1.ft_cifar10", pretrained=True), cat, top_k=10)
    [found] = javascript.classify(REPO, [cat], host=f"{server.url}/", cache=str(tmp_path / "js"))
    assert found == pytest.approx({p.label: p.probability for p in expected}, abs=1e-3)
    code = (
        "import sqzoo, transformers, sys, json\n"
        "ask = transformers.pipeline('image-classification', model=sys.argv[1])\n"
        "print(json.dumps({a['label']: a['score'] for a in ask(sys.argv[2], top_k=10)}))"
    )
    environment = os.environ | server.env | {"HF_HOME": str(tmp_path / "home")}
    command = [python(timm=False), "-c", code, REPO, str(cat)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == pytest.approx({p.label: p.probability for p in expected}, abs=1e-3)


def test_push_without_files_for_transformers_js_says_so(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, model: torch.nn.Module
) -> None:
    hub.push(model, REPO, token="secret", transformers_js=False)
    hub.push(sqzoo.create_model("sq1", mid=8, in_chans=1), REPO, token="secret")
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # what is not installed
    hub.push(model, REPO, token="secret")
    grey, absent = (record.getMessage() for record in caplog.records if record.name == "sqzoo")
    assert grey.startswith(f"{REPO} is pushed without files for transformers.js: ") and "3 input channels" in grey
    assert "pip install 'sqzoo[export]'" in absent
    assert not any(name.startswith("onnx") for name in server.files(REPO))


# No network where none is needed


def test_cached_model_takes_no_network_call(
    server: HubServer, model: torch.nn.Module, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = server.put(REPO, files)
    sqzoo.create_model(f"hf-hub:{REPO}")
    before = len(server.requests)

    def no_socket(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", no_socket)
    for name in (REPO, f"{REPO}@{commit}", f"{REPO}@main"):
        assert same(sqzoo.create_model(f"hf-hub:{name}"), model)
    assert len(server.requests) == before


def test_force_download_sees_a_new_commit(server: HubServer, files: dict[str, bytes]) -> None:
    server.put(REPO, files)
    first = sqzoo.create_model(f"hf-hub:{REPO}")
    other = sqzoo.create_model("sq1", mid=8, num_classes=4)
    hub.push(other, REPO, token="secret", transformers_js=False)
    assert same(sqzoo.create_model(f"hf-hub:{REPO}"), first)
    assert same(sqzoo.create_model(f"hf-hub:{REPO}", force_download=True), other)


def test_a_read_only_cache_serves(
    server: HubServer, model: torch.nn.Module, files: dict[str, bytes], tmp_path: Path
) -> None:
    server.put(REPO, files)
    sqzoo.create_model(f"hf-hub:{REPO}")
    for path in (tmp_path / "hub cache é").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert same(sqzoo.create_model(f"hf-hub:{REPO}"), model)
    finally:
        for path in (tmp_path / "hub cache é").rglob("*"):
            path.chmod(0o755)


def test_a_cache_without_symbolic_links(
    server: HubServer, model: torch.nn.Module, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.file_download, "are_symlinks_supported", lambda *_: False)
    server.put(REPO, files)
    assert same(sqzoo.create_model(f"hf-hub:{REPO}"), model)
    (weights,) = (f for f in cached_files(tmp_path) if f.name == WEIGHTS)
    assert not weights.is_symlink()
    spoil(weights)
    assert same(sqzoo.create_model(f"hf-hub:{REPO}"), model)


def test_offline_and_not_cached_says_so(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused(lambda: sqzoo.create_model(f"hf-hub:{REPO}"), REPO, "not in the cache", "HF_HUB_OFFLINE")


# Verified


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_changed_byte_in_the_cache_is_found_and_mended(
    name: str, server: HubServer, model: torch.nn.Module, files: dict[str, bytes], tmp_path: Path
) -> None:
    server.put(REPO, files)
    sqzoo.create_model(f"hf-hub:{REPO}")
    (file,) = (f for f in cached_files(tmp_path) if f.name == name)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.resolve().write_bytes(data)
    assert same(sqzoo.create_model(f"hf-hub:{REPO}"), model)
    assert file.read_bytes() == files[name]


def test_wrong_bytes_from_the_hub_are_refused_and_not_kept(
    server: HubServer, model: torch.nn.Module, files: dict[str, bytes], tmp_path: Path
) -> None:
    server.put(REPO, files)
    server.fault = Fault("flip", times=None, path=WEIGHTS)
    refused(lambda: sqzoo.create_model(f"hf-hub:{REPO}"), server.url, json.loads(files[CONFIG])["sha256"], "not kept")
    assert not [f for f in cached_files(tmp_path) if f.name == WEIGHTS]
    server.fault = Fault("flip", times=1, path=WEIGHTS)
    assert same(sqzoo.create_model(f"hf-hub:{REPO}"), model)  # the second try


def test_another_hash_in_the_configuration(server: HubServer, files: dict[str, bytes]) -> None:
    config = json.loads(files[CONFIG]) | {"sha256": "0" * 64}
    server.put(REPO, files | {CONFIG: json.dumps(config).encode()})
    refused(lambda: sqzoo.create_model(f"hf-hub:{REPO}"), "0" * 64)


def changed(files: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    """Files whose weights have tensors added, replaced or (None) removed, and a hash that fits."""
    tensors = {k: v for k, v in (load(files[WEIGHTS]) | changes).items() if v is not None}
    data = save(tensors)
    config = json.loads(files[CONFIG]) | {"sha256": hashlib.sha256(data).hexdigest()}
    return files | {WEIGHTS: data, CONFIG: json.dumps(config).encode()}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"extra": torch.zeros(1)}, ("unexpected tensors: extra",)),
        ({"fc1.bias": None}, ("missing tensors: fc1.bias",)),
        ({"fc1.bias": torch.zeros(9)}, ("fc1.bias", "[9]", "[8]")),
        ({"fc1.bias": torch.zeros(8, dtype=torch.int64)}, ("fc1.bias", "int64")),
        ({"huge": torch.zeros(1 << 19)}, ("at most", "bytes")),
    ],
)
@pytest.mark.parametrize("where", ["hub", "folder"])
def test_tensors_that_are_not_the_models(
    where: str,
    changes: dict[str, Any],
    parts: tuple[str, ...],
    server: HubServer,
    files: dict[str, bytes],
    tmp_path: Path,
) -> None:
    wrong = changed(files, **changes)
    server.put(REPO, wrong)
    for name, content in wrong.items():
        (tmp_path / name).write_bytes(content)
    name = f"hf-hub:{REPO}" if where == "hub" else f"local-dir:{tmp_path}"
    refused(lambda: sqzoo.create_model(name), WEIGHTS, *parts)


def test_weights_of_no_stated_hash_load_with_a_line(
    server: HubServer, model: torch.nn.Module, files: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    config = json.loads(files[CONFIG])
    del config["sha256"]  # as timm saves it
    server.put(REPO, files | {CONFIG: json.dumps(config).encode()})
    assert same(sqzoo.create_model(f"hf-hub:{REPO}"), model)
    assert f"{REPO}/{WEIGHTS} states no SHA-256" in caplog.text
    caplog.clear()
    server.put("some-org/stated", files)
    assert same(sqzoo.create_model("hf-hub:some-org/stated"), model)
    assert f"some-org/stated/{WEIGHTS} matches its own config.json; sqzoo verifies nothing beyond that." in caplog.text


def test_a_pickle_is_never_read(server: HubServer, files: dict[str, bytes], tmp_path: Path) -> None:
    """Neither beside the configuration nor under the name of the weights."""
    torch.save({"x": torch.zeros(1)}, tmp_path / "pickle")
    pickle = (tmp_path / "pickle").read_bytes()
    server.put(REPO, {CONFIG: files[CONFIG], "pytorch_model.bin": pickle})
    refused(lambda: sqzoo.create_model(f"hf-hub:{REPO}"), WEIGHTS)
    config = json.loads(files[CONFIG])
    del config["sha256"]
    server.put("some-org/pickle", {CONFIG: json.dumps(config).encode(), WEIGHTS: pickle})
    refused(lambda: sqzoo.create_model("hf-hub:some-org/pickle"), "not an intact safetensors file")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"architecture": 1}', b"\xff", b"[" * 100_000, b'{"architecture": "sq1"}']
)
def test_configurations_that_are_none(content: bytes, files: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_bytes(content)
    (tmp_path / WEIGHTS).write_bytes(files[WEIGHTS])
    refused(lambda: sqzoo.create_model(f"local-dir:{tmp_path}"), CONFIG)


def test_another_packages_model_is_named(files: dict[str, bytes], tmp_path: Path) -> None:
    config = json.loads(files[CONFIG]) | {"architecture": "resnet18"}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(UnknownModelError, match=r"resnet18.*timm.create_model"):
        sqzoo.create_model(f"local-dir:{tmp_path}")


# A manifest entry whose file is on the Hub


def test_a_manifest_entry_may_point_to_a_pinned_commit(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    packaged = read_manifest()["sq1.ft_cifar10"]
    data = packaged.path.read_bytes()
    commit = server.put("our-org/sq1", {"model.safetensors": data})
    server.put("our-org/sq1", {"model.safetensors": b"a later commit"})
    entry = replace(packaged, hub="sq1", commit=commit, file="model.safetensors")
    monkeypatch.setenv("SQZOO_HUB_ORG", "our-org")
    first = loading.read_verified(entry)
    assert all(torch.equal(v, first[k]) for k, v in load(data).items())
    calls = len(server.requests)
    loading.read_verified(entry)
    assert len(server.requests) == calls
    refused(lambda: loading.read_verified(replace(entry, sha256="1" * 64)), "1" * 64, "our-org/sq1")


# Faults of the wire


@pytest.mark.parametrize("where", ["config.json", "model.safetensors"])
@pytest.mark.parametrize(
    "fault",
    [
        Fault("cut", after=100),
        Fault("reset", after=100),
        Fault("cut"),
        Fault("length", by=-50),
        Fault("length", by=50),
        Fault("flip"),
        Fault("status", status=500),
        Fault("status", status=429, retry_after=0),
        Fault("stall", after=100, seconds=3),
    ],
    ids=lambda f: f"{f.kind} {f.by if f.kind == 'length' else f.status if f.kind == 'status' else f.after}",
)
def test_a_fault_ends_in_success_or_one_sentence_and_leaves_nothing_half_written(
    fault: Fault, where: str, server: HubServer, model: torch.nn.Module, files: dict[str, bytes], tmp_path: Path
) -> None:
    server.put(REPO, files)
    server.fault = replace(fault, path=where, times=1)
    try:
        assert same(sqzoo.create_model(f"hf-hub:{REPO}"), model)
    except sqzoo.SqzooError as e:
        assert_one_sentence(e, REPO)
    assert all(f.read_bytes() == files[f.name] for f in cached_files(tmp_path))
    server.fault = None
    assert same(sqzoo.create_model(f"hf-hub:{REPO}"), model)


def test_a_redirect_without_end(server: HubServer, files: dict[str, bytes]) -> None:
    server.put(REPO, files)
    server.fault = Fault("redirect", times=None)
    refused(lambda: sqzoo.create_model(f"hf-hub:{REPO}"), REPO)


@pytest.mark.parametrize("name", ["nobody/nothing", f"{REPO}@nowhere", "no repository", "a/b/c"])
def test_names_of_nothing(name: str, server: HubServer, files: dict[str, bytes]) -> None:
    server.put(REPO, files)
    refused(lambda: sqzoo.create_model(f"hf-hub:{name}"), name.partition("@")[0])


def test_folders_of_nothing(tmp_path: Path, files: dict[str, bytes]) -> None:
    refused(lambda: sqzoo.create_model(f"local-dir:{tmp_path / 'none'}"), tmp_path / "none", "save_pretrained")
    (tmp_path / CONFIG).write_bytes(files[CONFIG])
    refused(lambda: sqzoo.create_model(f"local-dir:{tmp_path}"), tmp_path / WEIGHTS)


def test_saving_where_one_may_not_write(model: torch.nn.Module, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(lambda: hub.save_pretrained(model, tmp_path / "file" / "folder"), tmp_path / "file")
    with pytest.raises(ArgumentError, match="Linear"):
        hub.save_pretrained(torch.nn.Linear(1, 1), tmp_path)


# The cache


def test_cache_lists_verifies_and_removes(
    server: HubServer, files: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.put(REPO, files)
    server.put("some-org/other", {"notes.txt": b"no model"})
    huggingface_hub.hf_hub_download("some-org/other", "notes.txt")
    assert [k.name for k in cache.entries() if k.kind == "hub"] == []
    sqzoo.create_model(f"hf-hub:{REPO}")
    (kept,) = (k for k in cache.entries() if k.kind == "hub")
    assert kept.name == REPO and kept.damage() is None and len(kept.commits) == 1
    assert {k.name for k in cache.entries() if k.kind == "package"} == read_manifest().keys()
    assert cli.main(["cache", "--verify"]) == 0 and REPO in capsys.readouterr().out
    (weights,) = (f for f in cached_files(tmp_path) if f.name == WEIGHTS)
    spoil(weights)
    assert cli.main(["cache", "--verify"]) == 1
    out = capsys.readouterr().out
    assert f"{REPO} is damaged" in out and kept.commits[0] in out
    assert cli.main(["cache", "--remove", "some-org/sq2"]) == 2 and f"Did you mean '{REPO}'" in capsys.readouterr().err
    assert cli.main(["cache", "--remove", REPO]) == 0
    assert not weights.exists() and [k for k in cache.entries() if k.kind == "hub"] == []
    shutil.rmtree(tmp_path / "hub cache é")
    assert [k for k in cache.entries() if k.kind == "hub"] == []


# Mutated files


def test_mutated_files_are_refused(files: dict[str, bytes], tmp_path: Path) -> None:
    """Bits flipped, ends cut, headers edited: none is accepted, none crashes. The benchmark faults.py makes 10,000."""
    rng = np.random.default_rng(0)
    data = files[WEIGHTS]
    own = hub.create_model("sq1", mid=8, num_classes=4, device="meta").state_dict()
    config = json.loads(files[CONFIG])
    source = remote.Source(str(tmp_path), folder=True)
    for number in range(200):
        kind = number % 4
        if kind == 0:
            place = int(rng.integers(len(data)))
            wrong = data[:place] + bytes([data[place] ^ 1 << int(rng.integers(8))]) + data[place + 1 :]
        elif kind == 1:
            wrong = data[: int(rng.integers(len(data)))]
        elif kind == 2:
            wrong = int(rng.integers(1 << 62)).to_bytes(8, "little") + data[8:]
        else:
            wrong = data + b"x" * int(rng.integers(1, 9))
        (tmp_path / WEIGHTS).write_bytes(wrong)
        with pytest.raises(WeightsError):
            remote.read_weights(source, config, own)

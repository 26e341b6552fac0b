"""The ImageNet trunks: taken from every place that may have them, and only if they are torchvision's."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sqzoo.errors import ArgumentError, WeightsError
from sqzoo.files import tensors_sha256
from sqzoo.weights import TRUNKS, load_trunk, trunk_source
from tests.support.sentences import assert_one_sentence
from tests.support.serving import serving

PTH = {"squeezenet1_1": "squeezenet1_1-b8a52dc0.pth", "alexnet": "alexnet-owt-7be5be79.pth"}
Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def nothing_else_in_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SQZOO_TRUNKS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture()
def real(trunks: Path) -> Tensors:
    return load_file(trunks / "squeezenet1_1_features.safetensors")


def checkpoint(tensors: Tensors) -> Tensors:
    """Torchvision's own file holds the ImageNet classifier too."""
    return tensors | {"classifier.1.weight": torch.ones(1000, 512, 1, 1), "classifier.1.bias": torch.ones(1000)}


def assert_equal(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def refusal(name: str = "squeezenet1_1", path: Path | None = None, **arguments: bool) -> str:
    with pytest.raises(WeightsError) as caught:
        load_trunk(name, path, **arguments)
    assert_one_sentence(caught.value)
    return str(caught.value)


# Where trunks are taken from


@pytest.mark.parametrize("name", PTH)
def test_from_a_file_or_folder(name: str, trunks: Path, tmp_path: Path) -> None:
    file = trunks / f"{name}_features.safetensors"
    expected = load_file(file)
    assert tensors_sha256(expected) == TRUNKS[name].sha256
    torch.save(checkpoint(expected), tmp_path / PTH[name])
    torch.save(expected, tmp_path / "renamed.pt")
    for path in (file, trunks, tmp_path / PTH[name], tmp_path, tmp_path / "renamed.pt", str(file)):
        assert_equal(load_trunk(name, path), expected)


def test_from_the_environment_variable(trunks: Path, real: Tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQZOO_TRUNKS", str(trunks))
    assert_equal(load_trunk("squeezenet1_1"), real)


def test_from_torch_hubs_cache(real: Tensors, tmp_path: Path) -> None:
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(checkpoint(real), folder / PTH["squeezenet1_1"])
    assert_equal(load_trunk("squeezenet1_1"), real)


def test_the_nearer_source_goes_first(
    trunks: Path, real: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = tmp_path / "nowhere"
    monkeypatch.setenv("SQZOO_TRUNKS", str(nowhere))
    assert str(nowhere) in refusal()
    with trunk_source(trunks):
        assert_equal(load_trunk("squeezenet1_1"), real)
        assert str(tmp_path / "given") in refusal(path=tmp_path / "given")
    assert str(nowhere) in refusal()
    monkeypatch.setenv("SQZOO_TRUNKS", str(trunks))
    with trunk_source(nowhere):
        assert str(nowhere) in refusal()
    with trunk_source(None):
        assert_equal(load_trunk("squeezenet1_1"), real)


def test_alexnets_linear_layers(trunks: Path, tmp_path: Path) -> None:
    expected = load_file(trunks / "alexnet_features.safetensors")
    small = {"classifier.1.bias": torch.rand(4096), "classifier.4.bias": torch.rand(4096)}
    message = refusal("alexnet", trunks, linear=True)
    assert "classifier.1.weight" in message and PTH["alexnet"] in message
    # The two large matrices take 218 MB: that the small tensors are found shows as well which are missed.
    save_file(expected | small, tmp_path / "alexnet_features.safetensors")
    message = refusal("alexnet", tmp_path, linear=True)
    assert "classifier.4.weight" in message and "classifier.1.bias" not in message


def test_unknown_trunk(trunks: Path) -> None:
    with pytest.raises(ArgumentError, match=r"'squeezenet1_0'.*squeezenet1_1, alexnet"):
        load_trunk("squeezenet1_0", trunks)


# What is refused


def test_a_foreign_trunk_is_refused_by_its_hash(real: Tensors, tmp_path: Path) -> None:
    first = "features.0.weight"
    changed = real[first].clone()
    changed[0, 0, 0, 0] = torch.nextafter(changed[0, 0, 0, 0], torch.tensor(9.0))
    foreign = {
        "one value a step away": real | {first: changed},
        "a tensor less": {k: v for k, v in real.items() if k != first},
        "a tensor more": real | {"features.13.weight": torch.ones(1)},
        "another precision": {k: v.half() for k, v in real.items()},
        "nothing of it": {"classifier.1.bias": torch.ones(10)},
    }
    for tensors in foreign.values():
        features = {k: v for k, v in tensors.items() if k.startswith("features.")}
        save_file(tensors, tmp_path / "trunk.safetensors")
        message = refusal(path=tmp_path / "trunk.safetensors")
        assert tensors_sha256(features) in message and TRUNKS["squeezenet1_1"].sha256 in message
        assert str(tmp_path / "trunk.safetensors") in message


def test_another_networks_trunk_is_refused(trunks: Path) -> None:
    message = refusal("squeezenet1_1", trunks / "alexnet_features.safetensors")
    assert TRUNKS["alexnet"].sha256 in message


@pytest.mark.parametrize("name", ["trunk.safetensors", PTH["squeezenet1_1"]])
def test_a_damaged_file_is_refused(name: str, real: Tensors, tmp_path: Path) -> None:
    file = tmp_path / name
    if name.endswith(".pth"):
        torch.save(checkpoint(real), file)
    else:
        save_file(real, file)
    raw = file.read_bytes()
    for damaged in (raw[: len(raw) // 2], raw[:-1], raw[:5], b"", b"<html>not found</html>"):
        file.write_bytes(damaged)
        assert str(file) in refusal(path=file)
    middle = bytearray(raw)
    middle[len(raw) // 2] ^= 1
    file.write_bytes(middle)
    assert str(file) in refusal(path=file)


@pytest.mark.parametrize("content", [[1, 2], {"features.0.weight": 3}, {1: torch.ones(1)}, torch.ones(3)])
def test_a_file_of_something_else_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "trunk.pth")
    assert str(tmp_path / "trunk.pth") in refusal(path=tmp_path / "trunk.pth")


def test_missing_files_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.safetensors"):
        message = refusal(path=path)
        assert str(path) in message and "squeezenet1_1_features.safetensors" in message and "SQZOO_TRUNKS" in message


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("name", ["trunk.pth", "trunk.safetensors"])
def test_a_pickle_is_not_executed(name: str, real: Tensors, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    torch.save(real | {"features.99.weight": Payload(marker)}, tmp_path / "pickle")
    torch.load(tmp_path / "pickle", weights_only=False)
    (tmp_path / "pickle").rename(tmp_path / name)
    assert marker.exists()  # the payload works where it is let
    marker.unlink()
    assert str(tmp_path / name) in refusal(path=tmp_path / name)
    assert not marker.exists()


# The download


@pytest.fixture()
def server(real: Tensors, tmp_path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """A server's address, the name of the whole file it gives, after torchvision's pattern, and its requests."""
    torch.save(checkpoint(real), tmp_path / "served")
    body = (tmp_path / "served").read_bytes()
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            folder = self.path.split("/")[1]
            if folder == "garbage":
                self.wfile.write(b"this is not HTTP\r\n\r\n")
                return
            self.send_response(200 if folder != "missing" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if folder == "half":
                self.wfile.write(body[: len(body) // 2])
            elif folder == "changed":
                self.wfile.write(body[:-1] + bytes([body[-1] ^ 1]))
            elif folder == "whole":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as address:
        name = f"squeezenet1_1-{hashlib.sha256(body).hexdigest()[:8]}.pth"
        yield address, name, requests


def serve_from(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision's own server is out of a test's reach: the pinned trunk, at another address."""
    monkeypatch.setitem(TRUNKS, "squeezenet1_1", replace(TRUNKS["squeezenet1_1"], url=url))


def test_download(
    server: tuple[str, str, list[str]], real: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, name, requests = server
    serve_from(f"{address}/whole/{name}", monkeypatch)
    assert_equal(load_trunk("squeezenet1_1"), real)
    assert_equal(load_trunk("squeezenet1_1"), real)
    assert requests == [f"/whole/{name}"]  # once
    assert [f.name for f in (tmp_path / "torch/hub/checkpoints").iterdir()] == [name]


@pytest.mark.parametrize("fault", ["half", "changed", "missing", "garbage"])
def test_a_failed_download_leaves_nothing(
    fault: str,
    server: tuple[str, str, list[str]],
    real: Tensors,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, name, _ = server
    serve_from(f"{address}/{fault}/{name}", monkeypatch)
    message = refusal()
    assert f"{address}/{fault}/{name}" in message and "SQZOO_TRUNKS" in message
    assert list((tmp_path / "torch/hub/checkpoints").iterdir()) == []
    serve_from(f"{address}/whole/{name}", monkeypatch)
    assert_equal(load_trunk("squeezenet1_1"), real)


def test_a_download_of_a_foreign_trunk_is_refused_by_its_hash(
    server: tuple[str, str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose name promises its hash rightly, and whose tensors are not the pinned ones."""
    address, name, _ = server
    serve_from(f"{address}/whole/{name}", monkeypatch)
    monkeypatch.setitem(TRUNKS, "squeezenet1_1", replace(TRUNKS["squeezenet1_1"], sha256="0" * 64))
    assert "0" * 64 in refusal()


def test_no_network_and_no_place_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_from("http://127.0.0.1:9/whole/squeezenet1_1-00000000.pth", monkeypatch)  # port 9: nobody listens
    assert "SQZOO_TRUNKS" in refusal()
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    assert "SQZOO_TRUNKS" in refusal()

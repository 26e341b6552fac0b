"""A Hub on loopback with a small model, as fixtures; what tests on it share."""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch

import sqzoo
from sqzoo import hub
from tests.support.hub_server import HubServer

REPO = "some-org/sq1"


@pytest.fixture()
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A Hub on loopback that this process's client talks to, with a cache of its own and no long waits."""
    with HubServer(token="secret") as running:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub cache é"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
        # The client waits up to 8 seconds between its tries.
        monkeypatch.setattr(huggingface_hub.utils._http, "time", SimpleNamespace(sleep=lambda _: None, time=time.time))
        yield running


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return sqzoo.create_model("sq1", mid=8, num_classes=4).eval()


@pytest.fixture(scope="module")
def files(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What save_pretrained writes, by name."""
    folder = tmp_path_factory.mktemp("saved")
    hub.save_pretrained(model, folder)
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def cached_files(tmp_path: Path) -> list[Path]:
    """Every file in the cache that is under its final name."""
    found = (tmp_path / "hub cache é").rglob("*")
    return [f for f in found if f.is_file() and "snapshots" in f.parts]


def spoil(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    target = file.resolve()
    target.chmod(0o644)
    target.write_bytes(data)

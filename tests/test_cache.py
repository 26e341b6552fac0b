"""Where files live: caches of several users and processes, read-only, without symbolic links, under any name.

A second user is one: another uid, in a forked process. What HF_HOME, HF_HUB_OFFLINE and TORCH_HOME say is read by the
clients as they are imported, so those tests start processes of their own.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

import sqzoo
from sqzoo import cache, hub
from sqzoo.weights import load_trunk
from sqzoo.weights.remote import WEIGHTS
from tests.support import ROOT
from tests.support.hub import REPO, same, spoil
from tests.support.hub_server import HubServer
from tests.support.sentences import assert_one_sentence

NOBODY = 65534
Forked = multiprocessing.get_context("fork") if hasattr(os, "fork") else None
two_users = pytest.mark.skipif(
    not hasattr(os, "setuid") or os.geteuid() != 0, reason="only root can be two users: needs a run as root"
)


def as_nobody(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or "ErrorType: text", in a process of another user."""
    receiver, sender = Forked.Pipe(False)

    def job() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        torch.set_num_threads(1)  # OpenMP's other threads did not come along: to wait for them would take for ever
        try:
            sender.send(call())
        except BaseException as e:
            sender.send(f"{type(e).__name__}: {e}")

    process = Forked.Process(target=job)
    process.start()
    assert receiver.poll(120), "the other user's process did not answer"
    answer = receiver.recv()
    process.join()
    return answer


@pytest.fixture()
def shared(server: HubServer, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache that all may look into, and REPO in it."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", f"{folder}/of all ü")
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", f"{folder}/token")
        monkeypatch.setenv("TORCH_HOME", f"{folder}/torch")
        server.put(REPO, files)
        server.put("some-org/other", files)
        sqzoo.create_model(f"hf-hub:{REPO}")
        cache.entries()  # all modules are there for who may not read this one's packages
        yield Path(folder) / "of all ü"


def one_sentence(answer: str, *parts: object) -> None:
    kind, _, text = answer.partition(": ")
    assert kind == "WeightsError", answer
    assert_one_sentence(text, *parts)


@two_users
def test_another_users_cache_is_read_and_not_written(
    shared: Path,
    server: HubServer,
    model: torch.nn.Module,
) -> None:
    calls = len(server.requests)
    assert as_nobody(lambda: same(sqzoo.create_model(f"hf-hub:{REPO}"), model)) is True
    assert as_nobody(lambda: [k.name for k in cache.entries() if k.kind == "hub" and not k.damage()]) == [REPO]
    assert len(server.requests) == calls
    for call in (
        lambda: sqzoo.create_model("hf-hub:some-org/other"),
        lambda: sqzoo.create_model(f"hf-hub:{REPO}", force_download=True),
    ):
        one_sentence(as_nobody(call), "Permission denied")
    one_sentence(as_nobody(lambda: cache.remove(REPO)), "owner")
    one_sentence(as_nobody(lambda: hub.save_pretrained(model, shared / "saved")), shared / "saved", "Permission")
    assert as_nobody(lambda: os.geteuid()) == NOBODY  # so that nothing of the above was root's
    assert same(sqzoo.create_model(f"hf-hub:{REPO}"), model)


@two_users
def test_a_damaged_file_of_another_user_is_not_loaded(shared: Path) -> None:
    (weights,) = shared.rglob(f"snapshots/*/{WEIGHTS}")
    spoil(weights)
    one_sentence(as_nobody(lambda: sqzoo.create_model(f"hf-hub:{REPO}")), weights, "cannot be removed", "HF_HOME")
    assert weights.is_file()


@two_users
def test_a_cache_that_both_write(shared: Path, model: torch.nn.Module) -> None:
    """As an administrator sets it up, and each user's umask keeps it."""
    for path in (shared, *shared.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o777 if path.is_dir() else 0o666)

    def load() -> list[bool]:
        os.umask(0)
        names = (f"hf-hub:{REPO}", "hf-hub:some-org/other")
        return [same(sqzoo.create_model(name, force_download=new), model) for name in names for new in (True, False)]

    assert as_nobody(load) == [True] * 4
    assert load() == [True] * 4 == as_nobody(load)
    (weights,) = (f for f in shared.rglob(f"snapshots/*/{WEIGHTS}") if "other" in str(f))
    spoil(weights)
    assert as_nobody(load) == [True] * 4


@two_users
def test_folders_one_may_not_look_into(shared: Path) -> None:
    shared.chmod(0o700)
    one_sentence(as_nobody(lambda: sqzoo.create_model(f"hf-hub:{REPO}")), REPO)
    assert as_nobody(lambda: [k.name for k in cache.entries() if k.kind != "package"]) == []
    one_sentence(as_nobody(lambda: sqzoo.create_model(f"local-dir:{shared}/x")), shared, "Permission denied")
    one_sentence(as_nobody(lambda: load_trunk("squeezenet1_1", shared / "trunks")), shared)


def test_processes_that_fill_one_cache_at_once(
    server: HubServer,
    model: torch.nn.Module,
    files: dict[str, bytes],
) -> None:
    server.put(REPO, files)
    results = Forked.Queue()

    def job() -> None:
        torch.set_num_threads(1)  # see as_nobody
        results.put(same(sqzoo.create_model(f"hf-hub:{REPO}"), model))

    workers = [Forked.Process(target=job) for _ in range(4)]
    for worker in workers:
        worker.start()
    assert [results.get(timeout=120) for _ in workers] == [True] * 4
    for worker in workers:
        worker.join()
    assert len([path for method, path in server.requests if method == "GET" and "/lfs/" in path]) == 1


SCRIPT = """
import json, sys
import sqzoo, sqzoo.cache
from sqzoo.files import tensors_sha256
names, found = json.loads(sys.argv[1]), {}
for name in names:
    try:
        found[name] = tensors_sha256(sqzoo.create_model(name, pretrained=True).state_dict())
    except sqzoo.SqzooError as e:
        found[name] = str(e)
found["kept"] = {k.name: [str(k.path), k.damage()] for k in sqzoo.cache.entries() if k.kind != "package"}
print(json.dumps(found))
"""


@pytest.mark.slow
def test_homes_of_any_name_offline_and_without_links(
    model: torch.nn.Module,
    files: dict[str, bytes],
    trunks: Path,
    tmp_path: Path,
) -> None:
    """HF_HOME, HF_HUB_OFFLINE, TORCH_HOME, and the client's own switch for file systems without symbolic links."""
    home, checkpoints = tmp_path / "häuser 家", tmp_path / "torch é 火" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    trunk = load_file(trunks / "squeezenet1_1_features.safetensors")
    torch.save(trunk, checkpoints / "squeezenet1_1-b8a52dc0.pth")

    def run(names: list[str], **environment: str) -> dict[str, Any]:
        env = {k: v for k, v in os.environ.items() if k not in ("SQZOO_TRUNKS", "HF_HUB_CACHE")} | running.env
        env |= {"HF_HOME": str(home), "TORCH_HOME": str(tmp_path / "torch é 火"), "HF_HUB_DISABLE_SYMLINKS": "1"}
        command = [sys.executable, "-c", SCRIPT, json.dumps(names)]
        done = subprocess.run(command, cwd=ROOT, env=env | environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    ours = f"hf-hub:{REPO}"
    with HubServer(token="secret") as running:
        running.put(REPO, files)
        first = run([ours, "sq1.paper_cifar10"])
        (weights,) = home.rglob(f"snapshots/*/{WEIGHTS}")
        assert not [f for f in home.rglob("*") if f.is_symlink()] and weights.is_file()
        spoil(weights)
        assert run([ours])[ours] == first[ours]
        calls = len(running.requests)
        offline = run([ours, "sq1.paper_cifar10", "hf-hub:some-org/none"], HF_HUB_OFFLINE="1")
        assert len(running.requests) == calls
    assert first[ours] == sqzoo.files.tensors_sha256(model.state_dict())
    assert {name: first[name] for name in (ours, "sq1.paper_cifar10")}.items() <= offline.items()
    assert "HF_HUB_OFFLINE is set" in offline["hf-hub:some-org/none"]
    kept = offline["kept"]
    assert kept[REPO][0].startswith(str(home)) and kept["squeezenet1_1"][0].startswith(str(checkpoints))
    assert kept[REPO][1] is None and kept["squeezenet1_1"][1] is None
    paper = sqzoo.create_model("sq1.paper_cifar10", pretrained=True, trunk=trunks)
    assert offline["sq1.paper_cifar10"] == sqzoo.files.tensors_sha256(paper.state_dict())

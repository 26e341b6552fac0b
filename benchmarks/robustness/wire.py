"""Load models from a Hub on loopback that fails in every way it knows, and with no network at all."""

import contextlib
import itertools
import multiprocessing
import random
import socket
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub

import sqzoo
from sqzoo import hub
from sqzoo.files import tensors_sha256
from sqzoo.weights import read_manifest
from tests.support.hub_server import Fault, HubServer

REPO = "org/sq1"
PROCESSES = 8
STEP = 100  # faults of one server and cache
Forked = multiprocessing.get_context("fork")


def random_fault(rng: random.Random, done: Counter[str], wanted: int) -> Callable[[str, str], Fault | None]:
    """Return a function that gives two requests in three a fault, until so many are done."""

    def choose(method: str, path: str) -> Fault | None:
        if sum(done.values()) >= wanted or rng.random() < 1 / 3:
            return None
        after, wait = rng.choice([None, 0, 100, 100_000]), rng.uniform(1.5, 3)
        fault = rng.choice(
            [
                Fault("cut", after=after),
                Fault("reset", after=after),
                Fault("stall", after=rng.choice([0, 100]), seconds=wait),
                Fault("length", by=rng.choice([-1000, -1, 1, 1000])),
                Fault("flip"),
                Fault("status", status=rng.choice([429, 500, 502, 503]), retry_after=rng.choice([None, 0])),
                Fault("redirect"),
            ]
        )
        if not fault.strikes(method, path):
            return None
        fault.times = 1
        done[fault.kind] += 1
        return fault

    return choose


def use_hub(url: str, cache: Path) -> None:
    """Point this process's client at a server, with short timeouts and without its waits between tries."""
    constants = huggingface_hub.constants
    constants.ENDPOINT = url
    constants.HUGGINGFACE_CO_URL_TEMPLATE = url + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HUB_CACHE = str(cache)
    constants.HF_HUB_DOWNLOAD_TIMEOUT = constants.HF_HUB_ETAG_TIMEOUT = 1
    constants.HF_HUB_DISABLE_XET = constants.HF_HUB_DISABLE_TELEMETRY = True
    huggingface_hub.utils.disable_progress_bars()
    huggingface_hub.utils.logging.set_verbosity_error()
    huggingface_hub.utils._http.time = SimpleNamespace(sleep=lambda _: time.sleep(0.01), time=time.time)  # type: ignore[attr-defined]


def _load_again_and_again(url: str, cache: Path, expected: str, stop: Any, results: Any, seed: int) -> None:
    use_hub(url, cache)
    rng = random.Random(seed)
    found: Counter[str] = Counter()
    while not stop.is_set():
        try:
            model = sqzoo.create_model(f"hf-hub:{REPO}", force_download=rng.random() < 0.5)
            found["right" if tensors_sha256(model.state_dict()) == expected else "wrong"] += 1
        except sqzoo.SqzooError as e:
            found["refused" if "\n" not in str(e) and str(e).endswith(".") else "unclear"] += 1
        except Exception:
            found["crashed"] += 1
            traceback.print_exc()
    results.put(dict(found))


def failing_hub(start: int, seed: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Load from a failing Hub in eight processes on one cache, a new one each time.

    Yields:
        The number of faults and what happened.
    """
    model = sqzoo.create_model("sq1", pretrained=True)
    expected = tensors_sha256(model.state_dict())
    for number in itertools.count(start):
        done: Counter[str] = Counter()
        outcome: Counter[str] = Counter()
        with tempfile.TemporaryDirectory() as folder, HubServer(token="secret") as server:
            cache = Path(folder) / "cache"
            hub.save_pretrained(model, Path(folder) / "saved")
            files = {f.name: f.read_bytes() for f in (Path(folder) / "saved").iterdir()}
            server.put(REPO, files)
            server.fault = random_fault(random.Random(f"{seed} {number}"), done, STEP)
            stop, results = Forked.Event(), Forked.Queue()
            arguments = (server.url, cache, expected, stop, results)
            workers = [Forked.Process(target=_load_again_and_again, args=(*arguments, i)) for i in range(PROCESSES)]
            for worker in workers:
                worker.start()
            while sum(done.values()) < STEP and any(w.is_alive() for w in workers):
                time.sleep(0.2)
                outcome["half_written"] += sum(not _complete(f, files) for f in _final(cache))
            stop.set()
            for _ in workers:
                outcome.update(results.get(timeout=600))
            for worker in workers:
                worker.join()
            use_hub(server.url, cache)
            after = tensors_sha256(sqzoo.create_model(f"hf-hub:{REPO}").state_dict()) == expected
        counts = {k: outcome[k] for k in ("right", "wrong", "refused", "unclear", "crashed", "half_written")}
        kinds = dict(sorted(done.items()))
        yield sum(done.values()), {"kinds": kinds, "processes": PROCESSES, **counts, "fails_after": int(not after)}


def _final(cache: Path) -> list[Path]:
    return [f for f in cache.rglob("*") if "snapshots" in f.parts and f.is_file()]


def _complete(file: Path, files: dict[str, bytes]) -> bool:
    """Whether a file under its final name has its full length (flipped bytes are found as it loads)."""
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_size == len(files[file.name])
    return True


def no_network(start: int, seed: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Cache a model, then load it, and every complete tag, where a socket that connects is an error."""
    with tempfile.TemporaryDirectory() as name, HubServer(token="secret") as server:
        folder = Path(name)
        model = sqzoo.create_model("sq1", pretrained=True)
        hub.save_pretrained(model, folder / "saved")
        server.put(REPO, {f.name: f.read_bytes() for f in (folder / "saved").iterdir()})
        use_hub(server.url, folder / "cache")
        sqzoo.create_model(f"hf-hub:{REPO}")
        calls, opened, loaded = len(server.requests), 0, 0
        connect = socket.socket.connect

        def refuse(*_: Any) -> None:
            nonlocal opened
            opened += 1
            raise OSError("no network")

        socket.socket.connect = refuse  # type: ignore[method-assign, assignment]
        try:
            tags = [t for t, e in read_manifest().items() if e.holds == "complete"]
            for each in (f"hf-hub:{REPO}", f"local-dir:{folder / 'saved'}", *tags):
                sqzoo.create_model(each, pretrained=True)
                loaded += 1
        finally:
            socket.socket.connect = connect  # type: ignore[method-assign]
        yield 1, {"models_loaded": loaded, "sockets_opened": opened, "requests": len(server.requests) - calls}

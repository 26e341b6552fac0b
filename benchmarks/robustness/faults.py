"""Faults against weights: what a hostile or failing world does to files, downloads, uploads and trainings.

    python benchmarks/robustness/faults.py [--mutations 10000] [--coded 3000] [--injections 1000]
        [--kills 100] [--only PART]
    python benchmarks/robustness/faults.py ... --trial   # records nothing

- mutations: safetensors files with flipped bits, cut ends, edited and huge headers, other models' files, zip and pickle
  files under their name. None may load, none may crash; a refusal's longest CPU time and most memory are noted.
- coded: compressed files (`sqzoo/weights/coded.py`) with flipped bits, edited lists of layers, compressed parts that
  unpack to gigabytes, each with a manifest that states its new hash. None may crash or take memory for more weights
  than the manifest states; all but those whose values alone differ, which a hash alone can tell, must be refused.
- injections: eight processes load a model from a Hub on loopback (tests/hub_server.py, the real client) that fails in
  every way it knows, on one cache. Each load must end in the right tensors or in one clear error, and no file under its
  final name may be half-written.
- kills: SIGKILL at random moments of downloading, pushing, saving, training and exporting. The next run must work,
  nothing lost.
- network: with every file cached, a process that may open no socket loads everything.

Writes results/robustness/faults.json, but for a --trial. Everything runs on loopback and in temporary
folders. Linux only (fork).
"""

import argparse
import contextlib
import dataclasses
import gc
import hashlib
import io
import json
import logging
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
import tracemalloc
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import torch
from safetensors.torch import load, save

import sqzoo
from benchmarks import RESULTS
from benchmarks.record import write_record
from sqzoo import hub
from sqzoo.data import Dataset
from sqzoo.environment import environment
from sqzoo.files import tensors_sha256
from sqzoo.train import Recipe, train
from sqzoo.weights import read_manifest
from sqzoo.weights.coded import LAYERS, SYMBOLS, VALUES
from sqzoo.weights.header import check_matches
from sqzoo.weights.loading import read_verified
from sqzoo.weights.remote import WEIGHTS, Source, read_weights
from tests.support.hub_server import Fault, HubServer

RESULT = RESULTS / "robustness" / "faults.json"
REPO = "org/sq1"
PROCESSES = 8
Forked = multiprocessing.get_context("fork")


# Mutated files


def mutations(rng: random.Random, originals: list[bytes], count: int) -> Iterator[tuple[str, bytes]]:
    """Yield (kind, file) for so many damaged, edited or foreign files, the kinds in turn."""
    kinds: dict[str, Callable[[bytes], bytes]] = {
        "flipped bit": lambda d: _flip(rng, d, 0, len(d)),
        "flipped bit in the header": lambda d: _flip(rng, d, 0, 8 + int.from_bytes(d[:8], "little")),
        "cut": lambda d: d[: rng.randrange(len(d))],
        "longer": lambda d: d + rng.randbytes(rng.randrange(1, 100)),
        "edited header": lambda d: _edit(rng, d),
        "huge header": lambda d: rng.randrange(1 << 20, 1 << 63).to_bytes(8, "little") + d[8:],
        "deep header": lambda d: _headed(b"[" * 100_000, d),
        "another model's file": lambda d: rng.choice([o for o in originals if o != d]),
        "zip": lambda d: _zip(d),
        "pickle": lambda d: _pickle(),
        "random": lambda d: rng.randbytes(rng.randrange(100_000)),
    }
    for number in range(count):
        kind = list(kinds)[number % len(kinds)]
        yield kind, kinds[kind](originals[0])


def _flip(rng: random.Random, data: bytes, low: int, high: int) -> bytes:
    place = rng.randrange(low, high)
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def _headed(header: bytes, data: bytes) -> bytes:
    old = 8 + int.from_bytes(data[:8], "little")
    return len(header).to_bytes(8, "little") + header + data[old:]


def _edit(rng: random.Random, data: bytes) -> bytes:
    """Change one thing in the header: a name, a shape, a dtype, an offset; drop, double or add a tensor."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    key = rng.choice([k for k in header if k != "__metadata__"])
    entry = header[key]
    match rng.randrange(9):
        case 0:
            header[key + "x"] = header.pop(key)
        case 1:
            entry["shape"] = [*entry["shape"], rng.choice([0, 1, -1, 1 << 40, 2.5, "1", None])]
        case 2:
            entry["dtype"] = rng.choice([d for d in ("F16", "F64", "I8", "Q", "", None) if d != entry["dtype"]])
        case 3:
            entry["data_offsets"][rng.randrange(2)] += rng.choice([-1 << 40, -4, 4, 1 << 40])
        case 4:
            del header[key]
        case 5:
            header["extra"] = entry
        case 6:
            entry["extra"] = 1
        case 7:
            header["__metadata__"] = {"format": 5}
        case 8:
            entry["shape"] = [3] * 100_000
    return _headed(json.dumps(header).encode(), data)


def _zip(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model/data.pkl", data[:1000])
    return buffer.getvalue()


def _pickle() -> bytes:
    buffer = io.BytesIO()
    torch.save({"fc2.bias": torch.zeros(10)}, buffer)
    return buffer.getvalue()


def run_mutations(count: int, seed: int) -> dict[str, Any]:
    """Offer mutated files as a model, with and without a stated hash; return what happened."""
    rng = random.Random(seed)
    entries = [e for e in read_manifest().values() if e.holds == "complete"]
    originals = [e.path.read_bytes() for e in sorted(entries, key=lambda e: e.architecture != "sq1")]
    own = sqzoo.create_model("sq1", device="meta").state_dict()
    stated = {"sha256": hashlib.sha256(originals[0]).hexdigest()}
    outcome: Counter[str] = Counter()
    slowest, most = 0.0, 0.0
    gc.freeze()  # or the time would be that of the garbage collector, which walks through all of torch now and then
    with tempfile.TemporaryDirectory() as folder:
        source = Source(folder, folder=True)
        for number, (kind, data) in enumerate(mutations(rng, originals, count)):
            (Path(folder) / WEIGHTS).write_bytes(data)
            # Values alone may differ without a hash; names, shapes and sizes may not.
            config = {} if kind not in ("flipped bit", "flipped bit in the header") and number % 2 else stated
            began = time.process_time()
            outcome[_offer(source, config, own)] += 1
            slowest = max(slowest, time.process_time() - began)
            tracemalloc.start()  # apart, since it takes time
            _offer(source, config, own)
            most = max(most, tracemalloc.get_traced_memory()[1] / len(originals[0]))
            tracemalloc.stop()
    return {
        "files": count,
        **{k: outcome[k] for k in ("refused", "accepted", "crashed", "unclear")},
        "slowest_ms": round(slowest * 1000, 2),
        "most_memory_in_file_sizes": round(most, 2),
    }


def _offer(source: Source, config: dict[str, str], own: dict[str, torch.Tensor]) -> str:
    """Return what reading the weights in a folder came to."""
    try:
        read_weights(source, config, own)
    except sqzoo.SqzooError as e:
        return "refused" if "\n" not in str(e) and str(e).endswith(".") else "unclear"
    except Exception:
        traceback.print_exc()
        return "crashed"
    return "accepted"


# Coded files


def coded_mutations(rng: random.Random, original: dict[str, torch.Tensor], count: int) -> Iterator[bytes]:
    """Yield so many files of coded weights with a change in their compressed parts, the kinds in turn."""
    bomb = torch.frombuffer(bytearray(zlib.compress(bytes(1 << 28), 9)), dtype=torch.uint8)
    parts = (LAYERS, VALUES, SYMBOLS)
    kinds: list[Callable[[], dict[str, torch.Tensor]]] = [
        lambda: {(key := rng.choice(parts)): _flipped(rng, original[key])},
        lambda: {(key := rng.choice(parts)): original[key][: rng.randrange(len(original[key]))].clone()},
        lambda: {LAYERS: _edited_layers(rng, original[LAYERS])},
        lambda: {rng.choice((LAYERS, SYMBOLS)): bomb},
        lambda: {(key := rng.choice(parts)): original[key].to(rng.choice([torch.float32, torch.int32, torch.bool]))},
        lambda: {rng.choice(parts): torch.zeros(rng.choice([(), (0,), (3,), (2, 3)]), dtype=torch.uint8)},
        lambda: {SYMBOLS: _deflated(rng.randbytes(rng.randrange(1000)))},
    ]
    for number in range(count):
        yield save(original | kinds[number % len(kinds)]())


def _flipped(rng: random.Random, tensor: torch.Tensor) -> torch.Tensor:
    data = tensor.clone()
    data.view(torch.uint8)[rng.randrange(data.nbytes)] ^= 1 << rng.randrange(8)
    return data


def _deflated(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(zlib.compress(data)), dtype=torch.uint8)


def _edited_layers(rng: random.Random, tensor: torch.Tensor) -> torch.Tensor:
    """Change one field of one layer in the list, or the list."""
    layers = json.loads(zlib.decompress(tensor.numpy().tobytes()))
    odd = [0, 1, -1, 255, 1 << 30, 1 << 62, 2.5, "1", None, [], True, [1 << 20, 1 << 20]]
    layer = rng.choice(layers)
    match rng.randrange(5):
        case 0:
            layer[rng.randrange(4)] = rng.choice(odd)
        case 1:
            layer[1][rng.randrange(len(layer[1]))] = rng.choice(odd)
        case 2:
            layers.remove(layer)
        case 3:
            layers.append(layer)
        case 4:
            layers = rng.choice([*odd, layer, {"layers": layers}])
    return _deflated(json.dumps(layers).encode())


def run_coded(count: int, seed: int) -> dict[str, Any]:
    """Load mutated files of coded weights, each under the hash it has; return what happened."""
    rng = random.Random(seed)
    entry = next(e for e in read_manifest().values() if e.stored == "coded" and e.architecture == "sq1")
    own = sqzoo.create_model("sq1", device="meta").state_dict()
    outcome: Counter[str] = Counter()
    slowest, most = 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "coded.safetensors"
        for number, data in enumerate(coded_mutations(rng, load(entry.path.read_bytes()), count)):
            file.write_bytes(data)
            sha256 = hashlib.sha256(data).hexdigest()
            mutated = dataclasses.replace(entry, file=str(file), sha256=sha256, size=len(data))
            traced = number % 20 in (3, 7)  # bombs among them
            if traced:
                tracemalloc.start()
            began = time.process_time()
            try:
                check_matches(read_verified(mutated), own, str(file))
                outcome["values_differ"] += 1
            except sqzoo.SqzooError as e:
                outcome["refused" if "\n" not in str(e) and str(e).endswith(".") else "unclear"] += 1
            except Exception:
                outcome["crashed"] += 1
                traceback.print_exc()
            if traced:
                most = max(most, tracemalloc.get_traced_memory()[1] / (4 * entry.params))
                tracemalloc.stop()
            else:
                slowest = max(slowest, time.process_time() - began)
    return {
        "files": count,
        **{k: outcome[k] for k in ("refused", "values_differ", "crashed", "unclear")},
        "slowest_ms": round(slowest * 1000, 2),
        "most_memory_in_decoded_sizes": round(most, 2),
    }


# Faults of the wire


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


def run_injections(count: int, seed: int) -> dict[str, Any]:
    """Load from a failing Hub in eight processes on one cache; return what happened."""
    done: Counter[str] = Counter()
    outcome: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, HubServer(token="secret") as server:
        cache = Path(folder) / "cache"
        model = sqzoo.create_model("sq1", pretrained=True)
        hub.save_pretrained(model, Path(folder) / "saved")
        files = {f.name: f.read_bytes() for f in (Path(folder) / "saved").iterdir()}
        server.put(REPO, files)
        server.fault = random_fault(random.Random(seed), done, count)
        stop, results = Forked.Event(), Forked.Queue()
        arguments = (server.url, cache, tensors_sha256(model.state_dict()), stop, results)
        workers = [Forked.Process(target=_load_again_and_again, args=(*arguments, i)) for i in range(PROCESSES)]
        for worker in workers:
            worker.start()
        while sum(done.values()) < count and any(w.is_alive() for w in workers):
            time.sleep(0.2)
            half_written = [str(f) for f in _final(cache) if not _whole(f, files)]
            outcome["half_written"] += len(half_written)
        stop.set()
        for _ in workers:
            outcome.update(results.get(timeout=120))
        for worker in workers:
            worker.join()
        use_hub(server.url, cache)
        after = tensors_sha256(sqzoo.create_model(f"hf-hub:{REPO}").state_dict()) == tensors_sha256(model.state_dict())
    keys = ("right", "wrong", "refused", "unclear", "crashed", "half_written")
    counts = {k: outcome[k] for k in keys}
    return {"faults": dict(sorted(done.items())), "processes": PROCESSES, **counts, "works_after": after}


def _final(cache: Path) -> list[Path]:
    return [f for f in cache.rglob("*") if "snapshots" in f.parts and f.is_file()]


def _whole(file: Path, files: dict[str, bytes]) -> bool:
    """Whether a file under its final name has its full length (flipped bytes are found as it loads)."""
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_size == len(files[file.name])
    return True


# Kills


def run_kills(count: int, seed: int) -> dict[str, Any]:
    """Kill downloads, pushes, saves, trainings and exports; return how often, and what the next run found."""
    from sqzoo.export import export as write_graph

    rng = random.Random(seed)
    outcome: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as name, HubServer(token="secret") as server:
        folder = Path(name)
        model = sqzoo.create_model("sq1", pretrained=True)
        expected = tensors_sha256(model.state_dict())
        hub.save_pretrained(model, folder / "saved")
        files = {f.name: f.read_bytes() for f in (folder / "saved").iterdir()}
        server.put(REPO, files)
        use_hub(server.url, folder / "cache")
        plan, data = _small_training()
        whole = train(plan, *data, folder / "whole", progress=False)
        write_graph(model, folder / "whole.onnx")  # with all that is imported on the way
        began = time.perf_counter()
        graph = write_graph(model, folder / "whole.onnx").read_bytes()
        usual = {"download": 0.12, "push": 0.08, "save": 0.04, "training": 0.25}  # seconds, about
        usual["export"] = time.perf_counter() - began

        def download(number: int) -> bool:
            loaded = sqzoo.create_model(f"hf-hub:{REPO}", force_download=number % 2 == 0)
            return tensors_sha256(loaded.state_dict()) == expected

        def push(number: int) -> bool:
            hub.push(model, f"org/pushed{number}", token="secret")
            return True

        def save(number: int) -> bool:
            hub.save_pretrained(model, folder / f"saved{number}")
            return tensors_sha256(hub.from_pretrained(folder / f"saved{number}").state_dict()) == tensors_sha256(
                model.state_dict()
            )

        def training(number: int) -> bool:
            result = train(plan, *data, folder / f"run{number}", progress=False)
            return result["test"] == whole["test"] and _same(folder / f"run{number}", folder / "whole")

        def export(number: int) -> bool:
            return write_graph(model, folder / f"exported{number % 3}.onnx").read_bytes() == graph

        number = 0
        while sum(found["killed"] for found in outcome.values()) < count:
            number += 1
            job = (download, push, save, training, export)[number % 5]
            found = outcome.setdefault(job.__name__, Counter())
            after = rng.uniform(0, usual[job.__name__])
            found["killed" if _kill(lambda job=job, n=number: job(n), after) else "too_late"] += 1
            if job is export:
                found["half_exported"] += any(f.read_bytes() != graph for f in folder.glob("exported*.onnx"))
            if job is push:  # the server is this process's: whole or nothing may be there
                with contextlib.suppress(KeyError):
                    there = {k: v for k, v in server.files(f"org/pushed{number}").items() if k in files}
                    found["half_pushed"] += there not in ({}, files)
                hub.push(model, f"org/pushed{number}", token="secret")
                ok = {k: v for k, v in server.files(f"org/pushed{number}").items() if k in files} == files
            else:
                ok = job(number)
            found["next_run_right" if ok else "next_run_wrong"] += 1
    return {k: dict(sorted(v.items())) for k, v in outcome.items()}


def _small_training() -> tuple[Recipe, tuple[Dataset, Dataset]]:
    rng = np.random.default_rng(0)
    sets = [Dataset(rng.integers(0, 256, (n, 32, 32, 3), np.uint8), np.arange(n) % 10) for n in (100, 40)]
    plan = Recipe("sq1", sizes=((32, 4),), crop_pct=1.0, hold_out=20, select="held_out", batch_size=8)
    return plan, (sets[0], sets[1])


def _same(first: Path, second: Path) -> bool:
    names = ("best.safetensors", "recipe.json")
    return all((first / n).read_bytes() == (second / n).read_bytes() for n in names)


def _kill(job: Callable[[], Any], after: float) -> bool:
    """Run a job in a forked process and kill it after so many seconds; return whether it was still at it."""
    process = Forked.Process(target=job)
    process.start()
    process.join(after)
    running = process.is_alive()
    if running and process.pid:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return running


# No network


def run_network() -> dict[str, Any]:
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
        return {"models_loaded": loaded, "sockets_opened": opened, "requests": len(server.requests) - calls}


def main() -> int:
    """Run all, print, record; return 1 where a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--coded", type=int, default=3000)
    parser.add_argument("--injections", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only",
        choices=["network", "mutations", "coded", "kills", "injections"],
        help="one part; the record of the others stays",
    )
    parser.add_argument("--trial", action="store_true", help="record nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("sqzoo").setLevel(logging.ERROR)  # or each file without a stated hash has its line
    parts = {
        "network": run_network,
        "mutations": lambda: run_mutations(arguments.mutations, arguments.seed),
        "coded": lambda: run_coded(arguments.coded, arguments.seed),
        "kills": lambda: run_kills(arguments.kills, arguments.seed),
        "injections": lambda: run_injections(arguments.injections, arguments.seed),
    }
    if arguments.only:
        results: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
        parts = {arguments.only: parts[arguments.only]}
    else:
        results = {"environment": environment(), "seed": arguments.seed}
    for name, part in parts.items():
        began = time.perf_counter()
        results[name] = part() | ({"environment": environment()} if arguments.only else {})
        results[name]["seconds"] = round(time.perf_counter() - began, 1)
        print(name, json.dumps(results[name]), flush=True)
    if not arguments.trial:
        write_record(RESULT, results)
    broken = broken_promises(results)
    print(*broken, sep="\n")
    return 1 if broken else 0


def broken_promises(results: dict[str, Any]) -> list[str]:
    """Return a line for each promise of the README that the results do not keep."""
    mutations_, injections, network = results["mutations"], results["injections"], results["network"]
    wrong_after_kill = sum(v.get("next_run_wrong", 0) for v in results["kills"].values() if isinstance(v, dict))
    promises = {
        "a mutated file was accepted": mutations_["accepted"],
        "a mutated file crashed the reader": mutations_["crashed"],
        "a refusal took 50 ms": mutations_["slowest_ms"] >= 50,
        "a refusal took more memory than two files": mutations_["most_memory_in_file_sizes"] > 2,
        "a coded file crashed the reader": results["coded"]["crashed"],
        "a coded file took more memory than three of what it stands for": results["coded"][
            "most_memory_in_decoded_sizes"
        ]
        > 3,
        "wrong tensors were loaded": injections["wrong"],
        "a file was half-written": injections["half_written"],
        "a fault ended in no clear sentence": injections["unclear"]
        + injections["crashed"]
        + mutations_["unclear"]
        + results["coded"]["unclear"],
        "the model did not load after the faults": not injections["works_after"],
        "a run after a kill was wrong": wrong_after_kill,
        "half a push was there": results["kills"]["push"].get("half_pushed", 0),
        "half an export was there": results["kills"].get("export", {}).get("half_exported", 0),
        "a cached model used the network": network["sockets_opened"] + network["requests"],
    }
    return [f"broken: {text}" for text, wrong in promises.items() if wrong]


if __name__ == "__main__":
    sys.exit(main())

"""Kill jobs at random moments, or let the disk fill up under them: the next run finds nothing lost or half-written."""

import itertools
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import sqzoo
from benchmarks.robustness.wire import REPO, use_hub
from sqzoo import hub
from sqzoo.compress.make_tag import make_tiny
from sqzoo.data import Dataset
from sqzoo.errors import SqzooError
from sqzoo.export import export
from sqzoo.files import TEMPORARY, tensors_sha256, write_bytes, write_text
from sqzoo.own_images.training import train_on_images
from sqzoo.train import Recipe, train
from sqzoo.weights.header import parse_header
from tests.support.hub_server import HubServer

Forked = multiprocessing.get_context("fork")
# In turn, the cheap ones more often.
TURNS = (
    *("download", "push", "save", "export", "training", "download", "push", "own_images", "save", "export"),
    *("download", "training", "push", "save", "graph", "download", "push", "compress", "save", "export"),
)
WITHOUT_GRADIENTS = ("download", "push", "save", "export", "graph")
SMALL = Recipe("sq1", sizes=((32, 3),), crop_pct=1.0, hold_out=20, select="val", batch_size=8, start="sq1.ft_cifar10")
_FULL = 10  # exit code of a job that said what was wrong


class Jobs:
    """What is killed: each job is a method that does its work number N and returns whether its result is right."""

    def __init__(self, folder: Path, server: HubServer) -> None:
        self.folder, self.server = folder, server
        self.model = sqzoo.create_model("sq1", pretrained=True)
        hub.save_pretrained(self.model, folder / "whole")
        self.files = {f.name: f.read_bytes() for f in (folder / "whole").iterdir()}
        server.put(REPO, self.files)
        use_hub(server.url, folder / "cache")
        rng = np.random.default_rng(0)
        images = [Dataset(rng.integers(0, 256, (n, 32, 32, 3), np.uint8), np.arange(n) % 10) for n in (100, 40)]
        self.data = images[0], images[1]
        for name in ("ant", "bee"):
            (folder / "photos" / name).mkdir(parents=True)
            for i in range(6):
                pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(folder / "photos" / name / f"{i}.png")
        self.expected: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        for name in dict.fromkeys(TURNS):
            if name in WITHOUT_GRADIENTS:  # so that a child has their imports; autograd does not survive a fork
                getattr(self, name)("first")
            began = time.perf_counter()
            if in_child(partial(getattr(self, name), "second")):
                raise RuntimeError(f"{name} fails without a fault")
            self.seconds[name] = time.perf_counter() - began
            self.expected[name] = self.result(name, "second")
        print({name: round(seconds, 2) for name, seconds in self.seconds.items()}, flush=True)

    def place(self, name: str, number: object) -> Path:
        """Return where a job writes."""
        suffix = {"export": ".safetensors", "graph": ".onnx"}.get(name, "")
        return self.folder / f"{name}-{number}" / f"x{suffix}"

    def result(self, name: str, number: object) -> Any:
        """Return what must be the same each time of what a job made."""
        place = self.place(name, number)
        match name:
            case "push":
                return {k: v for k, v in self.server.files(f"org/pushed{number}").items() if k in self.files}
            case "export":
                return content(place.read_bytes())
            case "download" | "graph":
                return place.read_bytes()
            case "compress":
                return (place / "sqzoo" / "weights" / "sq1.tiny_test.safetensors").read_bytes()
        names = {"save": self.files, "training": ["best.safetensors"], "own_images": ["model.safetensors"]}[name]
        return {n: (place / n).read_bytes() for n in names}

    def download(self, number: object) -> Any:
        model = sqzoo.create_model(f"hf-hub:{REPO}", force_download=str(number)[-1] in "02468d")
        write_text(self.place("download", number), tensors_sha256(model.state_dict()))

    def push(self, number: object) -> Any:
        return hub.push(self.model, f"org/pushed{number}", token="secret", transformers_js=False)

    def save(self, number: object) -> Any:
        return hub.save_pretrained(self.model, self.place("save", number))

    def export(self, number: object) -> Any:
        return export(self.model, self.place("export", number), "safetensors-int8")

    def graph(self, number: object) -> Any:
        return export(self.model, self.place("graph", number))

    def training(self, number: object) -> Any:
        return train(SMALL, *self.data, self.place("training", number), progress=False)

    def own_images(self, number: object) -> Any:
        photos, place = self.folder / "photos", self.place("own_images", number)
        return train_on_images("sq1", photos, place, start=SMALL.start, sizes=((32, 2),), progress=False)

    def compress(self, number: object) -> Any:
        """Make a tag in a checkout of its own."""
        root = self.place("compress", number)
        manifest = root / "sqzoo" / "weights" / "manifest.json"
        if not manifest.exists():  # also after a kill in between
            manifest.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(manifest, (Path(sqzoo.__file__).parent / "weights" / "manifest.json").read_bytes())
        parent = str(self.place("training", "second"))
        return make_tiny(parent, "sq1.tiny_test", root, *self.data, size=300_000, images=4, val_images=10)

    def half_written(self, name: str, number: object) -> bool:
        """Whether something under its final name is not whole, or a temporary file is in the way of the next run."""
        if name == "push":
            try:
                return self.result(name, number) not in ({}, self.files)
            except KeyError:  # no such repository yet
                return False
        place = self.folder / "cache" if name == "download" else self.place(name, number).parent
        for file in place.rglob("*") if place.is_dir() else ():
            if not file.is_file() or any(part.startswith((TEMPORARY, ".")) for part in file.relative_to(place).parts):
                continue
            data = file.read_bytes()
            if name == "download" and "snapshots" in file.parts and data != self.files[file.name]:
                return True
            try:
                if name in ("export", "graph") and self.result(name, number) != self.expected[name]:
                    return True
                if file.suffix == ".json":
                    json.loads(data)
                elif file.suffix == ".safetensors":
                    parse_header(data, file.name)
            except (ValueError, SqzooError):
                return True
        return False


def content(data: bytes) -> tuple[Any, bytes]:
    """Return a safetensors file's header and tensors: the order of its metadata differs from process to process."""
    length = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:length]), data[length:]


def interrupted_jobs(start: int, seed: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Interrupt jobs in turn, seven in ten by a kill at a random moment, the others by a full disk.

    Yields:
        Whether the job was interrupted, and by its name what happened and what the next run found.
    """
    with tempfile.TemporaryDirectory() as folder, HubServer(token="secret") as server:
        jobs = Jobs(Path(folder), server)
        for number in itertools.count(start):
            rng, name = random.Random(f"{seed} {number}"), TURNS[number % len(TURNS)]
            job = partial(getattr(jobs, name), number)
            if rng.random() < 0.7:
                code = in_child(job, after=rng.uniform(0, jobs.seconds[name]))
            else:
                code = in_child(job, limit=int(10 ** rng.uniform(0, 6.4)))
            outcome = {-signal.SIGKILL: "killed", _FULL: "full", 0: "too_late"}.get(code or 0, "crashed")
            half_written = jobs.half_written(name, number)
            right = in_child(job) == 0 and jobs.result(name, number) == jobs.expected[name]
            shutil.rmtree(jobs.place(name, number).parent, ignore_errors=True)
            after = "next_run_right" if right else "next_run_wrong"
            yield int(outcome != "too_late"), {name: {outcome: 1, "half_written": int(half_written), after: 1}}


def in_child(job: Callable[[], Any], after: float | None = None, limit: int = 0) -> int | None:
    """Run a job in a forked process, killed after some seconds or with files limited in size; return its exit code."""

    def run() -> None:
        torch.set_num_threads(1)  # makes the thread pool anew, or two threads of autograd would, and torch ends
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            job()
        except (SqzooError, OSError):
            os._exit(_FULL)
        except Exception:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    process = Forked.Process(target=run)
    process.start()
    process.join(after)
    if after is not None and process.is_alive() and process.pid:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode

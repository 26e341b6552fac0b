"""The page's files, runtime and models, held in memory: to serve, or to write for any static host."""

import gzip
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from sqzoo.demo.engine import runtime_files
from sqzoo.demo.models import page_model
from sqzoo.environment import require
from sqzoo.errors import ArgumentError, shown, why
from sqzoo.files import claim_folder, write_bytes
from sqzoo.registry import list_models
from sqzoo.weights import get_weights

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".jpg": "image/jpeg",
    ".json": "application/json",
    ".gz": "application/gzip",  # runtime and models, which the page unpacks
}

# What a Space of the Hugging Face Hub reads.
_SPACE = """---
title: sqzoo
sdk: static
app_file: index.html
license: bsd-3-clause
---

Classifies pictures in the browser; made by `sqzoo demo --write`. Any static web host can serve these files.
"""


@dataclass(frozen=True)
class Asset:
    """A file of the page: its media type, its bytes, and an ETag that changes with them."""

    media: str
    body: bytes
    etag: str


class Page:
    """The page's files by path, such as `/index.html`; models and runtime are cached by the first call.

    Args:
        models: names for `create_model`; none takes the smallest of each architecture, after sq1's most accurate.

    Raises:
        SqzooError: a model or the runtime cannot be had, or a package is not installed.
    """

    def __init__(self, models: Sequence[str] = ()) -> None:
        for package in ("onnx", "onnxscript"):  # reported before 33 MB are downloaded
            require(package, "demo", "The page")
        self.assets: dict[str, Asset] = {}
        for file in sorted((Path(__file__).parent / "static").iterdir()):
            self._add(file.name, file.read_bytes())
        for name, packed in runtime_files().items():
            # The bundle is imported by its name; the engine itself, 14 MB, is unpacked by the page.
            wasm = name.endswith(".wasm")
            self._add(f"{name}.gz" if wasm else name, packed if wasm else gzip.decompress(packed))
        entries = []
        for i, name in enumerate(tqdm(models or default_models(), "models", leave=False, disable=None)):
            model = page_model(name)
            self._add(f"{i}.onnx.gz", model.packed)
            entries.append({"file": f"{i}.onnx.gz", "bytes": len(model.packed)} | model.metadata)
        self._add("models.json", json.dumps(entries).encode())
        self.models = [str(entry["tag"]) for entry in entries]

    def _add(self, name: str, body: bytes) -> None:
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        self.assets[f"/{name}"] = Asset(_TYPES[Path(name).suffix], body, etag)

    def write(self, folder: str | os.PathLike[str]) -> int:
        """Write the page as static files for any web host or a Hub Space; return their size in bytes.

        Args:
            folder: new, empty, or an earlier call's.

        Raises:
            ArgumentError: the folder holds something else, or cannot be written.
        """
        claim_folder(folder)
        files = {name.lstrip("/"): asset.body for name, asset in self.assets.items()}
        files["README.md"] = _SPACE.encode()
        try:
            for name, body in files.items():
                write_bytes(Path(folder) / name, body)
        except OSError as e:
            raise ArgumentError(
                f"Cannot write to {shown(folder)} ({why(e)}); name a folder that you may write to."
            ) from e
        return sum(map(len, files.values()))


def default_models() -> list[str]:
    """Return sq1's most accurate weights tag, then each SqueezeNet's smallest: what a page shows unless told."""
    small = [tag for tag in list_models(pretrained=True) if tag.endswith(".tiny_cifar10")]
    return ["sq1.ft_cifar10", *(tag for tag in small if get_weights(tag).trunk != "alexnet")]  # which has no class maps

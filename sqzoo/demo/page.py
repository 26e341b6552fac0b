"""The page's files, runtime and models, gzipped once and held in memory."""

import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from sqzoo.demo.engine import runtime_files
from sqzoo.demo.models import page_model
from sqzoo.environment import require
from sqzoo.registry import list_models
from sqzoo.weights import get_weights

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
}


@dataclass(frozen=True)
class Asset:
    """A file of the page: its media type, its gzipped bytes, and an ETag that changes with them."""

    media: str
    packed: bytes
    etag: str


class Page:
    """The page's files by path, such as `/index.html`; models and runtime are cached by the first call.

    Args:
        models: names for `create_model`; none takes the package's complete models, sq1's first.

    Raises:
        SqzooError: a model or the runtime cannot be had, or a package is not installed.
    """

    def __init__(self, models: Sequence[str] = ()) -> None:
        for package in ("onnx", "onnxscript"):  # reported before 33 MB are downloaded
            require(package, "demo", "The page")
        self.assets: dict[str, Asset] = {}
        for file in sorted((Path(__file__).parent / "static").iterdir()):
            self._add(file.name, gzip.compress(file.read_bytes(), mtime=0))
        for name, packed in runtime_files().items():
            self._add(name, packed)
        entries = []
        for i, name in enumerate(tqdm(models or complete_tags(), "models", leave=False, disable=None)):
            model = page_model(name)
            self._add(f"{i}.onnx", model.packed)
            entries.append({"file": f"{i}.onnx", "bytes": len(model.packed)} | model.metadata)
        self._add("models.json", gzip.compress(json.dumps(entries).encode(), mtime=0))
        self.models = [str(entry["tag"]) for entry in entries]

    def _add(self, name: str, packed: bytes) -> None:
        etag = f'"{hashlib.sha256(packed).hexdigest()[:32]}"'
        self.assets[f"/{name}"] = Asset(_TYPES[Path(name).suffix], packed, etag)


def complete_tags() -> list[str]:
    """Return the tags that need no ImageNet trunk and have class maps, which AlexNet lacks; sq1's first."""
    entries = {tag: get_weights(tag) for tag in list_models(pretrained=True)}
    tags = [tag for tag, entry in entries.items() if entry.holds == "complete" and entry.trunk != "alexnet"]
    return sorted(tags, key=lambda tag: (not tag.startswith("sq1."), tag))

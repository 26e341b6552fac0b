"""Write files atomically, read regular files only, and write to folders only if they are ours.

The rules are in docs/security.md: nothing here writes through a link, waits for a pipe, or replaces another's file.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from platformdirs import user_cache_path

from sqzoo.errors import ArgumentError, DataError, shown, why

if TYPE_CHECKING:
    import torch

TEMPORARY = ".writing-"  # prefix of files that are not yet complete
# Created by operating systems and file servers: neither someone's work nor a class of images.
_SYSTEM_NAMES = {
    *("thumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "lost+found", "$recycle.bin", "__pycache__"),
    *("system volume information", "found.000", ".ds_store"),
}
_MARKER = ".sqzoo-run"
_JSON_LARGEST = 1 << 26  # bytes: a result that names 100,000 files left out has some 10 million


def is_system_name(name: str) -> bool:
    """Whether a file or folder name is one that operating systems create."""
    return name.casefold() in _SYSTEM_NAMES


@contextmanager
def atomic_file(file: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Write a file atomically: yield a temporary file that replaces `file` when the block ends without an error.

    The temporary file is in the same folder (made if need be), has a random name and is created exclusively, so that a
    planted link is not written through. It is synced to disk before it replaces `file`.

    Raises:
        OSError: it cannot be written, or `file` exists and is not a writable regular file.
    """
    target = Path(file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        check_replaceable(target)
    except ValueError as e:  # a name with NUL or a lone surrogate
        raise OSError(errno.EINVAL, f"{e}", os.fspath(file)) from e
    temporary = temporary_beside(target)
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        check_replaceable(target)
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def temporary_beside(file: Path) -> Path:
    """Return an unpredictable name for a temporary file in the same folder; open it with mode "x"."""
    return file.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")


def write_bytes(file: str | os.PathLike[str], data: bytes) -> None:
    """Write bytes atomically; see `atomic_file`."""
    with atomic_file(file) as stream:
        stream.write(data)


def write_text(file: str | os.PathLike[str], text: str) -> None:
    """Write text as UTF-8, atomically; see `atomic_file`."""
    write_bytes(file, text.encode())


def write_json(file: str | os.PathLike[str], value: Any) -> None:
    """Write JSON atomically; see `atomic_file`. NaN and infinity, which JSON lacks, raise ValueError."""
    write_text(file, json.dumps(value, indent=1, allow_nan=False))


def read_json(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object of a run; raise `DataError` where it is missing or damaged."""
    try:
        with open_regular(file) as stream:
            if os.fstat(stream.fileno()).st_size > _JSON_LARGEST:
                raise ValueError(f"it has more than {_JSON_LARGEST:,} bytes")
            return dict(json.loads(stream.read()))
    except (OSError, ValueError, TypeError, RecursionError) as e:
        raise DataError(f"{shown(file)} is damaged ({why(e)}); delete the folder to start the run again.") from e


def write_tensors(
    file: str | os.PathLike[str], tensors: "Mapping[str, torch.Tensor]", metadata: dict[str, str]
) -> None:
    """Write safetensors atomically; see `atomic_file`."""
    from safetensors.torch import save  # which imports torch

    write_bytes(file, save({k: v.contiguous() for k, v in tensors.items()}, metadata))


def check_replaceable(file: Path) -> None:
    """Raise OSError where something other than a writable regular file is there."""
    try:
        mode = file.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(file))
    if not stat.S_ISREG(mode):
        kind = "a link" if stat.S_ISLNK(mode) else "a pipe, socket or device"
        raise FileExistsError(errno.EEXIST, f"it is {kind}, not a regular file", os.fspath(file))
    if not os.access(file, os.W_OK):
        raise PermissionError(errno.EACCES, "it is write-protected", os.fspath(file))


def open_regular(file: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; raise OSError for anything else, without blocking on a pipe."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOCTTY", 0)
    try:
        descriptor = os.open(file, flags)
    except ValueError as e:  # a path with NUL or a lone surrogate
        raise OSError(errno.EINVAL, f"{e}", os.fspath(file)) from e
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise OSError(errno.EINVAL, f"it is {kind}", os.fspath(file))
    return open(descriptor, "rb")


def claim_folder(folder: str | os.PathLike[str]) -> None:
    """Mark a new or empty folder as a run folder, or check that it has the marker.

    A folder with links is refused: a stranger may have put them there to redirect writes.

    Args:
        folder: made if need be.

    Raises:
        ArgumentError: the folder holds something that sqzoo did not make, or cannot be written.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not is_claimed(path):
            # Another process of the same run may be here too: its marker, lock and temporary files are ours.
            names = (n for n in sorted(os.listdir(path)) if not is_system_name(n))
            foreign = next((n for n in names if not n.startswith((TEMPORARY, _MARKER))), None)
            if foreign and not is_claimed(path):
                raise ArgumentError(
                    f"{shown(path)} holds {shown(foreign)!r}, which sqzoo did not make; name a run folder that is new "
                    "or empty."
                )
            with contextlib.suppress(FileExistsError), (path / _MARKER).open("xb"):
                pass
        for entry in _irregular(path):
            raise ArgumentError(
                f"{shown(entry)} is a link, a pipe or a device, which sqzoo does not make in a run folder; remove it, "
                "or name another folder."
            )
    except ArgumentError:
        raise
    except (OSError, ValueError) as e:  # ValueError: a name with NUL or a lone surrogate
        raise ArgumentError(
            f"Cannot use {shown(path)} as a run folder ({why(e)}); name one that you may write to."
        ) from e


def is_claimed(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder has the marker of `claim_folder`."""
    try:
        return stat.S_ISREG(os.lstat(Path(folder, _MARKER)).st_mode)
    except (OSError, ValueError):
        return False


def _irregular(folder: Path) -> Iterator[Path]:
    """Yield everything below a folder that is neither a regular file nor a folder."""
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                elif not entry.is_file(follow_symlinks=False):
                    yield Path(entry.path)


def expand(path: str | os.PathLike[str], where: str) -> Path:
    """Expand `~`, which no shell expands in the environment of a service or container.

    Args:
        path: the path.
        where: its source, for the error.

    Raises:
        ArgumentError: there is no home folder.
    """
    text = os.path.expanduser(os.fspath(path))
    if text.startswith("~"):
        raise ArgumentError(
            f"{where} is {shown(path)!r}, and there is no such home folder; set HOME, or give an absolute path."
        )
    return Path(text)


def environment_path(variable: str) -> Path | None:
    """Return the path in an environment variable, `~` expanded; None where it is unset or empty."""
    value = os.environ.get(variable)
    return expand(value, variable) if value else None


def cache_folder() -> Path:
    """Return sqzoo's cache folder: $SQZOO_CACHE, else the system's place for a user's caches, such as ~/.cache/sqzoo.

    Raises:
        ArgumentError: there is no home folder.
    """
    try:
        return environment_path("SQZOO_CACHE") or expand(user_cache_path("sqzoo", appauthor=False), "The cache folder")
    except RuntimeError as e:  # platformdirs': there is no home folder
        raise ArgumentError(f"No cache folder ({why(e)}); set HOME or SQZOO_CACHE.") from e


def file_sha256(file: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a regular file; see `open_regular`."""
    with open_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


def tensors_sha256(tensors: "Mapping[str, torch.Tensor]") -> str:
    """Return the SHA-256 of tensors: name, dtype, shape and bytes of each, sorted by name."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

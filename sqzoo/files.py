"""Files of ours and of others: written whole or not at all, read only if regular, folders used only if ours.

The rules are in docs/security.md. Nothing here follows a link, waits for a pipe, or replaces what sqzoo did not make.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from platformdirs import user_cache_path

from sqzoo.errors import ArgumentError, DataError, shown, why

if TYPE_CHECKING:
    import torch

TEMPORARY = ".writing-"  # begins the name of a file that is not yet whole
# What systems and file servers leave in folders by themselves: neither someone's work nor a class of images.
SYSTEM_NAMES = {
    *("thumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "lost+found", "$recycle.bin", "__pycache__"),
    *("system volume information", "found.000"),
}
_MARKER = ".sqzoo-"
_JSON_LARGEST = 1 << 26  # bytes: a result that names 100,000 files left out has some 10 million


def is_system_name(name: str) -> bool:
    """Whether a file or folder of that name is the system's, not someone's work."""
    return name.casefold() in SYSTEM_NAMES or name == ".DS_Store"


@contextmanager
def whole_file(file: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of `file` once the block ends without an error; make its folder.

    The temporary file lies in the same folder, has a random name and is made exclusively, so that no planted link is
    written through. Its bytes are on the disk before it takes the place.

    Raises:
        OSError: where it cannot be written, or `file` is anything but a regular file that may be written, or nothing.
    """
    target = Path(file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        check_replaceable(target)
    except ValueError as e:  # a name with a NUL, or with half a surrogate pair
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
    """Return the name of a new file in a file's folder that nobody can know beforehand; open it by mode "x"."""
    return file.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")


def write_whole(file: str | os.PathLike[str], data: bytes) -> None:
    """Write a file that appears whole or not at all; see `whole_file`. Raises OSError."""
    with whole_file(file) as stream:
        stream.write(data)


def write_text(file: str | os.PathLike[str], text: str) -> None:
    """Write a text file that appears whole or not at all, as UTF-8. Raises OSError."""
    write_whole(file, text.encode())


def write_json(file: str | os.PathLike[str], value: Any) -> None:
    """Write a JSON file that appears whole or not at all; NaN, which JSON lacks, is a ValueError. Raises OSError."""
    write_text(file, json.dumps(value, indent=1, allow_nan=False))


def read_json(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object from a regular file; raise `DataError` where there is none, or it is damaged."""
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
    """Write a safetensors file that appears whole or not at all. Raises OSError."""
    from safetensors.torch import save  # which imports torch

    write_whole(file, save({k: v.contiguous() for k, v in tensors.items()}, metadata))


def check_replaceable(file: Path) -> None:
    """Raise OSError unless nothing is there, or a regular file that may be written."""
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
    """Open a regular file to read its bytes. Raises OSError for anything else, without waiting for it."""
    # Without O_NONBLOCK a pipe would wait for its writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOCTTY", 0)
    try:
        descriptor = os.open(file, flags)
    except ValueError as e:  # a path with a NUL, or with half a surrogate pair
        raise OSError(errno.EINVAL, f"{e}", os.fspath(file)) from e
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise OSError(errno.EINVAL, f"it is {kind}", os.fspath(file))
    return open(descriptor, "rb")


def claim_folder(folder: str | os.PathLike[str], kind: str = "run") -> None:
    """Make a folder ours to write to: one that is new or empty gets a marker file, one that has the marker is ours.

    kind: what it is for, such as "run"; the marker is `.sqzoo-KIND`. A folder of ours holds files and folders alone:
    one with links, which a stranger may have put there to lead writing elsewhere, is refused.

    Raises:
        ArgumentError: names what is there and was not made by sqzoo, or why the folder cannot be had.
    """
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        if not is_claimed(place, kind):
            with os.scandir(place) as entries:
                names = sorted(e.name for e in entries)
            # Another process of the same run may be at the same point: its marker, lock and temporary files are ours.
            others = [n for n in names if not is_system_name(n) and not n.startswith((TEMPORARY, _MARKER + kind))]
            if others and not is_claimed(place, kind):
                raise ArgumentError(
                    f"{shown(place)} holds {shown(others[0])!r}, which sqzoo did not make; name a {kind} "
                    "folder that is new or empty."
                )
            with contextlib.suppress(FileExistsError), (place / (_MARKER + kind)).open("xb"):
                pass
        for entry in _irregular(place):
            raise ArgumentError(
                f"{shown(entry)} is a link, a pipe or a device, which sqzoo does not make in a {kind} folder; "
                "remove it, or name another folder."
            )
    except ArgumentError:
        raise
    except (OSError, ValueError) as e:  # ValueError: a name with a NUL, or with half a surrogate pair
        raise ArgumentError(
            f"Cannot use {shown(place)} as a {kind} folder ({why(e)}); name one that you may write to."
        ) from e


def is_claimed(folder: str | os.PathLike[str], kind: str = "run") -> bool:
    """Whether a folder has the marker of `claim_folder`."""
    try:
        return stat.S_ISREG(os.lstat(Path(folder, _MARKER + kind)).st_mode)
    except (OSError, ValueError):
        return False


def remove_claimed(folder: str | os.PathLike[str], kind: str) -> None:
    """Remove a folder that `claim_folder` marked, with all that is in it; leave any other as it is. Raises OSError."""
    if is_claimed(folder, kind) and not os.path.islink(folder):
        shutil.rmtree(folder)


def _irregular(folder: Path) -> Iterator[Path]:
    """Yield what below a folder is neither a regular file nor a folder."""
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                elif not entry.is_file(follow_symlinks=False):
                    yield Path(entry.path)


def expand(path: str | os.PathLike[str], where: str) -> Path:
    """Return a path whose `~` is the home folder, which no shell expands in a variable of a service or container.

    where: names the source in the error. Raises ArgumentError where there is no home folder.
    """
    text = os.path.expanduser(os.fspath(path))
    if text.startswith("~"):
        raise ArgumentError(
            f"{where} is {shown(path)!r}, and there is no such home folder here; set HOME, or give a whole path."
        )
    return Path(text)


def environment_path(variable: str) -> Path | None:
    """Return the path in an environment variable, its `~` expanded; None where the variable is unset or empty."""
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
    """Return the SHA-256 of a regular file, read in blocks. Raises OSError, also for a pipe or device."""
    digest = hashlib.sha256()
    with open_regular(file) as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def tensors_sha256(tensors: "Mapping[str, torch.Tensor]") -> str:
    """Return the SHA-256 over name, dtype, shape and bytes of the tensors, in the order of their names."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

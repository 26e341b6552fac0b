"""Files that appear whole or not at all."""

import os
from pathlib import Path


def write_whole(file: Path, data: bytes) -> None:
    """Write a file under another name, down to the disk, and then move it to its own; raises `OSError`."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise

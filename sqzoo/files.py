"""Files that appear whole or not at all."""

import os
import threading
from pathlib import Path


def write_whole(file: Path, data: bytes) -> None:
    """Write a file under another name, down to the disk, then move it to its own; make its folder. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise

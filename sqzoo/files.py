"""Files that appear whole or not at all."""

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqzoo.errors import DataError

if TYPE_CHECKING:
    import torch


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


def write_text(file: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    write_whole(file, text.encode())


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file atomically; NaN, which JSON lacks, is a ValueError."""
    write_text(file, json.dumps(value, indent=1, allow_nan=False))


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; raise `DataError` where the file is damaged."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as e:
        raise DataError(f"{file} is damaged ({e}); delete the folder to start the run again.") from e


def write_tensors(file: Path, tensors: "Mapping[str, torch.Tensor]", metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically."""
    from safetensors.torch import save_file  # which imports torch

    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)

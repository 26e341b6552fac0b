"""SHA-256 of files and of sets of tensors."""

import hashlib
import os
from collections.abc import Mapping

import torch

from sqzoo.files import open_regular


def file_sha256(file: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a regular file, read in blocks. Raises OSError, also for a pipe or device."""
    digest = hashlib.sha256()
    with open_regular(file) as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 over name, dtype, shape and bytes of the tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

"""Read torchvision's `cifar-10-batches-py` without a pickle machine.

The published batches are pickles of protocol 2: a dictionary with an array of bytes and a list of labels.
"""

import struct

import numpy as np

from sqzoo.opcodes import Made, follow, plain

LARGEST = 1 << 25  # bytes of a batch: the published ones have 31 million
_PIXELS = 3072
_ARRAY = tuple(f"numpy{core}.multiarray _reconstruct" for core in (".core", "._core"))
_NAMES = {*_ARRAY, "numpy ndarray", "numpy dtype"}


def read_batch(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return the images (N, 32, 32, 3) uint8 and labels (N,) int64 of a batch file's bytes.

    Raises:
        ValueError: the bytes are not those of such a file.
    """
    try:
        batch = follow(data, _NAMES)
        made, labels = plain(batch[b"data"], Made), plain(batch[b"labels"], list)
        (kind, shape, dtype, fortran, pixels) = made.state
        if made.name not in _ARRAY or kind != 1 or fortran is not False:
            raise ValueError("its data are no array")
        if plain(dtype, Made).name != "numpy dtype" or dtype.arguments[0] not in (b"u1", b"|u1"):
            raise ValueError("its data are no bytes")
        if shape[1:] != (_PIXELS,) or not all(type(label) is int for label in labels):
            raise ValueError(f"it has no rows of {_PIXELS} bytes, or its labels are no numbers")
        images = np.frombuffer(plain(pixels, bytes), np.uint8).reshape(shape[0], 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), np.array(labels, np.int64)
    except (LookupError, TypeError, OverflowError, AttributeError, RecursionError, struct.error, UnicodeError) as e:
        raise ValueError(f"its content is not that of a batch: {type(e).__name__}") from e

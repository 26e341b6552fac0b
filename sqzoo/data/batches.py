"""Read torchvision's `cifar-10-batches-py` without unpickling.

The published batches are pickles of protocol 2: a dictionary with an array of bytes and a list of labels.
"""

import struct

import numpy as np

from sqzoo.weights.opcodes import Call, expect, interpret

LARGEST = 1 << 25  # bytes of a batch: the published ones have 31 million
_PIXELS = 3072
_ARRAY = tuple(f"numpy{core}.multiarray _reconstruct" for core in (".core", "._core"))
_NAMES = {*_ARRAY, "numpy ndarray", "numpy dtype"}


def read_batch(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels of a batch file.

    Args:
        data: the file's bytes.

    Returns:
        Images (N, 32, 32, 3) uint8 and labels (N,) int64.

    Raises:
        ValueError: the bytes are not those of such a file.
    """
    try:
        batch = interpret(data, _NAMES)
        array, labels = expect(batch[b"data"], Call), expect(batch[b"labels"], list)
        version, shape, dtype, fortran, pixels = array.state
        if array.name not in _ARRAY or version != 1 or fortran is not False:
            raise ValueError("its data is not an array")
        if expect(dtype, Call).name != "numpy dtype" or dtype.arguments[0] not in (b"u1", b"|u1"):
            raise ValueError("its data is not of bytes")
        if shape[1:] != (_PIXELS,) or not all(type(label) is int for label in labels):
            raise ValueError(f"its rows are not of {_PIXELS} bytes, or its labels not integers")
        images = np.frombuffer(expect(pixels, bytes), np.uint8).reshape(shape[0], 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), np.array(labels, np.int64)
    except (LookupError, TypeError, OverflowError, AttributeError, RecursionError, struct.error, UnicodeError) as e:
        raise ValueError(f"its content is not that of a batch: {type(e).__name__}") from e

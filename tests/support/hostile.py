"""Makers of files that ask for far more than they hold."""

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAME = "test-00000-of-00001.parquet"


def png_header(width: int, height: int, depth: int = 8, colour: int = 6) -> bytes:
    """A PNG that declares a size, with almost no content."""
    head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour, 0, 0, 0])
    data = zlib.compress(b"\0" * 100)
    parts = [len(head) - 4, head, len(data), b"IDAT" + data, 0, b"IEND"]
    out = b"\x89PNG\r\n\x1a\n"
    for size, part in zip(parts[::2], parts[1::2], strict=True):
        out += size.to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big")  # type: ignore[operator,arg-type]
    return out


def sparse(file: Path, size: int, start: bytes = b"") -> None:
    """A file of so many bytes that takes no disk."""
    with file.open("wb") as stream:
        stream.write(start)
        stream.truncate(size)


def table(images: Any, labels: Any) -> pa.Table:
    return pa.table({"img": pa.StructArray.from_arrays([images, pa.nulls(len(images), pa.string())], fields=[*IMAGE]),
                     "label": labels})  # fmt: skip


def one_page(folder: Path, size: int = 140_000_000) -> Path:
    """A picture of zeros: kilobytes as a page, which takes `size` bytes unpacked."""
    pq.write_table(table(pa.array([bytes(size)]), [0]), folder / NAME, compression="zstd")
    return folder


def lying_page(folder: Path) -> Path:
    """The header of the page states 2 GB, the footer 140 MB."""
    file = one_page(folder) / NAME
    data = file.read_bytes()
    start = data.index(b"\x15", 4) + 2  # field 1, the kind of page, is two bytes; then field 2, its size
    assert data[start] == 0x15 and data[start + 5] < 128 <= data[start + 4]  # a number of five bytes
    file.write_bytes(data[: start + 1] + b"\xfe\xff\xff\xff\x0f" + data[start + 6 :])
    return folder


def many_pages(folder: Path) -> Path:
    """Three pages, each within bounds, that are 420 MB together."""
    part = table(pa.array([bytes(140_000_000)]), pa.array([0]))
    with pq.ParquetWriter(folder / NAME, part.schema, compression="zstd", use_dictionary=False) as writer:
        for _ in range(3):
            writer.write_table(part)
    return folder


def dictionary(folder: Path) -> Path:
    """Each of 10,000 rows is the one entry of a dictionary, of 30 MB."""
    images = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10_000, np.int32)), pa.array([bytes(30_000_000)]))
    image = pa.StructArray.from_arrays([images, pa.nulls(10_000, pa.string())], names=["bytes", "path"])
    options: dict[str, Any] = {"compression": "zstd", "dictionary_pagesize_limit": 1 << 30, "store_schema": False}
    pq.write_table(pa.table({"img": image, "label": np.zeros(10_000, np.int64)}), folder / NAME, **options)
    return folder


def prefixes(folder: Path) -> Path:
    """Each of 10,000 rows is the one before it, of 3 MB, by an encoding of differences."""
    images = pa.array([bytes(3_000_000)] * 20)
    options: dict[str, Any] = {"use_dictionary": False, "column_encoding": {"img.bytes": "DELTA_BYTE_ARRAY"}}
    pq.write_table(table(images, np.zeros(20, np.int64)), folder / NAME, compression="zstd", **options)
    return folder


def long_list(folder: Path) -> Path:
    """One row's label is a list of fifty million."""
    labels = pa.ListArray.from_arrays(pa.array([0, 50_000_000]), pa.array(np.zeros(50_000_000, np.int8)))
    pq.write_table(table(pa.array([b"x"]), labels), folder / NAME, compression="zstd")
    return folder


def many_rows(folder: Path) -> Path:
    """10,000 rows of one picture of 64 megapixels."""
    images = pa.array([png_header(8000, 8000)] * 10_000)
    pq.write_table(table(images, np.zeros(10_000, np.int64)), folder / NAME, compression="zstd")
    return folder


def footer(columns: int, there: int) -> bytes:
    """A parquet file that is only its footer: a row group that declares so many columns, of which some are there."""

    def listed(count: int) -> bytes:
        size, number = b"", count
        while number > 127:
            size, number = size + bytes([number & 127 | 128]), number >> 7
        return b"\xfc" + size + bytes([number])

    schema = b"\x48\x01r\x15\x02\x00" + b"\x15\x04\x25\x00\x18\x01a\x00"  # a root, and a column of numbers
    group = b"\x19" + listed(columns) + b"\x26\x00\x00" * there + b"\x16\x00\x16\x00\x00"
    facts = b"\x15\x02\x19\x2c" + schema + b"\x16\x00\x19" + b"\x1c" + group + b"\x00"
    return b"PAR1" + facts + len(facts).to_bytes(4, "little") + b"PAR1"


def written_footer(folder: Path, columns: int, there: int) -> Path:
    (folder / NAME).write_bytes(footer(columns, there))
    return folder


def safetensors_header(header: bytes, size: int) -> bytes:
    """The beginning of a safetensors file, to which `sparse` adds zeros."""
    return struct.pack("<Q", size) + header


def configuration(**fields: Any) -> bytes:
    """A configuration of sq1 that is right but for some fields."""
    about = {"input_size": [3, 32, 32], "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"architecture": "sq1", "num_classes": 4, "model_args": {"mid": 8}, "pretrained_cfg": about}
    return json.dumps(config | fields).encode()


def deep(folder: Path, levels: int = 1500) -> Path:
    """A folder in a folder, so many times: deeper than a path can say."""
    here = os.getcwd()
    os.chdir(folder)
    try:
        for _ in range(levels):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)
    return folder

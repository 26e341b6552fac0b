"""Open parquet files only after their footer and page headers show that they do not unpack to gigabytes.

pyarrow allocates what a page's header states, whatever the footer says. The headers are in Thrift's compact protocol
(https://parquet.apache.org/docs/file-format/).
"""

import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from sqzoo.files import open_regular

# Bytes: CIFAR-10 in row groups of 100, as on the Hub, has 2.2 million; pyarrow may allocate 230 times as many.
_FOOTER_LARGEST, _FOOTER_SMALL, _FOOTER_PART = 9 << 18, 1 << 18, 32  # a 32nd of the file, but 256 kB to 2.25 MB
_LIST_LARGEST = 10_000  # entries, which pyarrow allocates before it reads them
_SMALL = 1 << 28  # bytes that any data set may unpack to
_HEADER_LARGEST = 1 << 15  # bytes: it may hold the smallest and the largest value of its page
_DICTIONARY_LARGEST = 1 << 22  # bytes: each row may be the whole of it; writers stop at a megabyte
# Plain, dictionary, RLE, bit-packed, delta of integers, byte stream split; not the deltas of byte arrays (6, 7), which
# unpack to more than the header states.
_ENCODINGS = {0, 2, 3, 4, 5, 8, 9}
_DICTIONARY = 2  # kind of page
_DETAILS = {0: 5, _DICTIONARY: 7, 3: 8}  # field of the details, by kind of page: data, dictionary, data v2
# Older writers understate the length of a column, and pyarrow then reads past it.
_OLD = re.compile(r"parquet-mr(?! version (1\.([89]|\d\d)|[2-9])\b)", re.IGNORECASE)
_Struct = dict[int, Any]


def open_checked(stream: BinaryIO, *, unpacked: int, pages: int, values: int) -> Any:
    """Open a `pyarrow.parquet.ParquetFile` after checking its pages against bounds.

    Args:
        stream: the file.
        unpacked: most bytes of all pages together, unpacked.
        pages: most pages and columns of row groups.
        values: most values in a page.

    Raises:
        ValueError: the file exceeds a bound or is damaged; the latter may raise pyarrow's errors, too.
    """
    import pyarrow.parquet as pq

    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - 8))
    footer = int.from_bytes(stream.read(4), "little")
    largest = min(_FOOTER_LARGEST, max(_FOOTER_SMALL, size // _FOOTER_PART))
    if footer > largest:
        raise ValueError(f"a footer of {footer:,} bytes, at most {largest:,} are read")
    file = pq.ParquetFile(stream, pre_buffer=False, thrift_container_size_limit=_LIST_LARGEST)
    header = file.metadata
    if _OLD.match(header.created_by or ""):
        raise ValueError("its writer is too old")
    for group in range(header.num_row_groups):
        for column in range(header.num_columns):
            chunk = header.row_group(group).column(column)
            start = chunk.data_page_offset
            if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
                start = chunk.dictionary_page_offset
            pages -= 1
            for page in _headers(stream, start, min(size, start + chunk.total_compressed_size)):
                pages, unpacked = pages - 1, unpacked - page[2]
                if min(pages, unpacked) < 0:
                    raise ValueError("its pages are too many, or unpack to more than is read")
                _check(page, values)
    return file


def check_downloaded(file: str | os.PathLike[str]) -> None:
    """Raise ValueError for a parquet file that unpacks to far more than its size; other files pass.

    Images are compressed already, so an honest file hardly unpacks to twice its size.
    """
    with open_regular(file) as stream:
        if stream.read(4) == b"PAR1":
            size = os.fstat(stream.fileno()).st_size
            open_checked(stream, unpacked=_SMALL + 4 * size, pages=100_000, values=1 << 24)


def _check(header: _Struct, values: int) -> None:
    """Raise ValueError for a page that may unpack to more than its header states."""
    kind = header[1]
    if kind == _DICTIONARY and header[2] > _DICTIONARY_LARGEST:
        raise ValueError(f"a dictionary of {header[2]:,} bytes, at most {_DICTIONARY_LARGEST:,} are read")
    if kind in _DETAILS:
        count, encoding = (header[_DETAILS[kind]].get(number) for number in (1, 4 if kind == 3 else 2))
        if type(count) is not int or count > values or encoding not in _ENCODINGS:
            raise ValueError(f"a page has {count} values in encoding {encoding}")


def _headers(stream: BinaryIO, place: int, stop: int) -> Iterator[_Struct]:
    """Yield the page headers between two offsets of a file."""
    while place < stop:
        stream.seek(place)
        try:
            header, length = _struct(stream.read(_HEADER_LARGEST), 0)
            if not all(type(header[n]) is int and header[n] >= 0 for n in (1, 2, 3)):
                raise ValueError("its sizes are no integers")
            if header[1] in _DETAILS and type(header[_DETAILS[header[1]]]) is not dict:
                raise ValueError("its details are missing")
        except (ValueError, LookupError, RecursionError) as e:
            raise ValueError(f"the header of a page is damaged: {e}") from e
        place += length + header[3]
        yield header


def _struct(data: bytes, at: int) -> tuple[_Struct, int]:
    """Parse a Thrift struct: its values by field number, and the offset of its end."""
    fields: _Struct = {}
    number = 0
    while head := data[at]:
        at += 1
        delta, kind = head >> 4, head & 15
        if delta:
            number += delta
        else:
            number, at = _integer(data, at)
        if number in fields or kind not in range(1, 13) or kind in (9, 10, 11):  # no header has lists or maps
            raise ValueError(f"field {number} of kind {kind}")
        if kind in (1, 2):
            fields[number] = kind == 1
        elif kind == 3:
            fields[number], at = data[at], at + 1
        elif kind < 7:
            fields[number], at = _integer(data, at)
        elif kind == 7:
            fields[number], at = None, at + 8
        elif kind == 8:
            length, at = _varint(data, at)
            fields[number], at = None, at + length
        else:
            fields[number], at = _struct(data, at)
    return fields, at + 1


def _integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at
        if shift > 63:
            raise ValueError("an integer without end")

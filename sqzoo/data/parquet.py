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
    footer = _footer(stream, size)
    if _OLD.match(footer.get(6, b"").decode(errors="replace")):
        raise ValueError("its writer is too old")
    for chunk in (column[3] for group in footer[4] for column in group[1]):
        start, dictionary = chunk[9], chunk.get(11, 0)
        if 0 < dictionary < start:
            start = dictionary
        pages -= 1
        for page in _headers(stream, start, min(size, start + chunk[7])):
            pages, unpacked = pages - 1, unpacked - page[2]
            if min(pages, unpacked) < 0:
                raise ValueError("its pages are too many, or unpack to more than is read")
            _check(page, values)
    return pq.ParquetFile(stream, pre_buffer=False, thrift_container_size_limit=_LIST_LARGEST)


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


def _footer(stream: BinaryIO, size: int) -> _Struct:
    """Return the footer, of which the fields that are used have the right types.

    pyarrow's own view of it, `ParquetFile.metadata`, ends the process where statistics contradict the schema.
    """
    stream.seek(max(0, size - 8))
    length = int.from_bytes(stream.read(4), "little")
    largest = min(_FOOTER_LARGEST, max(_FOOTER_SMALL, size // _FOOTER_PART))
    if length > largest:
        raise ValueError(f"a footer of {length:,} bytes, at most {largest:,} are read")
    stream.seek(max(0, size - 8 - length))
    try:
        footer, _ = _struct(stream.read(length), 0)
        chunks = [column[3] for group in footer[4] for column in group[1]]
        whole = [chunk.get(n, 0) for chunk in chunks for n in (7, 9, 11)]
        if type(footer.get(6, b"")) is bytes and all(type(n) is int and 0 <= n < size for n in whole):
            return footer
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
        raise ValueError(f"its footer is damaged: {e}") from e
    raise ValueError("its footer is damaged: places outside of the file")


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
        if number in fields:
            raise ValueError(f"field {number} is there twice")
        if kind in (1, 2):
            fields[number] = kind == 1
        else:
            fields[number], at = _value(data, at, kind)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    """Parse a value of a kind; return it, where it is used, and the offset of its end."""
    if kind < 4:
        return data[at], at + 1
    if kind < 7:
        return _integer(data, at)
    if kind == 7:
        return None, at + 8
    if kind == 8:
        length, at = _varint(data, at)
        return data[at : at + length], at + length
    if kind == 9:
        count, kind = data[at] >> 4, data[at] & 15
        at += 1
        if count == 15:
            count, at = _varint(data, at)
        if count > _LIST_LARGEST:
            raise ValueError(f"a list of {count:,} entries")
        values = []
        for _ in range(count):
            value, at = _value(data, at, kind)
            values.append(value)
        return values, at
    if kind == 12:
        return _struct(data, at)
    raise ValueError(f"a value of kind {kind}")


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

"""Open images from strangers safely: few formats, regular files only, within a memory budget.

Pillow reads forty formats, one of which runs another program (EPS: Ghostscript). Here only decoders of photographs and
screenshots run, and only after the memory that decoding takes was compared with the budget.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from sqzoo.errors import DataError, describe
from sqzoo.files import open_regular

# Format by suffix; a file's format is read from its first bytes, whatever its suffix.
SUFFIXES = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "JPEG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIF"),
    **{".png": "PNG", ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP", ".avif": "AVIF"},
}
_BUDGET = 512 << 20  # bytes for all images that are being decoded at one time
_MAX_ASPECT = 100  # long side over short side: more is no photograph, and would fill the memory when enlarged
_MAX_SCANS = 100  # of a progressive JPEG: encoders write about ten, and each is a pass over the whole image
_STRIP = 256  # rows converted at a time
_RGB = 4  # bytes per pixel in Pillow's memory
# Bytes per pixel that a decoder takes besides the image: frames of an animation, planes of a video codec.
_DECODER = {"WEBP": 12, "AVIF": 12, "HEIF": 12, "TIFF": 4}
_MODE = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "LA": 4, "PA": 4}
_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright, the other values are:
_TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")


class _Budget:
    """A number of bytes that threads share; a thread waits until the others have given back enough."""

    def __init__(self, total: int) -> None:
        self.total, self._used, self._changed = total, 0, threading.Condition()

    @contextmanager
    def take(self, cost: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._used + cost <= self.total)
            self._used += cost
        try:
            yield
        finally:
            with self._changed:
                self._used -= cost
                self._changed.notify_all()


_budget = _Budget(_BUDGET)


@cache
def formats() -> tuple[str, ...]:
    """Return the formats that can be opened here, as Pillow names them; AVIF and HEIF depend on the installation."""
    Image.init()
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False)
    return tuple(f for f in dict.fromkeys(SUFFIXES.values()) if f in Image.OPEN)


def open_image(file: str | os.PathLike[str], min_size: int | None = None) -> Image.Image:
    """Open the first frame of an image as 8-bit RGB, upright by its EXIF orientation, transparency on white.

    Args:
        file: a regular file (or a link to one) in JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC.
        min_size: pixels that the short side must keep; a much larger JPEG is decoded at 1/2, 1/4 or 1/8 of its size,
            several times faster.

    Raises:
        DataError: the file is not such an image, is damaged, or takes more memory than the budget.
    """
    with opened(file, min_size) as image:
        return image


@contextmanager
def opened(file: str | os.PathLike[str], min_size: int | None = None) -> Iterator[Image.Image]:
    """Open an image as `open_image` does, and hold its part of the memory budget until the block ends.

    All threads share the budget, and wait for each other. Reduce the image within the block; open no other there.
    """
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(open_regular(file))
            image = stack.enter_context(_identified(stream))
            if max(image.size) > _MAX_ASPECT * min(image.size):
                raise ValueError(f"{image.width}x{image.height} pixels, a side over {_MAX_ASPECT} times the other")
            cost = _cost(image, min_size)
            if cost > _BUDGET:
                raise ValueError(
                    f"its {image.width}x{image.height} pixels take {cost >> 20:,} MB to decode, more than the "
                    f"{_BUDGET >> 20} MB allowed: make it smaller"
                )
            stack.enter_context(_budget.take(cost))
            result = as_rgb(image)
        except FileNotFoundError as e:
            raise DataError(f"No such image: {os.fspath(file)!r}; check the name.") from e
        except Exception as e:  # Pillow's readers raise nearly anything for damaged images
            raise DataError(f"{os.fspath(file)!r} is not a readable image ({describe(e)}).") from e
        yield result


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened PIL image to 8-bit RGB, upright by its EXIF orientation, transparency on white.

    16-bit values are scaled to 8 bits. The given image is not changed.

    Raises:
        ValueError: its values are not of 8 or 16 bits.
    """
    image.load()  # turns a TIFF upright, which changes its size
    result = image
    if image.mode != "RGB" or image.has_transparency_data:
        result = Image.new("RGB", image.size)
        for top in range(0, image.height, _STRIP):  # whole copies in several modes would take several times the memory
            box = (0, top, image.width, min(top + _STRIP, image.height))
            result.paste(_strip_as_rgb(image.crop(box)), box)
    if 2 <= (orientation := _orientation(image)) <= 8:
        result = result.transpose(Image.Transpose[_TURNS[orientation - 2]])
        result.info = {}  # or its EXIF would turn it again
    return result


def _strip_as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # Pillow would clip them at 255
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError("its values are not of 8 or 16 bits")
        return Image.fromarray((values / 257).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # whatever Pillow raises for damaged EXIF; the pixels are intact
        return 1


def _identified(stream: BinaryIO) -> Image.Image:
    """Open an image by its first bytes, without decoding it."""
    try:
        return Image.open(stream, formats=formats())
    except UnidentifiedImageError as e:
        stream.seek(4)
        brand = stream.read(8)
        if "HEIF" not in formats() and brand[:4] == b"ftyp" and brand[4:] in (b"heic", b"heix", b"mif1", b"msf1"):
            raise ValueError("HEIC needs pillow-heif; install it with: pip install 'sqzoo[heic]'") from e
        raise ValueError(f"its content is none of {', '.join(formats())}") from e


def _cost(image: Image.Image, min_size: int | None) -> int:
    """Return the most bytes that decoding and converting an image takes; set the scale of a JPEG's decoder."""
    kind, extra = image.format or "", 0
    # Reading a PNG's orientation would decode it.
    turned = "exif" in image.info if kind == "PNG" else _orientation(image) != 1
    converted = image.mode != "RGB" or image.has_transparency_data
    per_pixel = _MODE.get(image.mode, _RGB) + _RGB * converted + _RGB * turned + _DECODER.get(kind, 0)
    if kind in ("JPEG", "MPO"):
        if _has_several_scans(image):  # all 16-bit coefficients are held, at any scale
            extra = 2 * image.width * image.height * len(image.getbands())
        pixels = image.width * image.height
        scale = next((s for s in (1, 2, 4, 8) if per_pixel * pixels // s**2 + extra <= _BUDGET), 8)
        image.draft("RGB", (min_size, min_size) if min_size else (image.width // scale, image.height // scale))
    pixels = image.width * image.height
    return per_pixel * (max(pixels, _largest_tile(image)) if kind == "TIFF" else pixels) + extra


def _largest_tile(image: Image.Image) -> int:
    tags = image.tag_v2  # type: ignore[attr-defined]
    width, length, rows = (int(tags.get(tag, 0)) for tag in (322, 323, 278))
    return max(width * length, image.width * min(rows, image.height))


def _has_several_scans(image: Image.Image) -> bool:
    """Whether a JPEG is progressive or not interleaved; raise ValueError for more than `_MAX_SCANS` scans."""
    stream: Any = image.fp  # type: ignore[attr-defined]
    offset = stream.tell()
    stream.seek(0)
    start = stream.read(1 << 16)
    while b"\xff\xda" not in start and (block := stream.read(1 << 16)):
        start += block
    after = start.partition(b"\xff\xda")[2]
    several = bool(image.info.get("progressive")) or len(after) < 3 or after[2] < len(image.getbands())
    if several:
        stream.seek(0)
        scans, last = 0, b""
        while block := stream.read(1 << 20):
            scans += (last + block).count(b"\xff\xda")
            last = block[-1:]
        if scans > _MAX_SCANS:
            raise ValueError(f"a JPEG of {scans:,} scans, at most {_MAX_SCANS} are decoded")
    stream.seek(offset)
    return several

"""Open an image file: the listed formats by their own decoders, regular files only, within a budget of memory.

Pillow knows forty formats, one of which runs another program (EPS: Ghostscript). An image of a stranger is opened by
the decoders of photographs and screenshots alone, and only after what decoding takes was compared with the budget.
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

from sqzoo.errors import DataError, printable, shown
from sqzoo.files import open_regular

# Format by suffix; a file's format is found from its first bytes, whatever its suffix says.
SUFFIXES = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "JPEG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIF"),
    **{".png": "PNG", ".webp": "WEBP", ".gif": "GIF", ".bmp": "BMP", ".avif": "AVIF"},
}
_BUDGET = 512 << 20  # bytes that all images being decoded at one time may take
_LONGEST = 100  # long side over short side: more is no photograph, and would fill the memory when it is enlarged
_SCANS = 100  # of a progressive JPEG: encoders write ten or so, and each is a pass over all of the image
_STRIP = 256  # rows converted at a time
_RGB = 4  # bytes of a pixel in Pillow's memory
# Bytes of a pixel that a decoder takes besides the image: frames of an animation, planes of a video codec.
_DECODER = {"WEBP": 12, "AVIF": 12, "HEIF": 12, "TIFF": 4}
_MODE = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "LA": 4, "PA": 4}
_TURNS = {  # EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


class _Budget:
    """Bytes that several threads share; one waits until the others have given back enough."""

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
    """Return the formats that can be opened here, as Pillow names them: AVIF where Pillow has it, HEIF by an extra."""
    Image.init()
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False)
    return tuple(f for f in dict.fromkeys(SUFFIXES.values()) if f in Image.OPEN)


def open_image(file: str | os.PathLike[str], least: int | None = None) -> Image.Image:
    """Open an image as 8-bit RGB: turned as its EXIF says, on white where it is transparent, its first frame.

    Args:
        file: a regular file (or a link to one) in JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF or HEIC.
        least: pixels that its short side must keep; a JPEG much larger is decoded at a half, a quarter or an eighth of
            its size, several times faster.

    Returns:
        The image. See `opened` for a reader that holds many.

    Raises:
        DataError: where the file is no image of these formats, is damaged, or takes more memory than the budget.
    """
    with opened(file, least) as image:
        return image


@contextmanager
def opened(file: str | os.PathLike[str], least: int | None = None) -> Iterator[Image.Image]:
    """Open an image as `open_image` does, and hold its part of the memory budget until the block ends.

    All readers in the process share the budget: one whose image does not fit beside the others' waits for them. So
    make the image small within the block, and do not open another one there.
    """
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(open_regular(file))
            image = stack.enter_context(_identified(stream))
            if max(image.size) > _LONGEST * min(image.size):
                raise ValueError(f"{image.width}x{image.height} pixels, a side over {_LONGEST} times the other")
            cost = _cost(image, least)
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
            raise DataError(f"{os.fspath(file)!r} is not a readable image ({_reason(e)}).") from e
        yield result


def as_rgb(image: Image.Image) -> Image.Image:
    """Return an opened PIL image as 8-bit RGB: turned as its EXIF says, on white where it is transparent.

    16-bit values are scaled to 8 bits. A file and an image that was opened from it give the same pixels. The image
    itself stays as it is.

    Raises:
        ValueError: where its values are not of 8 or 16 bits.
    """
    image.load()  # which turns a TIFF, and then its size is another
    if image.mode != "RGB" or image.has_transparency_data:
        result = Image.new("RGB", image.size)
        for top in range(0, image.height, _STRIP):  # or copies in several modes would take several times the memory
            box = (0, top, image.width, min(top + _STRIP, image.height))
            result.paste(_strip_as_rgb(image.crop(box)), box)
    else:
        result = image
    turn = _TURNS.get(_orientation(image))
    if turn is not None:
        result = result.transpose(turn)
        result.info = {}  # its EXIF would turn it again
    return result


def as_data_error(name: str, error: Exception) -> DataError:
    """Return the DataError of an image given as an object, called `name`, that `as_rgb` could not take."""
    return DataError(f"{printable(name)} is not a readable image ({_reason(error)}).")


def _strip_as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # Pillow would cut all above 255 off
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
    except Exception:  # whatever Pillow raises for damaged EXIF: the pixels are still there
        return 1


def _identified(stream: BinaryIO) -> Image.Image:
    try:
        return Image.open(stream, formats=formats())
    except UnidentifiedImageError as e:
        stream.seek(4)
        brand = stream.read(8)
        if "HEIF" not in formats() and brand[:4] == b"ftyp" and brand[4:] in (b"heic", b"heix", b"mif1", b"msf1"):
            raise ValueError("HEIC needs pillow-heif; install it with: pip install 'sqzoo[heic]'") from e
        raise ValueError(f"its content is none of {', '.join(formats())}") from e


def _cost(image: Image.Image, least: int | None) -> int:
    """Return the bytes that decoding and converting an image take at most; set the scale of a JPEG's decoder."""
    kind, extra = image.format or "", 0
    turned = "exif" in image.info if kind == "PNG" else _orientation(image) != 1  # PNG's would decode it first
    converted = image.mode != "RGB" or image.has_transparency_data
    each = _MODE.get(image.mode, _RGB) + _RGB * converted + _RGB * turned + _DECODER.get(kind, 0)
    if kind in ("JPEG", "MPO"):
        if _has_several_scans(image):  # its coefficients, 16 bits each, are held for all of the image at any scale
            extra = 2 * image.width * image.height * len(image.getbands())
        # Too large for the budget: at a half, a quarter or an eighth of its size.
        fits = next((s for s in (1, 2, 4, 8) if each * image.width * image.height // s**2 + extra <= _BUDGET), 8)
        image.draft("RGB", (image.width // fits, image.height // fits) if least is None else (least, least))
    pixels = image.width * image.height
    return each * (max(pixels, _largest_tile(image)) if kind == "TIFF" else pixels) + extra


def _largest_tile(image: Image.Image) -> int:
    tags = image.tag_v2  # type: ignore[attr-defined]
    width, length, rows = (int(tags.get(tag, 0)) for tag in (322, 323, 278))
    return max(width * length, image.width * min(rows, image.height))


def _has_several_scans(image: Image.Image) -> bool:
    """Whether a JPEG is progressive, or its components come one after the other. Raises ValueError for a hundred."""
    stream: Any = image.fp  # type: ignore[attr-defined]
    place = stream.tell()
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
        if scans > _SCANS:
            raise ValueError(f"a JPEG of {scans:,} scans, at most {_SCANS} are decoded")
    stream.seek(place)
    return several


def _reason(e: Exception) -> str:
    """Return an error's type and its first sentence, to stand in brackets within ours."""
    said = str(getattr(e, "strerror", None) or e).strip().partition("\n")[0].partition(". ")[0].rstrip(".: ")
    return shown(said if type(e) is ValueError and said else f"{type(e).__name__}: {said}".rstrip(": "))

"""One opener and one walker: which images are opened, what they may take, which folders are entered."""

import os
import shutil
import subprocess
import sys
import threading
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from sqzoo.errors import DataError
from sqzoo.images import opener
from sqzoo.images.opener import as_rgb, open_image, opened
from sqzoo.images.walk import AGAIN, DEEP, OURS, image_files, walk
from tests.support.hostile import deep, png_header
from tests.support.sentences import assert_one_sentence

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF"])
def test_listed_formats_are_opened_whatever_their_name(kind: str, tmp_path: Path) -> None:
    if kind not in opener.formats():
        pytest.skip(f"Pillow has no {kind} here")
    Image.fromarray(PHOTO).save(tmp_path / "x", kind)
    shutil.copy(tmp_path / "x", tmp_path / "photo.jpg")
    assert open_image(tmp_path / "photo.jpg").size == (60, 40)


@pytest.mark.parametrize("kind", ["EPS", "ICO", "PPM", "TGA", "PDF", "IM", "PCX", "SGI", "ICNS", "JPEG2000"])
def test_others_are_not(kind: str, tmp_path: Path) -> None:
    try:
        Image.fromarray(PHOTO[:32, :32]).save(tmp_path / "photo.jpg", kind)
    except (OSError, KeyError):
        pytest.skip(f"Pillow does not write {kind} here")
    with pytest.raises(DataError, match="none of JPEG, ") as caught:
        open_image(tmp_path / "photo.jpg")
    assert_one_sentence(caught.value)


def test_only_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "to_nothing.jpg").symlink_to("nothing")
    (tmp_path / "zeros.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "folder.jpg", "to_nothing.jpg", "zeros.jpg", "a\0b"):
        with pytest.raises(DataError):
            open_image(tmp_path / name)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "1", "CMYK", "I;16", "YCbCr"])
def test_a_file_and_an_opened_image_give_the_same_pixels(mode: str, tmp_path: Path) -> None:
    # As JPEG: of TIFFs of some modes that it maps to memory, Pillow 13 itself turns those with a path another way.
    kind = {"CMYK": "JPEG", "YCbCr": "TIFF"}.get(mode, "PNG")
    if mode == "I;16":
        image = Image.fromarray(PHOTO[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(PHOTO).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "x", kind, exif=exif)
    whole = open_image(tmp_path / "x")
    with Image.open(tmp_path / "x") as given:
        assert np.array_equal(np.asarray(as_rgb(given)), np.asarray(whole))
    assert whole.mode == "RGB" and whole.size == (40, 60)
    assert np.array_equal(np.asarray(as_rgb(whole)), np.asarray(whole))  # not turned again
    with Image.open(tmp_path / "x") as given:
        upright = ImageOps.exif_transpose(given)
    if not upright.has_transparency_data and mode != "I;16":
        assert np.array_equal(np.asarray(upright.convert("RGB")), np.asarray(whole))


@pytest.mark.parametrize("orientation", range(10))
def test_each_orientation(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PHOTO).save(tmp_path / "x.jpg", exif=exif)
    with Image.open(tmp_path / "x.jpg") as image:
        wanted = ImageOps.exif_transpose(image).convert("RGB")
    assert np.array_equal(np.asarray(open_image(tmp_path / "x.jpg")), np.asarray(wanted))


def test_what_takes_too_much_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    jpeg = BytesIO()
    Image.new("RGB", (8000, 8000)).save(jpeg, "JPEG", progressive=True)
    files = {
        "rgba.png": png_header(12_000, 12_000),
        "deep.png": png_header(12_000, 12_000, 16),
        "long.png": png_header(10_000, 10),
        "scans.jpg": jpeg.getvalue()[:-2] + jpeg.getvalue()[jpeg.getvalue().rindex(b"\xff\xda") : -2] * 2000,
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    code = f"""
import resource, time
from pathlib import Path
from sqzoo.errors import DataError
from sqzoo.images.opener import open_image, formats
formats()
def used(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = used()
for name in {list(files)!r}:
    began = time.process_time()
    try: open_image(Path({str(tmp_path)!r}) / name)
    except DataError as e: print(e)
    assert time.process_time() - began < 1, name
assert used() - before < 100_000, used() - before
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(files)


def test_readers_share_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(PHOTO).convert("RGBA").save(tmp_path / "x.png")  # 19,200 bytes, and as much converted
    monkeypatch.setattr(opener, "_BUDGET", 50_000)
    monkeypatch.setattr(opener, "_budget", opener._Budget(50_000))
    at_once, most, lock = 0, 0, threading.Lock()

    def read() -> None:
        nonlocal at_once, most
        with opened(tmp_path / "x.png"):
            with lock:
                at_once += 1
                most = max(most, at_once)
            with lock:
                at_once -= 1

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert most == 1
    with pytest.raises(DataError):  # a damaged one gives its part back
        (tmp_path / "bad.png").write_bytes((tmp_path / "x.png").read_bytes()[:200])
        open_image(tmp_path / "bad.png")
    open_image(tmp_path / "x.png")


def test_each_folder_is_entered_once(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.jpg").touch()
    for name, target in (("loop", "."), ("a/up", ".."), ("again", "a"), ("a/b/c", "../../a/b")):
        (tmp_path / name).symlink_to(target)
    (tmp_path / "outside.jpg").symlink_to(tmp_path / "a" / "b" / "x.jpg")
    assert [f.name for f in image_files(tmp_path)] == ["x.jpg", "outside.jpg"]


def test_what_is_passed_over_is_said(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 40)
    deep.mkdir(parents=True)
    (deep / "x.jpg").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".sqzoo-run").touch()
    (tmp_path / "link").symlink_to("d")
    reasons: list[str] = []
    assert list(walk(tmp_path, set(), lambda path, reason: reasons.append(reason))) == []
    assert sorted(reasons) == sorted([DEEP, AGAIN, OURS])
    (told,) = image_files(tmp_path)  # the folder that is too deep, which cannot be opened as an image
    with pytest.raises(DataError):
        open_image(told)


def test_fifteen_hundred_folders_deep(tmp_path: Path) -> None:
    try:
        assert len(list(image_files(deep(tmp_path)))) == 1
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)  # pytest would exceed the recursion limit

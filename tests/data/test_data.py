"""CIFAR-10 from every source, what is refused, and the path from uint8 images to model input."""

import hashlib
import io
import json
import os
import pickle
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import CIFAR10 as TorchvisionCifar10

from sqzoo.data import CIFAR10, IMAGENET, Dataset, Normalise, cifar10
from sqzoo.errors import ArgumentError, DataError
from sqzoo.images.augment import augment
from sqzoo.images.opener import open_image
from tests.support.fork import python
from tests.support.sentences import assert_one_sentence
from tests.support.serving import serving

COMMIT = "0b2714987fa478483af9968de7c934580d0bb9a2"
PINNED_TEST = "841389e6f2d64f28bf17310e430aebac20ec3ba611a3c5e231dc93c645ce84de"


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def one_colour(label: int, side: int = 32) -> np.ndarray:
    return np.full((side, side, 3), (25 * label, 255 - label, 7), np.uint8)


def write_parquet(file: Path, pictures: list[bytes | None], labels: list[int | None]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    img = [{"bytes": b, "path": f"{i}.png"} for i, b in enumerate(pictures)]
    pq.write_table(pa.table({"img": img, "label": pa.array(labels, pa.int64())}), file)


# Parquet


def test_parquet_shards_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 1000))
    pictures = [png(one_colour(c)) for c in range(10)]
    for part, rows in enumerate((labels[:300], labels[300:])):
        file = tmp_path / "plain_text" / f"test-0000{part}-of-00002.parquet"
        write_parquet(file, [pictures[c] for c in rows], rows.tolist())
    monkeypatch.setenv("SQZOO_CIFAR10", str(tmp_path))
    data = cifar10("test")
    assert data.images.dtype == np.uint8 and data.labels.dtype == np.int64
    assert np.array_equal(data.labels, labels)
    assert np.array_equal(data.images, np.stack([one_colour(c) for c in range(10)])[labels])


def test_real_test_split(cifar10_root: Path) -> None:
    data = cifar10("test", cifar10_root)
    assert len(data) == 10_000 and data.images.shape == (10_000, 32, 32, 3)
    assert np.bincount(data.labels).tolist() == [1000] * 10
    known = json.loads((cifar10_root / "digests.json").read_text())["test"]
    assert hashlib.sha256(data.images.tobytes()).hexdigest() == known["sha256_uint8_NHWC"]
    assert hashlib.sha256(data.labels.astype(np.uint8).tobytes()).hexdigest() == known["sha256_labels_uint8"]
    both = f"{known['sha256_uint8_NHWC']} {known['sha256_labels_uint8']}"
    assert data.digest == hashlib.sha256(both.encode()).hexdigest()


def small(folder: Path) -> Path:
    file = folder / "test-00000-of-00001.parquet"
    write_parquet(file, [png(one_colour(i % 10)) for i in range(20)], [i % 10 for i in range(20)])
    return file


def nowhere(folder: Path) -> Path:
    folder.rmdir()
    return folder


def only_train(folder: Path) -> Path:
    small(folder).rename(folder / "train-00000-of-00001.parquet")
    return folder


def truncated(folder: Path) -> Path:
    file = small(folder)
    file.write_bytes(file.read_bytes()[:-100])
    return file


def flipped(folder: Path) -> Path:
    file = small(folder)
    raw = bytearray(file.read_bytes())
    raw[raw.index(b"IDAT") + 8] ^= 255
    file.write_bytes(raw)
    return file


def other_columns(folder: Path) -> Path:
    file = folder / "test-00000-of-00001.parquet"
    pq.write_table(pa.table({"image": [png(one_colour(0))], "label": [0]}), file)
    return file


def flat_column(folder: Path) -> Path:
    file = folder / "test-00000-of-00001.parquet"
    pq.write_table(pa.table({"img": [png(one_colour(0))], "label": [0]}), file)
    return file


def no_pictures(folder: Path) -> Path:
    file = folder / "test-00000-of-00001.parquet"
    write_parquet(file, [b"GIF87a and then nothing"], [0])
    return file


def a_null_picture(folder: Path) -> Path:
    file = folder / "test-00000-of-00001.parquet"
    write_parquet(file, [None], [0])
    return file


def no_rows(folder: Path) -> Path:
    file = folder / "test-00000-of-00001.parquet"
    write_parquet(file, [png(one_colour(0))], [0])
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    return file


def two_sizes(folder: Path) -> Path:
    file = folder / "test-00000-of-00001.parquet"
    write_parquet(file, [png(one_colour(0)), png(one_colour(1, 31))], [0, 1])
    return file


def two_sizes_in_two_shards(folder: Path) -> Path:
    write_parquet(folder / "test-00000-of-00002.parquet", [png(one_colour(0))], [0])
    write_parquet(folder / "test-00001-of-00002.parquet", [png(one_colour(1, 31))], [1])
    return folder / "test-00001-of-00002.parquet"


def too_few(folder: Path) -> Path:
    small(folder)
    return folder


def null_labels(folder: Path) -> Path:
    write_parquet(folder / "test-00000-of-00001.parquet", [png(one_colour(0))] * 2, [0, None])
    return folder


def huge_and_negative_labels(folder: Path) -> Path:
    write_parquet(folder / "test-00000-of-00001.parquet", [png(one_colour(0))] * 2, [-1, 2**62])
    return folder


def unequal_classes(folder: Path) -> Path:
    labels = [i % 10 for i in range(10_000)]
    labels[0] = 9
    write_parquet(folder / "test-00000-of-00001.parquet", [png(one_colour(0, 32))] * 10_000, labels)
    return folder


@pytest.mark.parametrize(
    "spoil",
    [
        nowhere,
        only_train,
        truncated,
        flipped,
        other_columns,
        flat_column,
        no_pictures,
        a_null_picture,
        no_rows,
        two_sizes,
        two_sizes_in_two_shards,
        too_few,
        null_labels,
        huge_and_negative_labels,
        unequal_classes,
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_parquet_that_is_not_cifar10_is_refused(spoil: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    culprit = spoil(folder)
    with pytest.raises(DataError) as caught:
        cifar10("test", folder)
    assert_one_sentence(caught.value, culprit)


def test_unknown_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError) as caught:
        cifar10("validation", tmp_path)  # type: ignore[arg-type]
    assert_one_sentence(caught.value, "'validation'", "'train'", "'test'")


# torchvision's pickled batches


class Python2Pickler(pickle._Pickler):
    """Writes as Python 2 did, and so the published batches: every string is a byte string."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, text: str | bytes) -> None:
        raw = text.encode("latin1") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_string


def python2_pickle(value: object) -> bytes:
    stream = io.BytesIO()
    Python2Pickler(stream, 2).dump(value)
    return stream.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torchvision") / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        batch = {
            "batch_label": name,
            "labels": rng.permutation(np.repeat(np.arange(10), 1000)).tolist(),
            "data": rng.integers(0, 256, (10_000, 3072), np.uint8),
        }
        (folder / name).write_bytes(python2_pickle(batch))
    (folder / "batches.meta").write_bytes(python2_pickle({"label_names": list("abcdefghij")}))
    return folder


def test_batches_are_read_as_torchvision_reads_them(batches: Path) -> None:
    def listed(*names: str) -> list[list[str]]:
        return [[n, hashlib.md5((batches / n).read_bytes()).hexdigest()] for n in names]

    class Reference(TorchvisionCifar10):  # its reader, with the checksums of our batches
        train_list = listed(*(f"data_batch_{i}" for i in range(1, 6)))
        test_list = listed("test_batch")
        meta: ClassVar = dict(zip(("filename", "md5"), listed("batches.meta")[0], strict=True), key="label_names")

    for split, root in (("test", batches), ("train", batches.parent)):
        reference = Reference(batches.parent, train=split == "train")
        data = cifar10(split, root)  # type: ignore[arg-type]
        assert data.images.dtype == np.uint8 and data.labels.dtype == np.int64
        assert np.array_equal(data.images, reference.data)
        assert data.labels.tolist() == reference.targets


class Payload:
    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize(
    "payload", [lambda f: Payload(os.system, f"touch {f}"), lambda f: Payload(eval, f"open({str(f)!r}, 'w').close()")]
)
def test_a_pickle_that_is_no_array_is_not_executed(
    payload: Callable[[Path], Payload], protocol: int, tmp_path: Path
) -> None:
    marker = tmp_path / "executed"
    raw = pickle.dumps({b"data": payload(marker), b"labels": [0]}, protocol)
    pickle.loads(raw)
    assert marker.exists()  # the payload works where it is let
    marker.unlink()
    (tmp_path / "test_batch").write_bytes(raw)
    with pytest.raises(DataError) as caught:
        cifar10("test", tmp_path)
    assert not marker.exists()
    assert_one_sentence(caught.value, tmp_path / "test_batch", "asks for" if protocol == 2 else "protocol 2")


def test_damaged_batches_are_refused(batches: Path, tmp_path: Path) -> None:
    raw = (batches / "test_batch").read_bytes()
    array = np.zeros((10_000, 3072), np.uint8)
    spoilt = {
        "truncated": raw[: len(raw) // 2],
        "empty": b"",
        "no dictionary": python2_pickle([1, 2]),
        "other keys": python2_pickle({"images": array}),
        "other shape": python2_pickle({"data": array[:, :3000], "labels": [0] * 10_000}),
        "too few": python2_pickle({"data": array[:10], "labels": list(range(10))}),
        "too few labels": python2_pickle({"data": array, "labels": list(range(10))}),
        "labels in pairs": python2_pickle({"data": array, "labels": [[i % 10] * 2 for i in range(10_000)]}),
        "class 10": python2_pickle({"data": array, "labels": [i % 10 + 1 for i in range(10_000)]}),
    }
    for content in spoilt.values():
        (tmp_path / "test_batch").write_bytes(content)
        with pytest.raises(DataError) as caught:
            cifar10("test", tmp_path)
        assert_one_sentence(caught.value, tmp_path)
    with pytest.raises(DataError) as caught:
        cifar10("train", tmp_path)
    assert_one_sentence(caught.value, tmp_path / "data_batch_1", "FileNotFoundError")


# The Hub. Its pinned file, 24 MB, is not to be had in a test, so that a download that succeeds is not shown here.


@pytest.fixture()
def hub() -> Iterator[tuple[str, bytes, list[tuple[str, str]]]]:
    """A server that speaks the Hub's file protocol, what it gives for every file, and the requests it had."""
    stream = io.BytesIO()
    pq.write_table(pa.table({"img": [{"bytes": png(one_colour(0)), "path": "0"}], "label": [0]}), stream)
    body = stream.getvalue()
    requests: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            requests.append((self.command, self.path))
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD = answer

        def log_message(self, *args: object) -> None:
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as address:
        yield address, body, requests


def ask_hub(home: Path, **settings: str) -> subprocess.Popen[str]:
    """Start a process with an empty cache that prints the message of the `DataError` it gets.

    huggingface_hub reads its settings when it is imported, hence a process of its own.
    """
    script = (
        "from sqzoo.data import cifar10\nfrom sqzoo.errors import DataError\n"
        "try:\n    cifar10('test')\nexcept DataError as e:\n    print(e)\n"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "SQZOO_"))}
    settings |= {"HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return subprocess.Popen(
        [python(timm=False), "-c", script],
        env=kept | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def message_of(process: subprocess.Popen[str]) -> DataError:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0 and out, err
    return DataError(out.removesuffix("\n"))


@pytest.fixture(scope="module", autouse=True)
def without_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """A process that asks a Hub which is not there; huggingface_hub sleeps 23 s between its tries, so start first."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        endpoint = f"http://127.0.0.1:{mute.getsockname()[1]}"
        process = ask_hub(tmp_path_factory.mktemp("home"), HF_ENDPOINT=endpoint)
        yield process
        process.kill()
        process.communicate()


def test_hub_file_of_another_hash_is_fetched_once_more_then_refused(
    hub: tuple[str, bytes, list[tuple[str, str]]], tmp_path: Path
) -> None:
    endpoint, body, requests = hub
    error = message_of(ask_hub(tmp_path, HF_ENDPOINT=endpoint))
    assert_one_sentence(error, hashlib.sha256(body).hexdigest(), PINNED_TEST, tmp_path)
    name = f"/datasets/uoft-cs/cifar10/resolve/{COMMIT}/plain_text/test-00000-of-00001.parquet"
    assert requests.count(("GET", name)) == 2


def test_offline_without_a_copy_is_one_sentence(tmp_path: Path) -> None:
    error = message_of(ask_hub(tmp_path, HF_HUB_OFFLINE="1"))
    assert_one_sentence(error, "uoft-cs/cifar10", "SQZOO_CIFAR10")


# Data sets in memory


def test_digest_hangs_on_every_pixel_label_and_their_order() -> None:
    rng = np.random.default_rng(0)
    data = Dataset(rng.integers(0, 256, (6, 32, 32, 3), np.uint8), np.arange(6))
    pixel, label = data.images.copy(), data.labels.copy()
    pixel[5, 31, 31, 2] ^= 1
    label[0] = 1
    others = [Dataset(pixel, data.labels), Dataset(data.images, label), data[::-1], data[:5]]
    assert len({data.digest, *(o.digest for o in others)}) == 5
    strided = Dataset(np.repeat(data.images, 2, 0)[::2], data.labels.astype(np.uint8))
    assert strided.digest == data.digest


def labelled(labels: np.ndarray) -> Dataset:
    return Dataset(np.zeros((len(labels), 1, 1, 3), np.uint8), labels)


@pytest.mark.parametrize("count", [10, 200, 4990])
def test_the_split_is_balanced_disjoint_and_always_the_same(count: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 500))
    train_idx, val_idx = labelled(labels).split(count)
    assert np.bincount(labels[val_idx]).tolist() == [count // 10] * 10
    assert np.array_equal(np.sort(np.concatenate([train_idx, val_idx])), np.arange(5000))
    torch.manual_seed(1)
    np.random.seed(1)
    again = labelled(labels.copy()).split(count)
    assert np.array_equal(again[0], train_idx) and np.array_equal(again[1], val_idx)


def test_an_empty_validation_split() -> None:
    train_idx, val_idx = labelled(np.arange(30) % 10).split(0)
    assert train_idx.tolist() == list(range(30)) and val_idx.tolist() == []


@pytest.mark.parametrize("count", [-10, 5, 15, 30, 40])
def test_a_split_that_cannot_be_balanced_is_refused(count: int) -> None:
    with pytest.raises(ArgumentError) as caught:
        labelled(np.arange(30) % 10).split(count)
    assert_one_sentence(caught.value, count)


# Normalisation


def noise_images(side: int) -> np.ndarray:
    """Return noise, extremes and a ramp."""
    rng = np.random.default_rng(side)
    extremes = rng.choice(np.array([0, 255], np.uint8), (side, side, 3))
    ramp = np.broadcast_to(np.linspace(0, 255, side, dtype=np.uint8)[:, None, None], (side, side, 3))
    return np.stack([rng.integers(0, 256, (side, side, 3), np.uint8), extremes, ramp])


@pytest.mark.parametrize("constants", [CIFAR10, IMAGENET])
@pytest.mark.parametrize("side", [32, 75])
def test_normalisation_is_torchvisions_bit_for_bit(
    side: int, constants: tuple[tuple[float, ...], tuple[float, ...]]
) -> None:
    reference = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*constants)])
    ours = Normalise(*constants)(noise_images(side))
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(ours, torch.stack([reference(Image.fromarray(i)) for i in noise_images(side)]))


# Augmentation


def test_augment_by_nothing_is_the_identity() -> None:
    images = torch.from_numpy(noise_images(32))
    assert torch.equal(augment(images, 0, False, 0), images)


def test_augment_gives_windows_of_the_reflected_image() -> None:
    pad, side = 2, 8
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    wide = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    windows = {
        wide[y : y + side, x : x + side].tobytes(): (y, x) for y in range(2 * pad + 1) for x in range(2 * pad + 1)
    }
    many = torch.from_numpy(image).repeat(1000, 1, 1, 1)
    torch.manual_seed(0)
    shifted = augment(many, pad, False, 0)
    assert shifted.dtype == torch.uint8 and shifted.shape == many.shape
    assert {windows[i.numpy().tobytes()] for i in shifted} == set(windows.values())  # every window, no other picture

    flipped = {np.frombuffer(w, np.uint8).reshape(image.shape)[:, ::-1].tobytes() for w in windows}
    found = [i.numpy().tobytes() for i in augment(many, pad, True, 0)]
    assert set(found) == set(windows) | flipped
    assert 430 < sum(f in flipped for f in found) < 570  # 4.4 standard deviations of a fair coin


def test_cutout_paints_a_square_in_the_mean_colour() -> None:
    images = torch.randint(0, 256, (50, 32, 32, 3), dtype=torch.uint8)
    torch.manual_seed(0)
    whole = augment(images, 4, True, 0)
    torch.manual_seed(0)
    cut = augment(images, 4, True, 8)
    places = set()
    for before, after in zip(whole, cut, strict=True):
        row, column = (int(p.min()) for p in torch.nonzero((before != after).any(-1), as_tuple=True))
        hole = after[row : row + 8, column : column + 8]
        assert (hole == before.float().mean((0, 1)).round().byte()).all()
        rest = torch.ones(32, 32, dtype=torch.bool)
        rest[row : row + 8, column : column + 8] = False
        assert torch.equal(before[rest], after[rest])
        places.add((row, column))
    assert len(places) > 30


# Pictures


def test_open_image_turns_as_exif_says(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(open_image(tmp_path / "turned.png")), np.rot90(pixels, -1))


def test_open_image_refuses_what_is_none(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    spoilt = {"text.png": b"not a picture", "empty.jpg": b"", "half.png": png(np.asarray(noise))[:900]}
    stream = io.BytesIO()
    noise.save(stream, "BMP")
    huge = bytearray(stream.getvalue())
    huge[18:26] = struct.pack("<ii", 1 << 20, 1 << 20)  # Pillow refuses it as a decompression bomb
    spoilt["huge.bmp"] = bytes(huge)
    for name, content in spoilt.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as caught:
            open_image(tmp_path / name)
        assert_one_sentence(caught.value, name)
    for name in ("missing.png", "."):
        with pytest.raises(DataError) as caught:
            open_image(tmp_path / name)
        assert_one_sentence(caught.value, tmp_path)


# Last, see the fixture


def test_no_server_is_one_sentence(without_server: subprocess.Popen[str]) -> None:
    assert_one_sentence(message_of(without_server), "uoft-cs/cifar10", "SQZOO_CIFAR10")


@pytest.mark.parametrize("labels", [[0, -1], [0.0, 1.0], ["a", "b"], [0], [[0], [1]]])
def test_a_label_that_is_none_is_no_class(labels: Any) -> None:
    with pytest.raises(ArgumentError) as caught:
        Dataset(np.zeros((2, 32, 32, 3), np.uint8), np.array(labels))
    assert_one_sentence(caught.value, "labels must be whole numbers from 0")

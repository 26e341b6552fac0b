"""torch's zip format without a pickle machine: what torch.save writes is read alike, anything else refused."""

import io
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from sqzoo.weights.torch_zip import read_torch_zip

Tensors = dict[str, torch.Tensor]
TWO = {"features.0.weight": torch.rand(4, 3, 3, 3), "classifier.1.bias": torch.rand(5), "scale": torch.tensor(2.5)}


def saved(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def read(data: bytes, most: int = 1 << 24, wanted: Callable[[str], bool] = lambda name: True) -> Tensors:
    return read_torch_zip(io.BytesIO(data), wanted, most)


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert list(found) == list(expected)
    assert all(torch.equal(found[k], expected[k]) and found[k].dtype == torch.float32 for k in expected)


def with_metadata() -> Tensors:
    state = OrderedDict(TWO)
    state._metadata = OrderedDict([("", {"version": 1}), ("features.0", {"version": 1})])  # type: ignore[attr-defined]
    return state


def with_parameters() -> Tensors:
    """As torchvision's oldest models were saved."""
    return OrderedDict((k, torch.nn.Parameter(v, requires_grad=False)) for k, v in TWO.items())


def with_one_storage() -> Tensors:
    """As tensors that were read from a safetensors file may be."""
    flat = torch.cat([t.flatten() for t in TWO.values()])
    parts = flat.split([t.numel() for t in TWO.values()])
    return {k: part.view(t.shape) for (k, t), part in zip(TWO.items(), parts, strict=True)}


@pytest.mark.parametrize("make", [lambda: dict(TWO), with_metadata, with_parameters, with_one_storage])
def test_what_torch_writes(make: Callable[[], Tensors]) -> None:
    assert_same(read(saved(make())), TWO)


def test_a_whole_network_of_torchvisions() -> None:
    state = torchvision.models.squeezenet1_1(weights=None).state_dict()
    assert_same(read(saved(state)), state)
    assert_same(
        read(saved(state), wanted=lambda name: name.startswith("features.")),
        {k: v for k, v in state.items() if k.startswith("features.")},
    )


class Payload:
    """Touches a file as it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_others_are_refused(tmp_path: Path) -> None:
    shared = torch.rand(8, 8)
    foreign = [
        {"a": torch.zeros(2, dtype=torch.float16)},
        {"a": torch.zeros(2, dtype=torch.float64)},
        {"a": torch.zeros(2, dtype=torch.int64)},
        {"a": shared.t()},
        {"a": shared[:, ::2]},
        {"a": torch.zeros(0)},
        {"a": {"b": torch.zeros(2)}},
        {"a": [torch.zeros(2)]},
        {"a": 1, "b": None},
        {1: torch.zeros(2)},
        [torch.zeros(2)],
        torch.zeros(2),
        torch.zeros(2).to_sparse(),
        torch.nn.Linear(2, 2),
        Payload(tmp_path / "mark"),
        TWO | {"a": Payload(tmp_path / "mark")},
    ]
    for content in foreign:
        with pytest.raises(ValueError):
            read(saved(content))
    with pytest.raises(ValueError):
        read(saved(TWO, _use_new_zipfile_serialization=False))
    assert not (tmp_path / "mark").exists()


def rezipped(change: Callable[[str, bytes], bytes | None], kind: int = zipfile.ZIP_STORED) -> bytes:
    """A file of TWO with its entries changed, or left out."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(TWO))) as given, zipfile.ZipFile(out, "w", kind) as archive:
        for name in given.namelist():
            if (content := change(name, given.read(name))) is not None:
                archive.writestr(name, content)
    return out.getvalue()


def pickled(change: Callable[[bytes], bytes]) -> bytes:
    return rezipped(lambda name, data: change(data) if name.endswith("data.pkl") else data)


def test_another_zip_of_the_same_content() -> None:
    assert_same(read(rezipped(lambda name, data: data)), TWO)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\5\6" + bytes(18),
        b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 9, 65535, 1 << 31, 0, 0),
        rezipped(lambda name, data: data, zipfile.ZIP_DEFLATED),
        rezipped(lambda name, data: None if name.endswith("data/1") else data),
        rezipped(lambda name, data: None if name.endswith("data.pkl") else data),
        rezipped(lambda name, data: b"big" if name.endswith("byteorder") else data),
        rezipped(lambda name, data: data[:-1] if "/data/" in name else data),
        rezipped(lambda name, data: bytes(2 << 20) if name.endswith("data.pkl") else data),
        saved(TWO) + b"\0",
        pickled(lambda p: p[:-1]),
        pickled(lambda p: b"\x80\x02cposix\nsystem\n(X\x02\0\0\0idtR."),
        pickled(lambda p: b"\x80\x02" + b"}" * 1_000_000),
        pickled(lambda p: b"\x80\x02N" + b"\x85" * 1_000_000 + b"."),
        pickled(lambda p: p.replace(b"K\x04K\x03K\x03K\x03t", b"J\xff\xff\xff\x7fK\x03K\x03K\x03t")),
        pickled(lambda p: p.replace(b"K\x04K\x03K\x03K\x03t", b"J\xfc\xff\xff\xffK\x03K\x03K\x03t")),
        pickled(lambda p: p.replace(b"QK\x00", b"QK\x7f")),
        pickled(lambda p: p.replace(b"torch\nFloatStorage", b"torch\nHalfStorage")),
        pickled(lambda p: p.replace(b"X\x01\0\0\x001", b"X\x05\0\0\0../..")),
        pickled(lambda p: b"\x80\x02N."),
    ],
    ids=range(20),
)
def test_hostile_archives(data: bytes) -> None:
    with pytest.raises(ValueError):
        read(data)


def test_a_storage_that_many_tensors_share_is_counted_for_each() -> None:
    one = torch.zeros(1 << 20)
    data = saved({str(i): one for i in range(100)})
    assert len(data) < 5_000_000
    with pytest.raises(ValueError, match="larger"):
        read(data)


DATA = saved(TWO)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(DATA) - 1), st.binary(min_size=1, max_size=6), st.booleans())
def test_changed_bytes(place: int, other: bytes, tail: bool) -> None:
    place = max(0, len(DATA) - 900) + place % 900 if tail else place
    changed = DATA[:place] + other + DATA[place + len(other) :]
    try:
        found = read(changed)
    except ValueError:
        return
    assert all(t.dtype == torch.float32 for t in found.values())
    assert sum(t.nbytes for t in found.values()) <= 1 << 24


def test_only_what_is_asked_for_is_read() -> None:
    large = TWO | {"classifier.0": torch.rand(1 << 20)}
    data = saved(large)

    class Counting(io.BytesIO):
        count = 0

        def read(self, size: int | None = -1) -> bytes:
            found = super().read(size)
            self.count += len(found)
            return found

    stream = Counting(data)
    found = read_torch_zip(stream, lambda name: name == "scale", 4)
    assert float(found["scale"]) == 2.5 and stream.count < 10_000 < len(data)


def test_an_entry_that_is_listed_twice_is_refused() -> None:
    stream = io.BytesIO()
    torch.save({"a": torch.ones(2)}, stream)
    with zipfile.ZipFile(stream, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        name = next(n for n in archive.namelist() if n.endswith("/data/0"))
        archive.writestr(name, archive.read(name))
    with pytest.raises(ValueError, match="listed twice"):
        read_torch_zip(stream, lambda name: True, 1000)

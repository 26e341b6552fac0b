"""Generated inputs: configurations, headers, batches, names and trees of folders end in a value or in one sentence."""

import ast
import io
import json
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from sqzoo.data.batches import read_batch
from sqzoo.errors import DataError, SqzooError, printable
from sqzoo.own_images.folder import find_images
from sqzoo.weights.config_json import parse_config
from sqzoo.weights.header import parse_header, read_tensors
from tests.support.sentences import assert_one_sentence

quick = settings(max_examples=150, deadline=None)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=6), v, max_size=4))
FIELDS = ("input_size", "crop_pct", "mean", "std", "interpolation", "label_names", "crop_mode", "pool_size")
CONFIG: dict[str, Any] = {
    "architecture": "sq1",
    "num_classes": 4,
    "model_args": {"upsample": 64, "temperature": 1.5},
    "sha256": "0" * 64,
    "ood_threshold": 0.5,
    "pretrained_cfg": {"input_size": [3, 32, 32], "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3},
}


@quick
@given(st.dictionaries(st.sampled_from([*CONFIG, "other"]), JSON), st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_configurations(top: dict[str, Any], fields: dict[str, Any]) -> None:
    config = CONFIG | top
    if "pretrained_cfg" not in top:
        config = config | {"pretrained_cfg": CONFIG["pretrained_cfg"] | fields}
    try:
        found = parse_config(json.dumps(config).encode(), "config.json")
    except SqzooError as e:
        assert_one_sentence(e)
        return
    about = found["pretrained_cfg"]
    if "input_size" in about and "crop_pct" in about:
        assert about["input_size"][1] / about["crop_pct"] <= 1024
    for key in ("mean", "std"):
        assert len(about.get(key, (0, 0, 0))) in (3, about.get("input_size", (3,))[0])


def test_the_configuration_that_is_varied_is_taken() -> None:
    assert parse_config(json.dumps(CONFIG).encode(), "x")["num_classes"] == 4


TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(3, dtype=torch.int64)}


@quick
@given(st.dictionaries(st.text(max_size=5), JSON, max_size=3), st.binary(max_size=64))
def test_headers(header: dict[str, Any], rest: bytes) -> None:
    text = json.dumps(header).encode()
    for data in (len(text).to_bytes(8, "little") + text + rest, rest, save(TENSORS)[: len(rest)]):
        try:
            parse_header(data, "x.safetensors")
        except SqzooError as e:
            assert_one_sentence(e)


@quick
@given(st.integers(0, len(save(TENSORS)) - 1), st.binary(min_size=1, max_size=9))
def test_changed_tensor_files(place: int, other: bytes) -> None:
    data = save(TENSORS)
    data = data[:place] + other + data[place + len(other) :]
    try:
        found = read_tensors(data, "x.safetensors", TENSORS)
    except SqzooError as e:
        assert_one_sentence(e)
    else:
        assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in TENSORS.items()}
        assert all(t.double().isfinite().all() for t in found.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_no_number_are_refused(value: float) -> None:
    with pytest.raises(SqzooError, match="NaN or infinity in a"):
        read_tensors(save({"a": torch.tensor([1.0, value])}), "x")


def batch() -> bytes:
    pixels = np.arange(2 * 3072, dtype=np.uint16).astype(np.uint8).reshape(2, 3072)
    raw = pickle.dumps({b"data": pixels, b"labels": [3, 4], b"batch_label": b"x"}, 3)
    return raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def test_a_batch_is_read_as_pickle_reads_it() -> None:
    images, labels = read_batch(batch())
    expected = pickle.loads(batch())
    assert np.array_equal(images.transpose(0, 3, 1, 2).reshape(2, -1), expected[b"data"])
    assert labels.tolist() == expected[b"labels"]


@quick
@given(st.lists(st.tuples(st.integers(0, 300), st.binary(min_size=1, max_size=3)), min_size=1, max_size=4))
def test_changed_batches(changes: list[tuple[int, bytes]]) -> None:
    data = batch()
    for place, other in changes:
        data = data[:place] + other + data[place + len(other) :]
    try:
        images, labels = read_batch(data)
    except ValueError:
        return
    assert images.dtype == np.uint8 and images.shape[1:] == (32, 32, 3) and labels.dtype == np.int64


@quick
@given(st.lists(st.sampled_from([b"(", b")", b"t", b"\x85", b"\x87", b"}", b"]", b"K\x01", b"q\x00", b"h\x00", b"e",
                                 b"u", b"s", b"a", b"R", b"b", b"C\x01x", b"cnumpy\nndarray\n", b"N"])))  # fmt: skip
def test_opcodes_in_any_order(opcodes: list[bytes]) -> None:
    with pytest.raises(ValueError):
        read_batch(b"\x80\x02" + b"".join(opcodes) + b".")


def test_deep_nesting_is_no_crash() -> None:
    for start, end in ((b"N", b""), (b"}" + b"N", b"Ns")):
        with pytest.raises(ValueError):
            read_batch(b"\x80\x02" + start + b"\x85" * 1_000_000 + end + b".")


@quick
@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda b: b.decode("utf-8", "surrogateescape")))
def test_names_are_printable(name: str) -> None:
    line = printable(name)
    assert line.isprintable() and len(line) <= 120
    line.encode()


NAMES = st.sampled_from(
    ["cat", "dog", "Cat", "1", "10", "2", "train", "val", "images", "labels", ".x", "@eaDir", "lost+found", "é", "²"]
)
ENTRIES = st.dictionaries(NAMES | st.sampled_from(["a.jpg", "b.png", "c.txt"]), st.booleans(), max_size=4)
TREES = st.dictionaries(NAMES, ENTRIES, max_size=5)


@settings(max_examples=80, deadline=None)
@given(TREES)
def test_trees_of_folders(tree: dict[str, dict[str, bool]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for top, entries in tree.items():
            (Path(folder) / top).mkdir()
            for name, linked in entries.items():
                place = Path(folder) / top / name
                if linked:
                    place.symlink_to(Path(folder) / next(iter(tree)), target_is_directory=True)
                elif "." in name.lstrip("."):
                    place.touch()
                else:
                    place.mkdir()
                    (place / "x.jpg").touch()
        try:
            found = find_images(folder)
        except DataError as e:
            assert_one_sentence(e)
            return
        real = [f.resolve() for f in found.files]
        assert len(real) == len(set(real)) and set(found.labels) == set(range(len(found.classes)))
        assert not {"images", "labels", "@eaDir", "lost+found"} & set(found.classes)


def test_no_pickle_machine_is_named() -> None:
    """By source: no module of sqzoo names pickle, its relatives, or a reader of another package that would use them.

    `tests/cli/test_matrix.py` watches the commands themselves.
    """
    modules = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "code", "codeop"}
    calls = {"torch.load", "torch.jit.load", "torch.export.load", "torch.hub.load_state_dict_from_url", "np.load",
             "numpy.load", "pd.read_pickle", "eval", "exec", "compile", "__import__"}  # fmt: skip
    named = set()
    for file in sorted((Path(__file__).parents[1] / "sqzoo").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named |= {(a.name.partition(".")[0], file.name) for a in node.names}
            if isinstance(node, ast.ImportFrom):
                named.add(((node.module or "").partition(".")[0], file.name))
            if isinstance(node, ast.Call):
                named.add((ast.unparse(node.func), file.name))
    own = ("torch.export.load", "export.py")  # what torch.export.save has just written, from memory
    assert {(name, file) for name, file in named if name in modules | calls} == {own}
    assert ("safetensors", "hub.py") in named  # it sees what there is


def test_numpy_files_with_objects_are_refused() -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([object], dtype=object), allow_pickle=True)
    stream.seek(0)
    with pytest.raises(ValueError):
        np.load(stream, allow_pickle=False)

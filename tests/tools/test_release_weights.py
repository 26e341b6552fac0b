"""Publishing a run: weights, manifest entry and record appear together, and only for what may be shipped."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sqzoo
from sqzoo.errors import WeightsError
from sqzoo.files import file_sha256
from sqzoo.train import recipe
from sqzoo.train.checkpoint import best_weights
from sqzoo.weights import load_trunk
from tests.support.sentences import assert_one_sentence
from tools.release_weights import publish


def _run(folder: Path, name: str, tensors: dict[str, torch.Tensor], side: int = 224) -> Path:
    folder.mkdir()
    result = {
        "recipe": recipe(name, "sq1", sizes=((side, 1),)).to_json(),
        "train_digest": "a",
        "test_digest": "b",
        "environment": {"commit": "c"},
        "device": "cpu",
        "precision": "float32",
        "upsample": [256, 224] if name == "paper_cifar10" else [side, side],
        "epoch": 3,
        "test": {"loss": 0.5, "top1": 80.0, "images": 10_000},
        "val": None,
    }
    save_file(tensors, folder / "best.safetensors")
    result["weights_sha256"] = file_sha256(folder / "best.safetensors")
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "sqzoo" / "weights").mkdir(parents=True)
    (tmp_path / "sqzoo" / "weights" / "manifest.json").write_text('{"weights": []}')
    return tmp_path


def _state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(sqzoo.create_model("sq1").state_dict())


def test_head_and_complete_files(root: Path, trunks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQZOO_TRUNKS", str(trunks))
    state = _state()
    head = {k: v for k, v in state.items() if not k.startswith("features.")}
    publish(_run(root / "a", "paper_cifar10", head), "sq1.paper_test", root)
    publish(_run(root / "b", "ft_cifar10", state), "sq1.ft_test", root)
    entries = json.loads((root / "sqzoo" / "weights" / "manifest.json").read_text())["weights"]
    assert [(e["tag"], e["holds"]) for e in entries] == [("sq1.ft_test", "complete"), ("sq1.paper_test", "head")]
    for entry, expected in zip(entries, (state, head), strict=True):
        file = root / "sqzoo" / "weights" / entry["file"]
        assert (entry["sha256"], entry["size"]) == (file_sha256(file), file.stat().st_size)
        stored = load_file(file)
        assert stored.keys() == expected.keys()
        assert all(torch.equal(stored[k], v) for k, v in expected.items())
        record = json.loads((root / entry["metrics"]["source"]).read_text())
        assert record["test"]["top1"] == entry["metrics"]["test_top1"]


def test_the_default_is_the_complete_file_for_the_largest_images(
    root: Path, trunks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQZOO_TRUNKS", str(trunks))
    for tag, name, side in (("a", "ft_cifar10", 128), ("b", "paper_cifar10", 224), ("c", "ft_cifar10", 192)):
        publish(_run(root / tag, name, _state(), side), f"sq1.{tag}_test", root)
    entries = json.loads((root / "sqzoo" / "weights" / "manifest.json").read_text())["weights"]
    assert [e["tag"] for e in entries] == ["sq1.c_test", "sq1.a_test", "sq1.b_test"]


def test_unchanged_trunk_is_not_published(root: Path, trunks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQZOO_TRUNKS", str(trunks))
    state = _state() | {"features.0.bias": load_trunk("squeezenet1_1")["features.0.bias"]}
    with pytest.raises(WeightsError, match=r"features.0.bias"):
        publish(_run(root / "a", "ft_cifar10", state), "sq1.ft_test", root)
    assert not list((root / "sqzoo" / "weights").glob("*.safetensors"))


def test_tag_of_another_model_is_refused(root: Path) -> None:
    with pytest.raises(WeightsError, match="run of sq1"):
        publish(_run(root / "a", "paper_cifar10", _state()), "fire_next.paper_test", root)


def test_weights_that_are_not_the_runs_are_refused(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", "ft_cifar10", _state(), side=32)
    result = json.loads((run / "result.json").read_text())
    assert best_weights(run, result).keys() == _state().keys()
    file, whole = run / "best.safetensors", (run / "best.safetensors").read_bytes()
    for damaged in (whole[:-4] + bytes(4), whole[:100], None):
        if damaged is None:
            file.unlink()
        else:
            file.write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"best\.safetensors.* train again") as caught:
            best_weights(run, result)
        assert_one_sentence(caught.value)

"""The command line as a whole: help, mistakes, completion, and what starts without torch."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from pkgutil import iter_modules

import pytest
import torch

import sqzoo.cli
from sqzoo import data
from sqzoo.cli import main
from sqzoo.compress.release import multiply_adds
from sqzoo.evaluation import evaluate
from sqzoo.weights import get_weights, read_manifest
from tests.support.fork import python

COMMANDS = [m.name for m in iter_modules(sqzoo.cli.__path__) if not m.name.startswith("_")]


def sqzoo_process(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python(timm=False), "-m", "sqzoo", *words], capture_output=True, text=True, env=os.environ | variables
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Examples:" in shown
    assert f"sqzoo {command}" in shown.partition("Examples:")[2]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f" {command} " in shown for command in COMMANDS)


@pytest.mark.parametrize("words", [["--help"], ["list"], ["info", "sq1"], ["cache"], ["--version"]])
def test_commands_that_read_metadata_import_no_torch(words: list[str]) -> None:
    """Neither by the console script, which calls `main`, nor by `python -m sqzoo`, which imports the package first."""
    command, environment = [sys.executable, "-m", "sqzoo", *words], os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"torch", "torchvision", "timm", "numpy", "safetensors", "PIL"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["predit"], "Did you mean 'predict'?"),
        (["predict", "x.jpg", "--topp", "1"], "Did you mean --top?"),
        (["predict"], "No image was named"),
        (["predict", "x.jpg", "--top", "many"], "--top"),
        (["push", "sq1.ft_cifar10"], "Missing option '--repo'"),
        (["--nonsense"], "No such option: --nonsense"),
    ],
)
def test_a_wrong_word_is_one_sentence(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert expected in err
    assert err.startswith("sqzoo: ")
    assert err.count("\n") == 1
    assert not out


def test_no_command_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "predict" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{sqzoo.__version__}\n"


def test_the_shell_completes_commands_and_tags() -> None:
    for words, expected in (
        ("sqzoo pre", ["predict"]),
        ("sqzoo push sq1.", [t for t in read_manifest() if "sq1." in t]),
    ):
        done = sqzoo_process(_SQZOO_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(words.split()) - 1))
        assert done.stdout.split() == expected


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def names() -> Iterator[str]:
        yield "examples/cat.jpg"
        raise KeyboardInterrupt  # what Python makes of the signal, wherever it is

    monkeypatch.setattr("sys.stdin", names())
    assert main(["predict", "-"]) == 130
    out, err = capsys.readouterr()
    assert not out
    assert err == "\nsqzoo: stopped.\n"


def test_list_filters_sorts_and_says_the_same_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "*.ft_cifar10", "--sort", "top1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["top1"] for r in rows] == sorted((r["top1"] for r in rows), reverse=True)
    assert {r["tag"] for r in rows} == {t for t in read_manifest() if t.endswith(".ft_cifar10")}
    sq1 = next(r for r in rows if r["tag"] == "sq1.ft_cifar10")
    entry = read_manifest()["sq1.ft_cifar10"]
    assert (sq1["parameters"], sq1["size"]) == (entry.params, entry.resolution)
    assert sq1["mmacs"] == pytest.approx(entry.macs / 1e6, abs=0.05)
    assert main(["list", "sq1", "--sort", "mmacs"]) == 0
    shown = capsys.readouterr().out
    assert f"{entry.params:,}" in shown
    assert "fire_next" not in shown
    assert main(["list", "*.nothing"]) == 2


def test_list_measures_milliseconds_once_for_each_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "sq1.*", "--sort", "ms", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    times = {row["size"]: row["ms"] for row in rows}
    assert all(row["ms"] == times[row["size"]] > 0 for row in rows)
    assert [row["ms"] for row in rows] == sorted(row["ms"] for row in rows)
    assert main(["list", "sq1.*", "--ms"]) == 0  # remembered: the same figures again
    shown = capsys.readouterr().out
    assert " ms " in shown and all(f" {ms} " in shown for ms in times.values())


@pytest.mark.parametrize("tag", read_manifest())
def test_multiply_adds_are_those_of_the_network(tag: str) -> None:
    entry = get_weights(tag)
    assert entry.macs == multiply_adds(sqzoo.create_model(tag, device="meta"), entry.input_size)


def test_multiply_adds_are_those_counted_by_hand() -> None:
    """SqueezeNet 1.1's first convolution at 224 alone: 111 x 111 places, 64 kernels of 3 x 3 x 3."""
    macs = get_weights("squeezenet_cifar.paper_cifar10").macs
    assert macs > 111 * 111 * 64 * 27
    # timm and torchvision give 349 million multiply-adds for 1000 classes; the last layer then has 512000 at 13 x 13.
    assert macs == pytest.approx(349e6 - 13 * 13 * 512 * (1000 - 10), rel=0.01)


def test_info_shows_what_the_manifest_knows(capsys: pytest.CaptureFixture[str]) -> None:
    entry = get_weights("sq1")
    assert main(["info", "sq1"]) == 0
    shown = capsys.readouterr().out
    for fact in (entry.tag, entry.sha256, f"{entry.params:,}", entry.licence, str(entry.metrics["test_top1"])):
        assert fact in shown
    assert main(["info", "sq1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["sha256"], found["recipe"]) == (entry.sha256, entry.recipe)
    assert main(["info", "sq1.none"]) == 2
    assert "No weights named" in capsys.readouterr().err


def test_doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("SQZOO_CIFAR10", str(tmp_path))
    monkeypatch.setenv("SQZOO_TRUNKS", str(tmp_path))
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["essential"] == {"state": "all well", "broken": []}
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0] or torch.__version__
    assert "correct SQZOO_CIFAR10" in found["data"]["CIFAR-10"]
    assert "No squeezenet1_1 trunk" in found["data"]["ImageNet trunks"]
    assert "HF_HUB_OFFLINE" in found["network"]["Hub"]
    assert main(["doctor"]) == 0
    assert "all well" in capsys.readouterr().out


def test_doctor_finds_damaged_weights(tmp_path: Path) -> None:
    shutil.copytree(Path(sqzoo.__file__).parent, tmp_path / "sqzoo", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "sqzoo" / "weights" / "sq1.ft_cifar10.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    done = subprocess.run(
        [python(timm=False), "-m", "sqzoo", "doctor"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "is damaged" in done.stdout


def test_eval_gives_the_recorded_accuracy(
    cifar10_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On each fiftieth test image, so that it takes seconds: the same as `evaluate` on them."""
    test = data.cifar10("test", cifar10_root)[::50]
    monkeypatch.setattr("sqzoo.data.cifar10", lambda split, root: test)
    assert main(["eval", "squeezenet_cifar", "--data", str(cifar10_root)]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = evaluate(sqzoo.create_model("squeezenet_cifar", pretrained=True), test)
    assert (found["top1"], found["images"], found["split"]) == (expected.top1, 200, "test")
    assert main(["report", "squeezenet_cifar", "-o", str(tmp_path / "r.html")]) == 0
    assert f"{expected.top1:.2f} %" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert main(["report", "squeezenet_cifar", "-o", str(tmp_path / "no" / "r.html")]) == 2
    assert "No folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "value", ['start="sq1.tiny_cifar10"', "data=1", 'model="sq1"', "nosuch=1", "sizes=[[99999,1]]"]
)
def test_set_of_what_is_no_field_or_given_twice(value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "sq1", "--data", str(tmp_path), "--start", "sq1.ft_cifar10", "--set", value]
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("sqzoo: ") and not (tmp_path / "runs").exists()

"""The command line as a whole: help, mistakes, completion, and that help does not wait for torch."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from pkgutil import iter_modules

import pytest

import sqzoo.cli
from sqzoo.cli import main
from sqzoo.weights import read_manifest

COMMANDS = [m.name for m in iter_modules(sqzoo.cli.__path__) if not m.name.startswith("_")]


def sqzoo_process(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sqzoo", *words], capture_output=True, text=True, env=os.environ | variables
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Examples:" in shown
    assert f"sqzoo {command}" in shown.partition("Examples:")[2]


def test_help_names_every_command_and_imports_no_torch() -> None:
    done = sqzoo_process("--help", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    assert all(f" {command} " in done.stdout for command in COMMANDS)
    assert " typer" in done.stderr
    assert " torch" not in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["predit"], "Did you mean 'predict'?"),
        (["predict", "x.jpg", "--topp", "1"], "Did you mean --top?"),
        (["predict"], "Missing argument"),
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


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT to another process on Windows")
def test_ctrl_c_is_130(cifar10_root: Path, tmp_path: Path) -> None:
    words = ["train", "squeezenet_cifar", "--recipe", "finetune", "--data", str(cifar10_root), "--run", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "sqzoo", *words, "--set", 'start="random"'], stderr=subprocess.PIPE, text=True
    )
    try:
        for _ in range(600):
            if any(tmp_path.iterdir()):
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "sqzoo: stopped."

"""Every command under every condition: an exit code that the documentation knows, one sentence where it is not 0.

Nothing hangs, nothing is unpickled, and no file of others changes.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import typer
from PIL import Image

from sqzoo import hub
from sqzoo.cli import app
from sqzoo.registry import create_model
from sqzoo.weights import read_manifest
from tests.support import CAT, ROOT
from tests.support.commands import Commands, Condition, Result

TAGS = read_manifest()
# A tag of each kind: a whole file, a coded one, a head whose backbone is elsewhere (and nowhere here), none at all.
KINDS = ["sq1", "sq1.ft_cifar10", "sq1.tiny_cifar10", "squeezenet_cifar.paper_cifar10", "sq1.no_such", "resnet18"]
MODELS = [*KINDS, "./run", "./saved", "hf-hub:me/none", "local-dir:photos"]
OPTIONAL = ("scipy", "pyarrow", "onnx", "onnxscript", "onnxruntime", "openvino", "datasets", "matplotlib", "optuna")
WRONG = ["", "-1", "nan", "\x1b[2J", "a\0b", "../x"]
QUICK = ["--start", "sq1.ft_cifar10", "--set", "sizes=[[32,1]]"]
COMMANDS: dict[str, click.Command] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def usual(output: Path | str, model: str = "sq1") -> list[list[str]]:
    """Return commands of each kind but training, which write into a folder."""
    return [
        ["list"],
        ["list", "--json"],
        ["info", model],
        ["predict", "cat.jpg", "--model", model],
        ["predict", "photos", "--model", model, "--format", "jsonl"],
        ["predict", "cat.jpg", "--model", model, "-o", f"{output}/x.csv", "--format", "csv"],
        ["explain", "cat.jpg", "--model", model, "-o", f"{output}/heat.png"],
        ["export", model, f"{output}/x8.safetensors", "--format", "safetensors-int8"],
        ["eval", model, "--data", "photos"],
        ["report", model, "--data", "photos", "-o", f"{output}/x.html"],
        ["compress", model, "sq1.tiny_test", "--data", "photos"],
        ["push", model, "--repo", "me/x", "--no-transformers-js"],
        ["demo", model, "--port", "0"],
        ["cache"],
        ["cache", "--verify"],
        ["cache", "--remove", "x"],
        ["doctor"],
        ["doctor", "--json"],
        ["train", "sq1", "--run", f"{output}/cifar", "--data", "/no/cifar"],
    ]


def graphs(output: Path | str, model: str = "sq1") -> list[list[str]]:
    """Return the commands that make ONNX graphs, each of which takes seconds."""
    return [
        ["predict", "cat.jpg", "--model", model, "--backend", "onnxruntime"],
        ["export", model, f"{output}/x.onnx"],
        ["export", model, f"{output}/js", "--format", "transformers-js"],
    ]


def training(output: Path | str) -> list[list[str]]:
    """Return trainings on one's own images, by all options, and one that cannot be."""
    own = ["train", "sq1", "--data", "photos", *QUICK]
    return [
        [*own, "--run", f"{output}/run"],
        [*own, "--run", f"{output}/run", "--device", "cpu"],  # is finished, and says the same again
        [*own, "--run", f"{output}/all", "--all-layers", "--seed", "1", "--held-out", "0.5", "--cache",
         f"{output}/kept", "--precision", "float32", "--recipe", "finetune", "--set", "lr=0.001"],
        [*own, "--run", f"{output}/no", "--compile"],
    ]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures of two classes, a text under a picture's name, and what is none."""
    folder = tmp_path_factory.mktemp("matrix")
    folder.chmod(0o755)
    for parent in list(folder.parents)[:3]:
        if parent.stat().st_uid == os.geteuid():
            parent.chmod(parent.stat().st_mode | 0o055)
    random = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(4):
            pixels = random.integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{i}.png")
    shutil.copy(CAT, folder / "cat.jpg")
    (folder / "text.jpg").write_text("no picture")
    (folder / "eps.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    os.mkfifo(folder / "pipe.jpg")
    hub.save_pretrained(create_model("sq1", num_classes=2, mid=8), folder / "saved")
    return folder


class Runs:
    """A process for commands in `place`: what they came to when all is well, and with the core packages alone."""

    def __init__(self, place: Path, home: Path) -> None:
        self.commands, self.home = Commands(place, home), home
        # First: what the process has imported once, no process forked from it lacks.
        core, well = home / "core", home / "well"
        core.mkdir(), well.mkdir()
        self.core = self.check([*usual(core), *graphs(core), *training(core)], Condition(block=OPTIONAL))
        made = ["train", "sq1", "--data", "photos", "--run", "run", *QUICK]
        self.well = self.check([made, *usual(well), *graphs(well), *training(well)])

    def check(self, commands: list[list[str]], condition: Condition | None = None) -> dict[str, Result]:
        """Run commands, and check what holds for each whatever the condition."""
        results = self.commands.run(commands, condition)
        for words, result in results.items():
            told = f"{words}: {result.code}\n{result.out[-500:]}\n{result.err}"
            assert result.code in (0, 1, 2), told
            assert "Traceback" not in result.err + result.out, told
            assert not result.unpickled, told
            if result.code == 2:
                last = result.err.strip().splitlines()[-1]
                assert last.startswith("sqzoo: ") and last.endswith((".", "?")) and last.isprintable(), told
        return results


@pytest.fixture(scope="module")
def runs(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    runs = Runs(place, tmp_path_factory.mktemp("home"))
    yield runs
    runs.commands.close()


def state(folder: Path) -> dict[str, object]:
    """Return what is in a folder: files with their contents."""
    files = sorted(folder.rglob("*"))
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() if f.is_file() else None for f in files}


def test_all_is_well(runs: Runs) -> None:
    assert {words.split()[0] for words in runs.well} == COMMANDS.keys()
    failed = {words.split()[0] for words, result in runs.well.items() if result.code}
    # These need data or a network that are not there; of the trainings, two are mistakes.
    assert failed == {"eval", "report", "compress", "push", "demo", "cache", "train"}
    assert sum(result.code == 2 for words, result in runs.well.items() if words.startswith("train")) == 2


@pytest.mark.parametrize("model", MODELS)
def test_every_kind_of_model(model: str, runs: Runs, tmp_path: Path) -> None:
    results = runs.check(usual(tmp_path, model), Condition())
    known = model in ("sq1", "./run", "./saved", "sq1.ft_cifar10", "sq1.tiny_cifar10")
    for words in (f"predict cat.jpg --model {model}", f"explain cat.jpg --model {model} -o {tmp_path}/heat.png"):
        assert (results[words].code == 0) == known, results[words]
    if not known:
        assert not list(tmp_path.iterdir())


def test_every_tag(runs: Runs) -> None:
    commands = [["predict", "cat.jpg", "--model", tag, "--top", "1"] for tag in TAGS] + [["info", tag] for tag in TAGS]
    for words, result in runs.check(commands, Condition()).items():
        head = TAGS[words.split()[1 if words.startswith("info") else 3]].holds == "head"
        assert (result.code == 0) == (words.startswith("info") or not head)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_with_a_wrong_kind_of_value(command: str, runs: Runs, place: Path, tmp_path: Path) -> None:
    base = {
        "train": ["sq1", "--data", "photos", "--run", f"{tmp_path}/run", *QUICK],
        "predict": ["cat.jpg"],
        "explain": ["cat.jpg"],
        "info": ["sq1"],
        "export": ["sq1"],
        "eval": ["sq1", "--data", "photos"],
        "report": ["sq1", "--data", "photos"],
        "compress": ["sq1", "sq1.tiny_test", "--data", "photos"],
        "push": ["sq1", "--repo", "me/x"],
        "demo": ["sq1"],
    }.get(command, [])
    before = state(place)
    words = [[command, *base[:-1], value] for value in WRONG if base]
    for option in COMMANDS[command].params:
        name = option.opts[-1]
        if not isinstance(option, click.Option) or option.is_flag or name in ("--help",):
            continue
        # What a training takes in place of a folder's name, it may well make: those go elsewhere.
        values = [v for v in WRONG if (command, name) != ("train", "--run") or "\0" in v or v == ""]
        words += [[command, *base, name, value] for value in values]
    results = runs.check(words, Condition())
    assert not base or any(result.code == 2 for result in results.values())
    assert "hf_secret" not in str(results)
    after = state(place)
    assert {k: after.get(k) for k in before} == before
    for file in after.keys() - before.keys():  # what an odd name made, such as a folder "nan"
        subprocess.run(["rm", "-rf", "--", file], check=True)


def test_odd_files_and_values(runs: Runs, tmp_path: Path) -> None:
    odd = ["text.jpg", "eps.jpg", "pipe.jpg", "/dev/zero", "none.jpg", "a\0b", "\x1b[2J.jpg", "x" * 300]
    commands = [[*command, word] for word in odd for command in (["predict"], ["explain", "-o", f"{tmp_path}/x.png"])]
    outputs = ["x.gif", "/no/x.png", "photos", "/dev/null", "a\0.png", "pipe.jpg"]
    commands += [["explain", "cat.jpg", "-o", word] for word in outputs]
    commands += [["predict", "cat.jpg", "-o", word] for word in ("photos", "/dev/null", "pipe.jpg", "/no/x")]
    commands += [["push", "sq1", "--repo", "a/b", "--token", "hf_secret\n\x00"]]
    settings = [
        'lr="x"',
        "lr=NaN",
        "lr=-1",
        "sizes=5",
        "sizes=[[32]]",
        "sizes=null",
        'seed="x"',
        "seed=1e400",
        "lr",
        "=",
    ]
    train = ["train", "sq1", "--data", "photos", "--run", f"{tmp_path}/run"]
    commands += [[*train, "--set", word] for word in settings]
    results = runs.check(commands, Condition())
    assert all(result.code in (1, 2) for result in results.values()), results
    assert "hf_secret" not in "".join(result.err for result in results.values())
    assert not list(tmp_path.iterdir())


def test_core_alone(runs: Runs) -> None:
    results = runs.core
    assert results["predict cat.jpg --model sq1"].code == 0 and "cat" in results["predict cat.jpg --model sq1"].out
    asked = [words for words, result in results.items() if "pip install 'sqzoo[" in result.err]
    assert {words.split()[0] for words in asked} >= {"demo", "export", "eval", "report", "compress", "train"}


@pytest.mark.parametrize("limit", [1000, 100_000])
def test_full_disk(limit: int, runs: Runs, tmp_path: Path) -> None:
    """No file may have more bytes; what is refused leaves nothing half-written under its name."""
    made = [*usual(tmp_path), *training(tmp_path), *(graphs(tmp_path) if limit > 1000 else [])]
    results = runs.check(made, Condition(limit=limit))
    assert results["predict cat.jpg --model sq1"].code == 0
    assert results[f"export sq1 {tmp_path}/x8.safetensors --format safetensors-int8"].code == 2
    left = {f.name for f in tmp_path.rglob("*") if f.is_file()}
    assert not left & {"x8.safetensors", "x.onnx", "model.safetensors", "result.json"}
    assert not [name for name in left if name.startswith(".writing-")]


def test_nowhere_to_write_and_no_home(runs: Runs, place: Path) -> None:
    """A user without HOME and without an entry in /etc/passwd, in a folder of another's."""
    if os.geteuid():
        pytest.skip("another user can be taken on by root alone")
    before = state(place)
    unset = ("HOME", "SQZOO_CACHE", "XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME")
    results = runs.check([*usual(place), *graphs(place), *training(place)], Condition(user=54321, unset=unset))
    assert results["predict cat.jpg --model sq1"].code == 0
    assert state(place) == before


@pytest.mark.parametrize("stdout", ["closed", "/dev/full"])
def test_output_that_is_closed_or_full(stdout: str, runs: Runs, tmp_path: Path) -> None:
    results = runs.check([*usual(tmp_path), *training(tmp_path)[:1]], Condition(stdout=stdout))
    expected = {
        words.replace(str(runs.home / "well"), str(tmp_path)): result.code for words, result in runs.well.items()
    }
    for words, result in results.items():
        if result.code != expected[words]:
            assert stdout == "/dev/full" and result.code == 2, words  # it had something to print
    assert (results["predict cat.jpg --model sq1"].code == 0) == (stdout == "closed")


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", ">/dev/full", ">/dev/full 2>&1"])
def test_streams_as_a_shell_closes_them(closed: str, place: Path, tmp_path: Path) -> None:
    """As Python itself begins and ends: a process of its own."""
    words = f"{sys.executable} -m sqzoo list {closed}; echo $? > {tmp_path / 'code'}"
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-c", words], cwd=place, capture_output=True, text=True, env=env)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    assert (tmp_path / "code").read_text().strip() == ("2" if "full" in closed else "0")

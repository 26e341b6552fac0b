"""Records prove themselves: of a committed state, without a private path, with the weights that they are of."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from benchmarks.record import check, environments, texts, write_record
from sqzoo import environment, get_weights
from sqzoo.files import read_json
from tests.support import ROOT

RESULTS = ROOT / "benchmarks" / "results"
# Records of before the writer refused them, or with a part of before; one that is measured anew must go from here, too.
UNPROVEN = {
    *(f"runs/{model}.ft_cifar10.json" for model in ("fire_next", "sq1", "squeezenet_cifar")),
    *(f"size/tiny/{model}.tiny_cifar10.json" for model in ("fire_next", "sq1", "squeezenet_cifar")),
    *("accuracy/uncertainty.json", "size/codecs.json", "speed/latency.json"),
    *("tried/sq1.finetune_cutmix.json", "tried/sq1.finetune_flat_mean.json"),
}
# Folders of a private machine; and paths that are made up, for a test to refuse.
PRIVATE = re.compile(rb"(?<![\w.])/(?:work|home|root|Users|tmp|mnt|workspace)/[A-Za-z0-9_.-]+")
EXAMPLES = {"tests/test_hostile.py": {b"/tmp/x"}}


def clean(**changes: Any) -> dict[str, Any]:
    return {"environment": {"commit": "a" * 40, "versions": {"sqzoo": None}, "command": "python x.py"}} | changes


def test_what_is_written(tmp_path: Path) -> None:
    file = tmp_path / "new" / "record.json"
    write_record(file, clean(value=1), ["sq1"])
    found = read_json(file)
    assert found["value"] == 1 and found["environment"]["versions"]["sqzoo"]
    entry = get_weights("sq1")
    assert found["weights_sha256"] == {entry.tag: entry.sha256}
    write_record(file, clean(value=2), ["fire_next"])  # what was measured before stays known
    assert read_json(file)["weights_sha256"].keys() == {"sq1.ft_cifar10", "fire_next.ft_cifar10"}


@pytest.mark.parametrize("commit", ["a" * 40 + "+changes", None])
def test_an_uncommitted_state_is_refused(tmp_path: Path, commit: str | None) -> None:
    file = tmp_path / "record.json"
    write_record(file, clean(value=1))
    dirty = json.dumps({"part": {"environment": {"commit": commit, "versions": {"sqzoo": None}}}})
    with pytest.raises(SystemExit, match=r"commit the changes") as caught:
        write_record(file, clean(value=2) | json.loads(dirty))
    assert "\n" not in str(caught.value) and read_json(file)["value"] == 1
    file.write_text(dirty)  # of before
    write_record(file, clean(value=3) | json.loads(dirty))


def test_an_environment_is_added_and_it_is_this_checkouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_commit", lambda: "b" * 40)
    write_record(tmp_path / "record.json", {"value": 1})
    found = read_json(tmp_path / "record.json")["environment"]
    assert found["commit"] == "b" * 40 and found["cpu"] and found["command"].startswith("python")


@pytest.mark.parametrize(
    "text",
    [
        "/work/x/y",
        "see /home/me/data",
        "--data=/root/x/y",
        'start="/tmp/a/b"',
        "~/data/x",
        "C:\\data\\x",
        "['/srv/a/b']",
    ],
)
def test_an_absolute_path_is_refused(tmp_path: Path, text: str) -> None:
    for record in (clean(note=text), clean(rows=[{"x": [text]}]), clean(**{text: 1})):
        with pytest.raises(SystemExit, match="absolute path"):
            write_record(tmp_path / "record.json", record)
    assert not (tmp_path / "record.json").exists()


@pytest.mark.parametrize(
    "text", ["runs/x/y", "https://github.com/a/b", "../x/y", "a / b / c", "/app.js", "p1/p2", "1/2"]
)
def test_other_texts_are_not_paths(text: str) -> None:
    check(clean(note=text))


def test_the_command_names_no_folder_of_this_machine() -> None:
    words = {
        "/work/x/cifar10": "cifar10",
        "--data=/home/me/cifar": "--data=cifar",
        'start="/root/x.safetensors"': 'start="x.safetensors"',
        "~/data/x": "x",
        **{word: word for word in ("https://a.org/b/c", "a/b/c", "../x/y", "-m", "sizes=[[224,2]]")},
    }
    assert {word: environment._short(word) for word in words} == words


def test_all_records_name_a_commit_and_no_folder() -> None:
    unproven = set()
    for file in RESULTS.rglob("*.json"):
        record = json.loads(file.read_text(encoding="utf-8"))
        assert list(texts(record))
        try:
            check(record)
        except SystemExit as e:
            assert "commit" in str(e), file
            unproven.add(str(file.relative_to(RESULTS)))
        if not file.name.startswith(("gpu_estimate",)):
            assert list(environments(record)), f"{file.name} does not say what made it"
    assert unproven == UNPROVEN


def private(name: str, data: bytes) -> list[str]:
    found = set(PRIVATE.findall(data)) - EXAMPLES.get(name, set())
    return [f"{name}: {path.decode()}" for path in sorted(found)]


def test_no_tracked_file_names_a_folder_of_a_private_machine() -> None:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if done.returncode:
        pytest.skip("needs a git checkout, to know which files are the project's")
    names = [name for name in done.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
    assert len(names) > 300
    names.remove("tests/benchmarks/test_record.py")  # this file: its examples are refused by name
    assert [line for name in names for line in private(name, (ROOT / name).read_bytes())] == []
    assert private("x", b'"/work/main/x"') == ["x: /work/main"]  # it can fail


def test_neither_does_the_wheel(tmp_path: Path) -> None:
    pytest.importorskip("hatchling.build", reason="needs hatchling, from the test extra")
    command = [sys.executable, "-c", f"import hatchling.build; hatchling.build.build_wheel({str(tmp_path)!r})"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        assert "sqzoo/weights/manifest.json" in archive.namelist()
        assert [line for name in archive.namelist() for line in private(name, archive.read(name))] == []

"""README.md does what it says, and its tables and those of docs/ are the recorded ones."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

import sqzoo
from benchmarks import table2
from tests.support import ROOT
from tests.support.fork import python
from tools.readme import BLOCKS, shown, write_into

README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PLACES = r"https://(?:github\.com/org/sqzoo/(?:blob|tree)|raw\.githubusercontent\.com/org/sqzoo)/main/([^)]+)"


def test_it_is_short() -> None:
    assert len(README.encode()) <= 8192


def test_the_two_set_up_commands_stand_where_ci_takes_them_from() -> None:
    first, second = (line for line in README.splitlines() if line.startswith("python3 -m venv"))
    assert first.endswith("sqzoo predict examples/cat.jpg") and "-m pytest" in second


def test_links_work_on_pypi_and_lead_to_files() -> None:
    assert all(target.startswith("https://") for target in re.findall(r"\]\(([^)]+)\)", README))
    paths = re.findall(PLACES, README)
    assert len(paths) > 10
    assert not [path for path in paths if not (ROOT / path).exists()]


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_python_block_runs(block: str, tmp_path: Path) -> None:
    own = os.environ | {"SQZOO_CACHE": str(tmp_path)}
    done = subprocess.run([python(), "-c", block], cwd=ROOT, capture_output=True, text=True, env=own)
    assert done.returncode == 0, done.stderr
    if block == PYTHON[0]:
        assert done.stdout.startswith("[[Prediction(label='cat'"), done.stdout + done.stderr


@pytest.mark.parametrize(("page", "name"), BLOCKS, ids=[f"{page.name}-{name}" for page, name in BLOCKS])
def test_tables_are_the_recorded_ones(page: Path, name: str) -> None:
    text = BLOCKS[page, name]()
    assert text and shown(page, name) == text


def test_every_marker_is_written_by_something() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    names = {(p, name) for p in pages for name in re.findall(r"^<!-- /(\w+) -->$", p.read_text(encoding="utf-8"), re.M)}
    assert names == set(BLOCKS)


def test_a_block_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nafter\n", encoding="utf-8")
    write_into(page, "a", "new\nlines")
    assert page.read_text(encoding="utf-8") == "before\n<!-- a -->\nnew\nlines\n<!-- /a -->\nafter\n"
    assert shown(page, "a") == "new\nlines"


def test_table_and_manifest_agree() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "table2.json").read_text(encoding="utf-8"))
    manifest = json.loads((ROOT / "sqzoo" / "weights" / "manifest.json").read_text(encoding="utf-8"))["weights"]
    assert sorted(results["tags"]) == sorted(e["tag"] for e in manifest)
    for entry in manifest:
        row = results["tags"][entry["tag"]]
        assert row["weights_sha256"] == entry["sha256"]
        assert (entry["metrics"]["test_top1"], entry["metrics"]["test_loss"]) == (row["top1"], row["loss"])


def test_a_tag_off_its_record_is_named() -> None:
    rows = {"a.b": {"top1": 90.0, "recorded_top1": 90.04}, "c.d": {"top1": 89.9, "recorded_top1": 90.0}}
    assert table2.drifted(rows) == ["c.d: measured 89.90 %, recorded 90.00 %"]


@pytest.mark.slow
def test_evaluating_a_tag_gives_its_record(trunks: Path, cifar10_root: Path) -> None:
    words = ["--only", "squeezenet_cifar.ft_cifar10", "--data", str(cifar10_root), "--trunk", str(trunks)]
    done = subprocess.run([python(), "benchmarks/table2.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    recorded = sqzoo.get_weights("squeezenet_cifar.ft_cifar10").metrics["test_top1"]
    assert f"top-1 {recorded:.2f} %" in done.stderr

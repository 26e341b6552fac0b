"""The README does what it says: its Python blocks run, and its table is the recorded one."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from readme import shown

import sqzoo

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_block_runs(block: str, tmp_path: Path) -> None:
    own = os.environ | {"SQZOO_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True, env=own)
    assert done.returncode == 0, done.stderr


def test_first_block_sees_the_cat() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKS[0]], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("[[Prediction(label='cat'"), done.stdout + done.stderr


def _table2() -> ModuleType:
    spec = importlib.util.spec_from_file_location("table2", ROOT / "benchmarks" / "table2.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_is_the_recorded_one() -> None:
    table2 = _table2()
    results = json.loads((ROOT / "benchmarks" / "results" / "table2.json").read_text(encoding="utf-8"))
    shown = README.partition("<!-- table2 -->\n")[2].partition("\n<!-- /table2 -->")[0]
    assert shown == table2.render(results)
    assert results["verdicts"] == table2.verdicts(results)


def test_table_and_manifest_agree() -> None:
    results = json.loads((ROOT / "benchmarks" / "results" / "table2.json").read_text(encoding="utf-8"))
    manifest = json.loads((ROOT / "sqzoo" / "weights" / "manifest.json").read_text(encoding="utf-8"))["weights"]
    assert sorted(results["tags"]) == sorted(e["tag"] for e in manifest)
    for entry in manifest:
        row = results["tags"][entry["tag"]]
        assert row["weights_sha256"] == entry["sha256"]
        assert (entry["metrics"]["test_top1"], entry["metrics"]["test_loss"]) == (row["top1"], row["loss"])


@pytest.mark.parametrize("name", ["own_pictures", "score_many"])
def test_what_benchmarks_write_is_the_recorded(name: str) -> None:
    benchmark, results = importlib.import_module(name), ROOT / "benchmarks" / "results" / f"{name}.json"
    known = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
    assert shown(name) == benchmark.render(known)


def test_a_tag_off_its_record_is_named() -> None:
    rows = {"a.b": {"top1": 90.0, "recorded_top1": 90.04}, "c.d": {"top1": 89.9, "recorded_top1": 90.0}}
    assert _table2().drifted(rows) == ["c.d: measured 89.90 %, recorded 90.00 %"]


def test_evaluating_a_tag_gives_its_record(trunks: Path, cifar10_root: Path) -> None:
    words = ["--only", "squeezenet_cifar.ft_cifar10", "--data", str(cifar10_root), "--trunk", str(trunks)]
    done = subprocess.run([sys.executable, "benchmarks/table2.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    recorded = sqzoo.get_weights("squeezenet_cifar.ft_cifar10").metrics["test_top1"]
    assert f"top-1 {recorded:.2f} %" in done.stderr

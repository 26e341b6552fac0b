"""The example that scores very many pictures, run by its real engine on a few."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sqzoo import create_model
from sqzoo.predict import predict
from tests.support import ROOT

EXAMPLE = ROOT / "examples" / "score_many.py"


def score_many(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE), *map(str, words), "--part", "3", "--workers", "2"]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "below" / "it").mkdir(parents=True)
    for i in range(7):
        pixels = np.random.default_rng(i).integers(0, 256, (40 + i, 50, 3), np.uint8)
        Image.fromarray(pixels).save(folder / ("below/it" if i % 2 else "") / f"{i} ä.png")
    (folder / "broken.jpg").write_text("no picture")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.mark.slow
def test_scores_are_predicts_and_a_second_start_does_what_is_missing(pictures: Path, tmp_path: Path) -> None:
    done = score_many(pictures, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    parts = sorted((tmp_path / "out").iterdir())
    assert [p.name for p in parts] == [f"part-0000{i}-of-00003.parquet" for i in range(3)]
    rows = [row for part in parts for row in pq.read_table(part).to_pylist()]
    assert sorted(row["file"] for row in rows) == sorted(map(str, [*pictures.rglob("*.png"), pictures / "broken.jpg"]))
    read = [row for row in rows if row["error"] is None]
    # `optimize` may take bf16 where the CPU has it: measured, 0.0015 apart.
    near = 0.01 if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else 1e-5
    for row, wanted in zip(read, predict(create_model("sq1", True), [row["file"] for row in read]), strict=True):
        assert row["label"] == wanted[0].label and abs(row["probability"] - wanted[0].probability) < near
    (broken,) = (row for row in rows if row["error"])
    assert (
        broken["file"].endswith("broken.jpg") and broken["label"] is None and "not a readable image" in broken["error"]
    )

    times = [p.stat().st_mtime_ns for p in parts]
    content = parts[1].read_bytes()
    parts[1].unlink()
    done = score_many(pictures, tmp_path / "out")
    assert done.stdout.count("pictures") == 1 and parts[1].name in done.stdout
    assert pq.read_table(parts[1]).to_pylist() == rows[3:6] and len(content) == parts[1].stat().st_size
    assert [p.stat().st_mtime_ns for p in parts][::2] == times[::2]


@pytest.mark.slow
def test_a_folder_without_pictures_is_one_sentence(tmp_path: Path) -> None:
    done = score_many(tmp_path, tmp_path / "out")
    assert done.returncode == 1 and done.stderr.startswith("No pictures in ") and done.stderr.count("\n") == 1

"""Commands times conditions: an exit code that the documentation knows, and one sentence where it is not 0.

A process for each condition runs all of its commands, since to start one takes seconds.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sqzoo.weights import read_manifest
from tests.support import ROOT

CAT = str(ROOT / "examples" / "cat.jpg")
TAGS = list(read_manifest())
OPTIONAL = ("scipy", "pyarrow", "onnx", "onnxscript", "onnxruntime", "openvino", "datasets", "matplotlib")
RUNNER = """
import contextlib, io, json, os, resource, sys
block, limit, user, warm, commands = json.loads(sys.stdin.read())
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in block else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import sqzoo.cli
def run(words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = sqzoo.cli.main(words)
        except BaseException as e:
            code = f"{type(e).__name__}: {e}"
    return json.dumps([words, code, out.getvalue(), err.getvalue()])
for words in warm:
    run(words)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
if user:
    os.setgid(user), os.setuid(user)
for words in commands:
    line = run(words)
    os.write(1, line.encode() + b"\\n")
"""


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
    return folder


def check(
    commands: list[list[str]],
    cwd: Path,
    *,
    block: tuple[str, ...] = (),
    limit: int = 0,
    user: int = 0,
    warm: list[list[str]] | None = None,
    drop: tuple[str, ...] = (),
    **variables: str,
) -> dict[str, tuple[int, str, str]]:
    """Run the commands under a condition; return exit code, output and errors of each by its words."""
    nowhere = {"HF_HUB_OFFLINE": "1", "SQZOO_TRUNKS": "/no/trunks", "NPM_CONFIG_REGISTRY": "http://127.0.0.1:9"}
    env = {k: v for k, v in os.environ.items() if k not in drop and k != "SQZOO_CIFAR10"} | nowhere
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"} | variables
    given = json.dumps([block, limit, user, warm or [], commands])
    command = [sys.executable, "-c", RUNNER]
    done = subprocess.run(command, input=given, capture_output=True, text=True, cwd=cwd, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    found = {}
    for line in done.stdout.splitlines():
        assert line.startswith("["), line
        words, code, out, err = json.loads(line)
        told = f"{words}: {code}\n{err}"
        assert code in (0, 1, 2), told
        assert "Traceback" not in err + out, told
        if code == 2:
            last = err.strip().splitlines()[-1]
            assert last.startswith("sqzoo: ") and last.endswith((".", "?")) and last.isprintable(), told
        found[" ".join(words)] = code, out, err
    assert len(found) == len(commands)
    return found


def usual(output: Path) -> list[list[str]]:
    """Return a command of each kind, what they write in `output`."""
    return [
        ["list"],
        ["info", "sq1"],
        ["predict", "cat.jpg"],
        ["predict", "cat.jpg", "-o", str(output / "x.csv"), "--format", "csv"],
        ["explain", "cat.jpg", "-o", str(output / "heat.png")],
        ["export", "sq1", str(output / "x.safetensors"), "--format", "safetensors-int8"],
        ["export", "sq1", str(output / "x.onnx")],
        ["eval", "sq1", "--data", "photos"],
        ["report", "sq1", "--data", "photos", "-o", str(output / "x.html")],
        ["compress", "sq1.ft_cifar10", "sq1.tiny_test", "--data", "photos"],
        ["push", "sq1", "--repo", "me/x"],
        ["train", "sq1", "--data", "photos", "--run", str(output / "run"), "--start", "sq1.ft_cifar10", "--set",
         "sizes=[[32,1]]"],
        ["demo", "sq1"],
        ["cache"],
        ["cache", "--remove", "x"],
    ]  # fmt: skip


def test_every_tag_and_every_wrong_kind(place: Path, tmp_path: Path) -> None:
    odd = ["text.jpg", "eps.jpg", "pipe.jpg", "photos", "/dev/zero", "none.jpg", "a\0b", "\x1b[2J.jpg", "x" * 300]
    options = [
        ["predict", "cat.jpg", option, value]
        for option in ("--model", "--top", "--format", "--batch-size", "--backend", "--trunk")
        for value in ("", "-1", "0", "nan", "x", "../x", "\x1b[2J", "a\0b", "hf-hub:", "local-dir:", "1e9")
    ]
    commands = [["predict", "cat.jpg", "--model", tag, "--top", "1"] for tag in TAGS]
    commands += [["info", tag] for tag in TAGS] + [["predict", word] for word in odd] + options
    commands += [[*words, "\x1b[31m"] for words in (["info"], ["eval"], ["report"], ["export"], ["explain"], ["list"])]
    commands += [["export", "sq1", str(tmp_path / "x"), "--format", word] for word in ("", "onnx", "\x1b", "x")]
    commands += [
        ["explain", "cat.jpg", "-o", word] for word in ("x.gif", "/no/x.png", "photos", "/dev/null", "a\0.png")
    ]
    commands += [["push", "sq1", "--repo", "a/b", "--token", "hf_secret\n\x00"], ["push", "sq1", "--repo", "\x1b"]]
    found = check(commands, place, SQZOO_CACHE=str(tmp_path / "cache"), HOME=str(tmp_path))
    assert found["predict photos"][0] == 0
    assert all(found[f"predict {word}"][0] in (1, 2) for word in odd if word != "photos")
    assert "hf_secret" not in "".join(err for _, _, err in found.values())


def test_core_alone(place: Path, tmp_path: Path) -> None:
    found = check(usual(tmp_path), place, block=OPTIONAL, SQZOO_CACHE=str(tmp_path / "cache"), HOME=str(tmp_path))
    assert found["predict cat.jpg"][0] == 0 and "cat" in found["predict cat.jpg"][1]
    for words in ("demo sq1", f"export sq1 {tmp_path / 'x.onnx'}"):
        assert found[words][0] == 2 and "pip install 'sqzoo[" in found[words][2]


@pytest.mark.slow
def test_full_disk(place: Path, tmp_path: Path) -> None:
    """No file may have more than 1,000 bytes; what is refused leaves nothing half-written under its name."""
    commands = usual(tmp_path)
    found = check(commands, place, limit=1000, SQZOO_CACHE=str(tmp_path / "cache"), HOME=str(tmp_path))
    assert found["predict cat.jpg"][0] == 0
    assert not (tmp_path / "heat.png").exists() and not (tmp_path / "x.safetensors").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="another user can be taken on by root alone")
def test_nowhere_to_write_and_no_home(place: Path, tmp_path: Path) -> None:
    """A user without HOME and without an entry in /etc/passwd, in a folder of another's.

    All is imported before, since that user may not be able to read where Python lies.
    """
    before = sorted(str(f) for f in place.rglob("*"))
    drop = ("HOME", "SQZOO_CACHE", "XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME")
    without = slice(0, -3), slice(-2, None)  # the page, which would be served where an earlier start kept its engine
    warm, commands = ([w for part in without for w in usual(folder)[part]] for folder in (tmp_path, place))
    found = check(commands, place, user=54321, warm=warm, drop=drop)
    assert found["predict cat.jpg"][0] == 0
    assert sorted(str(f) for f in place.rglob("*")) == before


STREAMS = (">/dev/full", "<&- >&- 2>&-", ">/dev/full 2>&1")


@pytest.mark.parametrize("closed", [pytest.param(c, marks=[pytest.mark.slow] * (i > 0)) for i, c in enumerate(STREAMS)])
def test_streams_that_are_closed_or_full(closed: str, place: Path, tmp_path: Path) -> None:
    words = f"{sys.executable} -m sqzoo predict cat.jpg {closed}; echo $? > {tmp_path / 'code'}"
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-c", words], cwd=place, capture_output=True, text=True, env=env)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    assert (tmp_path / "code").read_text().strip() == ("2" if "full" in closed else "0")

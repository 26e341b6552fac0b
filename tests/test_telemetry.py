"""The runtimes report nothing: a trace of the system calls of a process that uses them, and its empty home folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

OPT_OUTS = ("CI", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY")

# Another machine, be it a name server, is reached by connect, or by sendto without one before it.
CONNECTS = """
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", ("127.0.0.1", 9))
"""
RUNTIMES = """
import warnings
import torch, sqzoo
from tests.support import ROOT
from sqzoo.export import export
warnings.simplefilter("error")
model = sqzoo.create_model("sq1")
images = torch.zeros(1, 3, 32, 32)
for backend in ("onnxruntime", "openvino"):
    fast = sqzoo.optimize(model, backend, input_size=32)
    fast(images)
export(model, "model.xml", "openvino")
"""


def trace(code: str, home: Path) -> list[str]:
    """Run code in an empty home folder; return its connections and the files that it left there."""
    calls = home.parent / "calls"
    env = {k: v for k, v in os.environ.items() if k not in OPT_OUTS}
    env |= {"HOME": str(home), "SQZOO_CACHE": str(home.parent / "cache"), "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = str(ROOT)
    words = [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-e",
        "trace=connect,sendto",
        "-e",
        "signal=none",
        "-o",
        str(calls),
    ]
    subprocess.run([*words, sys.executable, "-c", code], cwd=home.parent, env=env, check=True)
    files = [str(file.relative_to(home)) for file in home.rglob("*") if file.is_file()]
    return [line for line in calls.read_text().splitlines() if "AF_INET" in line] + files


@pytest.fixture
def home(tmp_path: Path) -> Path:
    if not shutil.which("strace"):
        pytest.skip("needs strace")
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.mark.slow
def test_the_runtimes_connect_to_nothing_and_leave_nothing(home: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    assert trace(RUNTIMES, home) == []


def test_the_trace_sees_a_connection(home: Path) -> None:
    (seen,) = trace(CONNECTS, home)
    assert "127.0.0.1" in seen

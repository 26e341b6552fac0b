"""transformers.js, the npm package pinned in transformers_js/, installed once in a cache outside the repository."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

_OWN = Path(__file__).parent / "transformers_js"
# npm's words for a registry that cannot be reached; any other failure is one of the test.
_NO_NETWORK = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT", "ENETUNREACH", "ERR_SOCKET_TIMEOUT")


def installed() -> Path:
    """Return a folder with the package and our script; skip the test where Node or npm's registry is not to be had."""
    programs = {name: shutil.which(name) for name in ("node", "npm")}
    for name, found in programs.items():
        if found is None:
            pytest.skip(f"needs {name} (Node 20)")
    files = sorted(_OWN.iterdir())
    key = hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sqzoo-tests"
    place, complete = cache / f"transformers-js-{key}", cache / f"transformers-js-{key}.complete"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / ".lock"):
        if complete.exists():
            return place
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for file in files:
            shutil.copy(file, place)
        # No scripts: onnxruntime-node's would fetch CUDA's libraries from elsewhere.
        words = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
        done = subprocess.run([str(programs["npm"]), *words], cwd=place, capture_output=True, text=True, timeout=300)
        if done.returncode and any(word in done.stderr for word in _NO_NETWORK):
            pytest.skip(f"needs npm's registry: {done.stderr.strip().splitlines()[0]}")
        assert done.returncode == 0, done.stderr
        complete.touch()
    return place


def classify(model: str, files: list[Path], **where: Any) -> list[dict[str, float]]:
    """Return what transformers.js' pipeline says of each file, scores by label.

    Args:
        model: its name.
        files: pictures.
        where: folder= that holds the model, and nothing is fetched; or host=, a Hub's address, and cache=, a folder;
            dtype="q8" for the quantized file.
    """
    place = installed()
    asked = {"model": model, "files": [str(f) for f in files]} | where
    done = subprocess.run(
        ["node", "classify.mjs"], input=json.dumps(asked), cwd=place, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no warning either
    return json.loads(done.stdout)  # type: ignore[no-any-return]

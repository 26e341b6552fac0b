"""torch.hub as a user has it: the real client against GitHub on loopback (github_server.py), each in a fresh process.

What is served is what `git archive` makes of the checkout, as GitHub does.
"""

import io
import json
import os
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import sqzoo
from sqzoo.files import tensors_sha256
from tests.support import ROOT
from tests.support.fork import python
from tests.support.github_server import LIMITED, GitHubServer

NAMES = ["alexnet_cifar", "fire_next", "sq1", "squeezenet_cifar"]
Run = Callable[..., dict[str, Any]]


def git(*words: str) -> bytes:
    identity = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(["git", *words], cwd=ROOT, env=os.environ | identity, capture_output=True)
    if done.returncode:
        pytest.skip("needs a git checkout, to make the archive as GitHub does")
    return done.stdout


@pytest.fixture(scope="module")
def github(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitHubServer]:
    """Serves our repository, with what is changed in the checkout, and one of others with names that many choose."""
    changed = git("stash", "create").decode().strip() or "HEAD"
    ours = git("archive", "--format=zip", "--prefix=org-sqzoo-1234567/", changed)
    other = {
        "hubconf.py": "import models, utils, tests, benchmarks, examples\n"
        "def where():\n    return [m.__file__ for m in (models, utils, tests, benchmarks, examples)]\n",
        **{f"{name}/__init__.py": "" for name in ("models", "tests", "benchmarks", "examples")},
        "utils.py": "",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("other-zoo-7654321/", "")
        for name, text in other.items():
            archive.writestr(f"other-zoo-7654321/{name}", text)
    with GitHubServer(tmp_path_factory.mktemp("github")) as running:
        running.put("org/sqzoo", {"main": ours, "v2": ours})
        running.put("other/zoo", {"main": buffer.getvalue()})
        yield running


@pytest.fixture()
def run(github: GitHubServer, tmp_path: Path) -> Run:
    """Run Python with torch.hub at hand; return what it collects in `found`, and its output as `out` and `err`."""
    start = (
        "import json, os, sys, torch\nfrom torch import hub\nfound = {}\n"
        "def error(call):\n    try:\n        call()\n    except Exception as e:\n"
        "        return f'{type(e).__name__}: {e}'\n"
        "from importlib.util import find_spec\ndef importable():\n"
        "    return [n for n in ('tests', 'benchmarks', 'examples', 'hubconf', 'conftest') if find_spec(n)]\n"
        "before = importable()  # an editable install brings them in\n"
    )
    (tmp_path / "empty").mkdir()

    def call(code: str, answers: str = "", **environment: str) -> dict[str, Any]:
        env = {k: v for k, v in os.environ.items() if k not in ("GITHUB_TOKEN", "PYTHONPATH")} | github.env
        env |= {"TORCH_HOME": str(tmp_path / "torch höme"), "PYTHONWARNINGS": "ignore", **environment}
        env |= {"PYTHONIOENCODING": "utf-8", "SQZOO_TRUNKS": "nowhere"}
        end = f"\njson.dump(found, open({str(tmp_path / 'found.json')!r}, 'w'))"
        done = subprocess.run(
            [python(timm=False), "-c", start + code + end],
            input=answers,
            cwd=tmp_path / "empty",
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads((tmp_path / "found.json").read_text()) | {"out": done.stdout, "err": done.stderr}

    return call


def test_load_trust_reload_list_and_help(run: Run, github: GitHubServer, tmp_path: Path) -> None:
    found = run(
        """
found["no"] = error(lambda: hub.load("org/sqzoo", "sq1"))
found["there after no"] = os.path.exists(hub.get_dir() + "/org_sqzoo_main")
found["parameters"] = sum(p.numel() for p in hub.load("org/sqzoo", "sq1", trust_repo="check", mid=64).parameters())
found["trusted"] = open(hub.get_dir() + "/trusted_list").read()
for trust in ("check", None, True):
    hub.load("org/sqzoo", "fire_next", trust_repo=trust, force_reload=trust is None, skip_validation=True)
found["again"] = error(lambda: hub.load("org/sqzoo", "sq1", trust_repo=False))
model = hub.load("org/sqzoo", "sq1", pretrained=True)
import sqzoo.files
found["digest"] = sqzoo.files.tensors_sha256(model.state_dict())
found["list"] = hub.list("org/sqzoo")
found["help"] = hub.help("org/sqzoo", "sq1")
found["file"] = sqzoo.__file__
found["importable"] = importable() == before
inside = {n for n, m in sys.modules.items() if hub.get_dir() in (getattr(m, "__file__", None) or "")}
found["modules"] = sorted({n.partition(".")[0] for n in inside})
found["path"] = [p for p in sys.path if hub.get_dir() in p]
found["other"] = hub.load("other/zoo", "where", trust_repo=True)
""",
        answers="n\ny\nn\n",
    )
    place = str(tmp_path / "torch höme" / "hub" / "org_sqzoo_main")
    assert found["no"] == "Exception: Untrusted repository." and not found["there after no"]
    assert found["again"] == "Exception: Untrusted repository."  # False asks, trusted or not
    assert found["out"].count("Do you trust this repository") == 3
    assert found["trusted"] == "org_sqzoo\n"
    assert found["parameters"] == 797_066
    assert len(github.paths("codeload.github.com/org/sqzoo")) == 2  # the first, and force_reload
    assert found["digest"] == tensors_sha256(sqzoo.create_model("sq1", pretrained=True).state_dict())
    assert found["list"] == NAMES and "Table 3" in found["help"]
    assert found["file"].startswith(place)
    assert found["modules"] == ["sqzoo"] and found["importable"] and found["path"] == []
    assert all(str(tmp_path / "torch höme" / "hub" / "other_zoo_main") in file for file in found["other"])


@pytest.mark.slow
def test_after_another_repository_and_offline(run: Run, github: GitHubServer) -> None:
    """Others' `models`, `utils` and `tests` stay in sys.modules and are not ours; the cache needs no network."""
    found = run(
        """
hub.load("other/zoo", "where", trust_repo=True)
model = hub.load("org/sqzoo", "sq1", trust_repo=True, pretrained=True)
found["parameters"] = sum(p.numel() for p in model.parameters())
hub.load("org/sqzoo:v2", "sq1", trust_repo=True)
"""
    )
    assert found["parameters"] == 792_618
    assert "org_sqzoo_main" in found["err"] and "already imported" in found["err"] and "org_sqzoo_v2" in found["err"]
    before = len(github.requests)
    offline = run(
        """
for name in ("org/sqzoo", "org/sqzoo:main"):
    found[name] = sum(p.numel() for p in hub.load(name, "sq1", pretrained=True).parameters())
found["list"] = hub.list("org/sqzoo")
found["help"] = hub.help("org/sqzoo", "fire_next")
found["none"] = error(lambda: hub.load("org/none", "sq1", trust_repo=True))
""",
        https_proxy="http://127.0.0.1:9",
        HTTPS_PROXY="http://127.0.0.1:9",
    )
    assert len(github.requests) == before
    assert offline["org/sqzoo"] == offline["org/sqzoo:main"] == 792_618
    assert offline["list"] == NAMES and "Fire-Next" in offline["help"]
    assert "no internet connection" in offline["none"]
    assert "already imported" not in offline["err"]


def test_rate_limit_and_token(run: Run, github: GitHubServer) -> None:
    """The README's advice: a token is sent and lifts the limit, and skip_validation spares the limited calls."""
    github.limited = True
    first = len(github.requests)
    try:
        found = run(
            """
from urllib.error import HTTPError
found["limited"] = error(lambda: hub.list("org/sqzoo", trust_repo=True))
found["spared"] = hub.list("org/sqzoo", trust_repo=True, skip_validation=True)
os.environ["GITHUB_TOKEN"] = "bad"
try:
    hub.list("org/sqzoo", trust_repo=True, force_reload=True)
except HTTPError as e:
    found["bad"] = [e.code, e.headers["X-RateLimit-Remaining"], json.load(e)["message"]]
os.environ["GITHUB_TOKEN"] = "good"
found["lifted"] = hub.list("org/sqzoo", trust_repo=True, force_reload=True)
found["unknown"] = error(lambda: hub.list("org/sqzoo:nowhere", trust_repo=True, force_reload=True))
"""
        )
    finally:
        github.limited = False
    assert found["limited"].startswith(("KeyError: 'Authorization'", "HTTPError"))  # torch 2.14 says the former
    assert found["bad"] == [403, "0", LIMITED]  # without the bad token it tries again
    assert found["spared"] == found["lifted"] == NAMES
    assert found["unknown"].startswith("ValueError: Cannot find nowhere in https://github.com/org/sqzoo")
    sent = [(a.partition("/")[0], t) for a, t in github.requests[first:]]
    assert ("api.github.com", "token good") in sent
    assert all(token is None for host, token in sent if host != "api.github.com")

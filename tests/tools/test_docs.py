"""The documentation: it builds without a warning, every block of code in it runs, and its trial of a newcomer works."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sqzoo
from sqzoo.weights import read_manifest
from tests.support import ROOT
from tests.support.fork import python
from tests.support.hub_server import HubServer
from tools import screenshots

DOCS = ROOT / "docs"
PAGES = sorted(p.name for p in DOCS.glob("*.md"))
NOT_RUN = re.compile(r"<!-- not run(?: here)?: (.+) -->")
# How many blocks each page has that are not run, each with its reason before it; one more must be added here, too.
KEPT_BACK = {
    **{"architecture.md": 3, "benchmarks.md": 1, "browser.md": 2, "deploy.md": 2, "hub.md": 1, "index.md": 2},
    **{"paper.md": 1, "own_images.md": 1, "phones.md": 3, "scale.md": 2, "seeing.md": 1, "switching.md": 1},
    "training.md": 1,
}


@dataclass(frozen=True)
class Block:
    language: str
    title: str
    code: str
    reason: str  # why it is not run; empty where it is


def blocks(page: str) -> list[Block]:
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.finditer(r"(?:^(<!-- not run.*-->)\n)?^```(.*)\n((?:.*\n)*?)```$", text, re.MULTILINE)
    result = []
    for comment, info, code in (m.groups() for m in found):
        language, _, rest = info.partition(" ")
        title = re.search(r'title="([^"]*)"', rest)
        reason = NOT_RUN.match(comment or "")
        result.append(Block(language, title[1] if title else "", code, reason[1] if reason else ""))
    return result


def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=_environment(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    for page in PAGES:
        name = "index.html" if page == "index.md" else f"{page.removesuffix('.md')}/index.html"
        html = (tmp_path / "site" / name).read_text(encoding="utf-8")
        assert "{{" not in html, page
        assert not re.search(r'(?:src|rel="stylesheet" href)="https?://', html), f"{page} loads from another host"
    for file in DOCS.glob("images/*.svg"):
        assert not re.search(r"url\(.?http|href=.http", file.read_text(encoding="utf-8")), file.name
    front = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert all(f'href="cards/{tag}/"' in front for tag in sqzoo.list_models("*.*", pretrained=True))
    html = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert all(f'id="sqzoo.{name}"' in html for name in ("registry.create_model", "predict.predict", "models.Sq1"))


def test_every_block_has_a_language_and_few_are_not_run() -> None:
    assert {b.language for page in PAGES for b in blocks(page)} == {"bash", "python", "diff", "javascript"}
    found = {page: sum(bool(b.reason) for b in blocks(page)) for page in PAGES}
    assert {page: count for page, count in found.items() if count} == KEPT_BACK
    fences = {page: (DOCS / page).read_text(encoding="utf-8").count("\n```") for page in PAGES}
    assert {page: 2 * len(blocks(page)) for page in PAGES} == fences


EACH = ("integrations.md", "scale.md")  # pages whose blocks stand alone, each with packages of its own
RUN = [p for p in PAGES if p not in ("architecture.md", *EACH) and any(not b.reason for b in blocks(p))]
# Those that export to ONNX, train, or start a dozen commands.
SLOW = (
    *("deploy.md", "hub.md", "browser.md", "own_images.md", "seeing.md", "cookbook.md", "faq.md", "switching.md"),
    "zoo.md",
)


@pytest.mark.parametrize("page", [pytest.param(p, marks=[pytest.mark.slow] * (p in SLOW)) for p in RUN])
def test_the_blocks_run(page: str, tmp_path: Path) -> None:
    """One after the other in one folder, as a reader goes; the Hub is on loopback."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    with HubServer() as server:
        environment = _environment(tmp_path) | server.env | {"HF_HOME": str(tmp_path / "hub")}
        for language, together in groupby((b for b in blocks(page) if not b.reason), key=lambda b: b.language):
            words = ["bash", "-euo", "pipefail", "-c"] if language == "bash" else [python(timm=False), "-c"]
            code = "\n".join(b.code for b in together)  # neighbours in one process, since torch takes seconds to import
            done = subprocess.run([*words, code], cwd=tmp_path, capture_output=True, text=True, env=environment)
            assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    [pytest.param(b, id=f"{page}-{i}") for page in EACH for i, b in enumerate(blocks(page)) if not b.reason],
)
def test_a_block_of_another_library_runs(block: Block, tmp_path: Path) -> None:
    packages = set(re.findall(r"^(?:import|from) (\w+)", block.code, re.MULTILINE))
    if missing := [name for name in sorted(packages) if importlib.util.find_spec(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for i in range(16):
        file = tmp_path / "photos" / ("ant", "bee")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)).save(file)
    words, environment = [sys.executable, "-c", block.code], _environment(tmp_path)
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == 0, f"{block.code}\n{done.stdout}\n{done.stderr}"


def test_the_notebook_runs(tmp_path: Path) -> None:
    """Its cells in one process, in its own folder."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    cells = json.loads((ROOT / "examples" / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    words, environment = [python(), "-c", code], _environment(tmp_path)
    done = subprocess.run(words, cwd=tmp_path / "examples", capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cat ") and "cat sure\n" in done.stdout and " unsure\n" in done.stdout, done.stdout


def test_the_script_makes_the_pictures_that_are_there() -> None:
    made = {f"{name}.webp" for name in screenshots.PAGES} | {f"{name}.svg" for name in screenshots.TERMINALS}
    assert made == {file.name for file in (DOCS / "images").iterdir()}
    picture = screenshots._terminal(["--help"])
    assert "sqzoo&#160;--help" in picture and "predict" in picture


def test_the_picture_of_the_zoo_shows_the_manifest() -> None:
    """Where it does not: python tools/screenshots.py --terminals."""
    lines = re.sub(r"<[^>]*>", "\n", (DOCS / "images" / "list.svg").read_text(encoding="utf-8"))
    shown = dict(re.findall(r"(\w+\.\w+_cifar10)\s*?(?:&#160;|\s)+([\d.]+)", lines))
    assert shown == {e.tag: f"{e.metrics['test_top1']:.2f}" for e in read_manifest().values()}


@pytest.mark.slow
def test_a_newcomer_adds_an_architecture(tmp_path: Path) -> None:
    """The sources are copied, the page's blocks put where they say, and the tests of the architectures run."""
    for folder in ("sqzoo", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    _, _, file, name, recipe, test, command = blocks("architecture.md")
    (tmp_path / file.title).write_text(file.code, encoding="utf-8")
    with (tmp_path / name.title.partition(",")[0]).open("a", encoding="utf-8") as stream:
        stream.write(name.code)
    for block, neighbour in (recipe, '"alexnet_cifar": Recipe('), (test, '("alexnet_cifar", {}, 57_044_810)'):
        edited = tmp_path / block.title.partition(",")[0]
        before, line, rest = re.split(
            rf"(^ *{re.escape(neighbour)}.*\n)", edited.read_text("utf-8"), flags=re.MULTILINE
        )
        edited.write_text(before + line + block.code.removeprefix("+") + rest, encoding="utf-8")
    environment = _environment(tmp_path) | {"PYTHONPATH": str(tmp_path)}
    words = ["bash", "-euo", "pipefail", "-c", command.code]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 40, done.stdout  # type: ignore[index]
    lint = subprocess.run([sys.executable, "-m", "ruff", "check", str(tmp_path / file.title)], capture_output=True)
    assert lint.returncode == 0, lint.stdout


def _environment(folder: Path) -> dict[str, str]:
    """Of a shell in which `sqzoo` and `python` are this Python's, whether or not its environment is active."""
    programs = folder / ".programs"
    programs.mkdir(exist_ok=True)
    for name, words in {"python": "", "sqzoo": " -m sqzoo"}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec "{python(timm=False)}"{words} "$@"\n', encoding="utf-8")
        (programs / name).chmod(0o755)
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    return os.environ | {
        "NO_MKDOCS_2_WARNING": "1",
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": paths,
    }

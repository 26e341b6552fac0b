"""Check that a release needs nothing but its tag: one line for each check, exit code 1 where one fails.

    python tools/release_check.py

Builds wheel and sdist from the last commit's files, in a temporary folder, as `.github/workflows/release.yml` will;
changes nothing. The tests are `.ci/run`'s. Takes a minute; the build backend comes from the package index.
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from zipfile import ZipFile

from packaging.metadata import Metadata
from packaging.version import Version

import sqzoo
from benchmarks import ROOT
from tools.readme import BLOCKS, shown

LIMIT = 100_000_000  # bytes: PyPI's for one file


def run(*words: str, cwd: Path = ROOT, **environment: str) -> str:
    """Return what a command prints; raise ValueError with its last line of errors where it fails."""
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode:
        raise ValueError((done.stderr or done.stdout).strip().rpartition("\n")[2] or f"{words[0]} failed")
    return done.stdout


def version(root: Path = ROOT) -> str:
    """Check the version: canonical, no development release, and not tagged at another commit."""
    text = sqzoo.__version__
    if str(Version(text)) != text or Version(text).is_devrelease or Version(text).local:
        raise ValueError(f"__version__ is {text!r}; expected such as '0.1.0' or '0.2.0rc1'")
    tags, here = (run("git", "tag", *words, cwd=root).split() for words in ((), ("--points-at", "HEAD")))
    if f"v{text}" in tags and f"v{text}" not in here:
        raise ValueError(f"v{text} is the tag of another commit; raise __version__ in sqzoo/__init__.py")
    return text


def changelog(root: Path = ROOT) -> str:
    """Check that the changelog has a dated heading for the version, the first one."""
    heading = next(line for line in (root / "CHANGELOG.md").read_text(encoding="utf-8").splitlines() if "## [" in line)
    if not re.fullmatch(rf"## \[{re.escape(sqzoo.__version__)}\] - \d{{4}}-\d\d-\d\d", heading):
        raise ValueError(f"CHANGELOG.md begins with {heading!r}; expected '## [{sqzoo.__version__}] - YYYY-MM-DD'")
    return heading


def tree(root: Path = ROOT) -> str:
    """Check that everything is committed."""
    if changed := run("git", "status", "--porcelain", cwd=root).splitlines():
        raise ValueError(f"{len(changed)} files are not committed, such as {changed[0][3:]}")
    return run("git", "rev-parse", "--short", "HEAD", cwd=root).strip()


def remote(root: Path = ROOT) -> str:
    """Check that the tag goes to the repository that the metadata names, which PyPI's trusted publisher asks for."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    origin = run("git", "remote", "get-url", "origin", cwd=root).strip()
    name = "/".join(re.split(r"[/:]", origin.removesuffix(".git"))[-2:])
    if project["urls"]["Source"] != f"https://github.com/{name}":
        raise ValueError(f"pyproject.toml names {project['urls']['Source']}, but origin is {origin}")
    return name


def generated() -> str:
    """Check that tables, model cards and the bill of materials are what their records make."""
    differing = [f"{page.name}, {name}" for (page, name), text in BLOCKS.items() if shown(page, name) != text()]
    if differing:
        raise ValueError(f"{differing[0]} differs from its record; run python tools/readme.py")
    for tool in ("model_cards", "sbom"):
        run(sys.executable, f"tools/{tool}.py", "--check", PYTHONPATH=str(ROOT))
    return f"{len(BLOCKS)} tables, cards, bill of materials"


def build(folder: Path) -> str:
    """Build the sdist, and the wheel from it, of the last commit's files."""
    run("git", "archive", "--output", str(folder / "source.tar"), "HEAD")
    with tarfile.open(folder / "source.tar") as archive:
        archive.extractall(folder / "source", filter="data")
    run(sys.executable, "-m", "build", "--outdir", str(folder / "dist"), str(folder / "source"))
    return ", ".join(f"{file.name} {file.stat().st_size / 1e6:.1f} MB" for file in (folder / "dist").iterdir())


def metadata(folder: Path) -> str:
    """Check the metadata as an index does, and that wheel and sdist agree."""
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    with ZipFile(wheel) as archive, tarfile.open(sdist) as source:
        text = archive.read(f"sqzoo-{sqzoo.__version__}.dist-info/METADATA")
        told = source.extractfile(f"sqzoo-{sqzoo.__version__}/PKG-INFO")
        if told is None or told.read() != text:
            raise ValueError("wheel and sdist have different metadata")
    found = Metadata.from_email(text, validate=True)
    if str(found.version) != sqzoo.__version__ or found.description_content_type != "text/markdown":
        raise ValueError(f"version {found.version}, description of type {found.description_content_type}")
    if relative := re.search(r"\]\((?!https://)([^)]+)\)", found.description or ""):
        raise ValueError(f"the description links to {relative[1]!r}, which PyPI does not have")
    if large := [file.name for file in (wheel, sdist) if file.stat().st_size > LIMIT]:
        raise ValueError(f"{large[0]} is over PyPI's {LIMIT / 1e6:.0f} MB")
    return f"metadata {found.metadata_version}, Python {found.requires_python}"


def content(folder: Path) -> str:
    """Check that the wheel has each file of the package that git has, no other, licence and bill of materials."""
    (wheel,) = (folder / "dist").glob("*.whl")
    names = set(ZipFile(wheel).namelist())
    ours = {n for n in names if n.startswith("sqzoo/")}
    tracked = set(run("git", "ls-files", "sqzoo").split())
    if ours != tracked:
        raise ValueError(f"the wheel and git differ in {sorted(ours ^ tracked)[0]}")
    for part in ("licenses/LICENSE", "sboms/sbom.cdx.json", "entry_points.txt"):
        if f"sqzoo-{sqzoo.__version__}.dist-info/{part}" not in names:
            raise ValueError(f"the wheel has no {part}")
    return f"{len(ours)} files"


def first_command(folder: Path) -> str:
    """Classify the wheel's own photo by its own files, in an empty folder: docs/index.md's first command."""
    (wheel,) = (folder / "dist").glob("*.whl")
    ZipFile(wheel).extractall(folder / "site")
    (folder / "empty").mkdir()
    words = (sys.executable, "-m", "sqzoo", "predict", "--sample")
    said = run(*words, cwd=folder / "empty", PYTHONPATH=str(folder / "site"))
    if not said.startswith(f"{folder / 'site'}") or ": cat " not in said:
        raise ValueError(f"sqzoo predict --sample says {said!r}")
    return said.strip().rpartition("/")[2]


def main() -> int:
    """Run the checks; print a line for each."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        checks: list[Callable[[], str]] = [version, changelog, tree, remote, generated]
        checks += [partial(check, Path(folder)) for check in (build, metadata, content, first_command)]
        for check in checks:
            name = getattr(check, "func", check).__name__.replace("_", " ")
            try:
                print(f"ok     {name}: {check()}", flush=True)
            except (ValueError, OSError, KeyError, ExceptionGroup) as e:
                failed += 1
                print(f"FAILS  {name}: {e}.", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

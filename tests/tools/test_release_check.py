"""The release check says what a release lacks, and passes what lacks nothing."""

import re
import subprocess
from pathlib import Path

import pytest

import sqzoo
from tools import release_check


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository of one commit that is ready: dated changelog, nothing uncommitted, origin as its metadata has it."""
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [0.1.0] - 2026-12-01\n\n## [0.0.1] - 2026-01-01\n")
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nSource = "https://github.com/org/sqzoo"\n')
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "remote", "add", "origin", "git@github.com:org/sqzoo.git")
    _commit(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqzoo, "__version__", "0.1.0")


def _git(root: Path, *words: str) -> None:
    subprocess.run(["git", *words], cwd=root, check=True)


def _commit(root: Path) -> None:
    _git(root, "add", "-A")
    _git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a", "--allow-empty")


def test_a_repository_that_is_ready_passes(root: Path) -> None:
    assert release_check.version(root) == "0.1.0"
    assert release_check.changelog(root) == "## [0.1.0] - 2026-12-01"
    assert len(release_check.tree(root)) >= 7
    assert release_check.remote(root) == "org/sqzoo"


@pytest.mark.parametrize("version", ["0.2.0.dev1", "0.1.0+mine", "01.0", "new"])
def test_a_version_that_is_none_or_no_release(root: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqzoo, "__version__", version)
    with pytest.raises(ValueError, match=re.escape(version)):
        release_check.version(root)


def test_a_version_may_be_tagged_here_alone(root: Path) -> None:
    _git(root, "tag", "v0.1.0")
    assert release_check.version(root) == "0.1.0"
    _commit(root)
    _git(root, "tag", "another")
    with pytest.raises(ValueError, match=r"v0.1.0 is the tag of another commit"):
        release_check.version(root)


@pytest.mark.parametrize("heading", ["[Unreleased]", "[0.1.0]", "[0.1.1] - 2026-12-01", "[0.1.0] - soon"])
def test_a_changelog_without_the_version_and_its_date(root: Path, heading: str) -> None:
    (root / "CHANGELOG.md").write_text(f"## {heading}\n\n## [0.1.0] - 2026-12-01\n")
    with pytest.raises(ValueError, match=r"CHANGELOG.md begins with"):
        release_check.changelog(root)


def test_what_is_not_committed_is_named(root: Path) -> None:
    (root / "new file").touch()
    with pytest.raises(ValueError, match=r"1 files are not committed, such as .*new file"):
        release_check.tree(root)


@pytest.mark.parametrize("origin", ["https://github.com/me/sqzoo", "git@github.com:org/other.git"])
def test_another_origin_than_the_metadata_has(root: Path, origin: str) -> None:
    _git(root, "remote", "set-url", "origin", origin)
    with pytest.raises(ValueError, match="but origin is"):
        release_check.remote(root)

"""Files that appear whole, folders that are ours, names that are printed: what is not ours stays as it is."""

import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from sqzoo.errors import ArgumentError, SqzooError, printable, shown
from sqzoo.files import atomic_file, cache_folder, claim_folder, is_claimed, open_regular, write_bytes


def test_a_file_takes_the_place_of_a_regular_one_and_of_nothing_else(tmp_path: Path) -> None:
    write_bytes(tmp_path / "new" / "a", b"1")
    write_bytes(tmp_path / "new" / "a", b"2")
    assert (tmp_path / "new" / "a").read_bytes() == b"2"
    assert os.listdir(tmp_path / "new") == ["a"]
    precious = tmp_path / "precious"
    precious.write_bytes(b"mine")
    (tmp_path / "link").symlink_to(precious)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("link", "dangling", "pipe", "folder"):
        before = (tmp_path / name).lstat()
        with pytest.raises(OSError):
            write_bytes(tmp_path / name, b"other")
        assert (tmp_path / name).lstat() == before
    assert precious.read_bytes() == b"mine" and not (tmp_path / "nowhere").exists()
    assert not list(tmp_path.glob(".writing-*"))


def test_a_file_has_the_usual_rights(tmp_path: Path) -> None:
    (tmp_path / "usual").write_bytes(b"")
    write_bytes(tmp_path / "a", b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_name_as_long_as_names_may_be(tmp_path: Path) -> None:
    write_bytes(tmp_path / ("x" * 255), b"1")
    assert (tmp_path / ("x" * 255)).read_bytes() == b"1"


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"old")
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "a") as stream:
        stream.write(b"new")
        raise RuntimeError
    assert (tmp_path / "a").read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_many_writers_at_once(tmp_path: Path) -> None:
    data = [bytes([i]) * 100_000 for i in range(16)]
    threads = [threading.Thread(target=write_bytes, args=(tmp_path / "a", d)) for d in data]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert (tmp_path / "a").read_bytes() in data and os.listdir(tmp_path) == ["a"]


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with open_regular(tmp_path / "link") as stream:
        assert stream.read() == b"1"
    for name in (tmp_path / "pipe", tmp_path, "/dev/zero", "a\0b", "\udce9\ud800", tmp_path / "none"):
        with pytest.raises(OSError):
            open_regular(name)


def test_a_folder_is_ours_if_it_was_empty(tmp_path: Path) -> None:
    claim_folder(tmp_path / "new" / "run")
    (tmp_path / "new" / "run" / "result.json").write_text("{}")
    claim_folder(tmp_path / "new" / "run")  # marked
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual" / ".DS_Store").touch()
    claim_folder(tmp_path / "usual")
    for name in ("README.md", "cache", ".git"):
        other = tmp_path / f"of {name}"
        (other / name).mkdir(parents=True)
        with pytest.raises(ArgumentError, match=name):
            claim_folder(other)
        assert os.listdir(other) == [name] and not is_claimed(other)
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / ("x" * 300), Path("/proc/x"), Path("a\0b")):
        with pytest.raises(SqzooError):
            claim_folder(place)


@pytest.mark.parametrize("name", ["head", ".lock", "all_layers/x"])
def test_a_folder_of_ours_has_no_links(name: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    claim_folder(tmp_path / "run")
    (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / name).symlink_to(victim)
    with pytest.raises(ArgumentError, match=name):
        claim_folder(tmp_path / "run")
    assert not any(victim.iterdir())


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SQZOO_CACHE", "~/kept")
    assert cache_folder() == tmp_path / "kept"
    monkeypatch.setenv("SQZOO_CACHE", "~no-such-user/kept")
    with pytest.raises(ArgumentError, match="SQZOO_CACHE"):
        cache_folder()


@pytest.mark.skipif(sys.platform != "linux", reason="the place is another on each system")
def test_the_cache_folder_is_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SQZOO_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "sqzoo"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert cache_folder() == tmp_path / "other" / "sqzoo"


def test_control_characters_are_escaped() -> None:
    assert printable("a\x1b[2J\n\udce9\u202eb") == r"a\x1b[2J\n\udce9\u202eb"
    assert len(printable("x" * 10**6)) == 120
    assert shown(Path("x" * 1000)) == "x" * 1000


def test_a_write_protected_file_stays(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write all")
    (tmp_path / "a").write_bytes(b"mine")
    (tmp_path / "a").chmod(stat.S_IRUSR)
    with pytest.raises(PermissionError):
        write_bytes(tmp_path / "a", b"other")

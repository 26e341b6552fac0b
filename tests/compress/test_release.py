"""A release can be built again byte for byte, holds what its manifest says, and is published with few permissions."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from sqzoo.compress import release
from tests.support import ROOT
from tests.support.fork import python
from tools import release_check


def _checkout(to: Path, umask: int = 0o022, time: int = 1_600_000_000) -> Path:
    """Copy what git tracks, with the modes and times that a checkout under that umask and at that time would have."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a git checkout, to know which files are the project's")
    for name in filter(None, listed.stdout.split("\0")):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, to / name)
        os.chmod(to / name, ((ROOT / name).stat().st_mode | 0o666) & ~umask)
        os.utime(to / name, (time, time))
    return to


def _build(checkout: Path, umask: int, zone: str, *formats: str) -> Path:
    # A build host may set SOURCE_DATE_EPOCH, which takes the place of the backend's fixed date.
    environment = {k: v for k, v in os.environ.items() if k != "SOURCE_DATE_EPOCH"} | {"TZ": zone}
    command = [sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check", "-o", "dist", *formats]
    done = subprocess.run(command, cwd=checkout, umask=umask, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return checkout / "dist"


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders with a wheel and an sdist, of checkouts that differ in all that must not matter."""
    for module in ("hatchling.build", "build.__main__"):
        pytest.importorskip(module, reason=f"needs {module.partition('.')[0]}, from the test extra")
    folder = tmp_path_factory.mktemp("release")
    first = _checkout(folder / "first", 0o022, 1_600_000_000)
    second = _checkout(folder / "deeper" / "second", 0o077, 1_700_000_000)
    (second / "beside" / "tests").mkdir(parents=True)
    (second / "beside" / "tests" / "test_of_another.py").write_text("", encoding="utf-8")
    # By itself `build` makes the wheel from the sdist; with --wheel from the checkout.
    return [_build(first, 0o022, "UTC"), _build(second, 0o077, "Asia/Tokyo", "--sdist", "--wheel")]


def test_two_checkouts_build_the_same_bytes(builds: list[Path]) -> None:
    first, second = ({f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in d.iterdir()} for d in builds)
    assert len(first) == 2
    assert first == second


def test_wheel_holds_the_manifests_files_and_the_bill(builds: list[Path]) -> None:
    (wheel,) = builds[0].glob("*.whl")
    assert wheel.stat().st_size < 25_000_000
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        entries = json.loads(archive.read("sqzoo/weights/manifest.json"))["weights"]
        found = {n: hashlib.sha256(archive.read(n)).hexdigest() for n in names if n.endswith(".safetensors")}
        (bill,) = [n for n in names if "/sboms/" in n]
        bill_text = archive.read(bill)
    assert bill_text == (ROOT / "tools" / "sbom.cdx.json").read_bytes()
    listed = json.loads(bill_text)["components"]
    assert found == {f"sqzoo/weights/{e['file']}": e["sha256"] for e in entries if not e.get("hub")}
    models = {c["name"]: c["hashes"][0]["content"] for c in listed if c["bom-ref"].startswith("weights/")}
    assert models == {e["tag"]: e["sha256"] for e in entries}
    fetched = {c["name"] for c in listed if c.get("scope") == "optional"}
    assert fetched == {"onnxruntime-web", "squeezenet1_1-b8a52dc0.pth", "alexnet-owt-7be5be79.pth", "CIFAR-10"}
    assert {n.partition("/")[0] for n in names} == {"sqzoo", f"sqzoo-{wheel.name.split('-')[1]}.dist-info"}
    (sdist,) = builds[0].glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert "tests/compress/test_release.py" in {n.partition("/")[2] for n in archive.getnames()}


def test_a_wheel_classifies_its_own_photo(builds: list[Path], tmp_path: Path) -> None:
    """docs/index.md's first command, from the wheel's files alone and in an empty folder."""
    (wheel,) = builds[0].glob("*.whl")
    with ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    command = [python(), "-m", "sqzoo", "predict", "--sample", "--format", "csv"]
    done = subprocess.run(command, cwd=tmp_path / "empty", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'site' / 'sqzoo' / 'demo' / 'static' / 'cat.jpg'},cat," in done.stdout


def test_the_release_check_takes_these_files_and_no_wheel_that_lacks_one(builds: list[Path], tmp_path: Path) -> None:
    assert release_check.metadata(builds[0].parent).endswith(">=3.11")
    assert release_check.content(builds[0].parent).endswith(" files")
    (wheel,) = builds[0].glob("*.whl")
    (tmp_path / "dist").mkdir()
    with ZipFile(wheel) as archive, ZipFile(tmp_path / "dist" / wheel.name, "w") as less:
        for name in archive.namelist():
            if name != "sqzoo/py.typed":
                less.writestr(name, archive.read(name))
    with pytest.raises(ValueError, match=r"the wheel and git differ in sqzoo/py.typed"):
        release_check.content(tmp_path)


def _sbom(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/sbom.py", *words]
    environment = os.environ | {"PYTHONPATH": str(checkout)}  # that checkout's sqzoo, not an installed one
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)


def test_bill_is_what_its_sources_say() -> None:
    done = _sbom(ROOT, "--check")
    assert done.returncode == 0, done.stderr
    text = (ROOT / "tools" / "sbom.cdx.json").read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


@pytest.mark.slow
def test_bill_follows_the_manifest(tmp_path: Path) -> None:
    manifest, bill = (_checkout(tmp_path) / name for name in ("sqzoo/weights/manifest.json", "tools/sbom.cdx.json"))
    before, old = json.loads(bill.read_text(encoding="utf-8")), manifest.read_text(encoding="utf-8")
    digest = json.loads(old)["weights"][0]["sha256"]
    manifest.write_text(old.replace(digest, "0" * 64), encoding="utf-8")
    done = _sbom(tmp_path, "--check")
    assert done.returncode == 1
    assert "sbom.cdx.json differs" in done.stderr
    assert _sbom(tmp_path).returncode == _sbom(tmp_path, "--check").returncode == 0
    after = json.loads(bill.read_text(encoding="utf-8"))
    assert after.pop("serialNumber") != before.pop("serialNumber")
    assert after == json.loads(json.dumps(before).replace(digest, "0" * 64))


@pytest.mark.slow
def test_bill_hangs_on_no_installed_package(tmp_path: Path) -> None:
    bill = _checkout(tmp_path) / "tools" / "sbom.cdx.json"
    document = json.loads(bill.read_text(encoding="utf-8"))
    next(c for c in document["components"] if c["name"] == "torch")["licenses"] = [
        {"acknowledgement": "declared", "expression": "0BSD"}
    ]
    bill.write_text(json.dumps(document), encoding="utf-8")
    assert _sbom(tmp_path).returncode == 0
    assert json.loads(bill.read_text(encoding="utf-8"))["components"] == document["components"]
    project = tmp_path / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    project.write_text(text.replace("dependencies = [", 'dependencies = [\n"no-such-package",', 1), encoding="utf-8")
    done = _sbom(tmp_path, "--check")
    assert done.returncode == 1
    assert done.stderr.startswith("no-such-package is new in pyproject.toml and is not installed; install it")


def test_workflow_has_the_least_permissions() -> None:
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    # YAML 1.1 reads the key `on` as true.
    assert workflow[True] == {"push": {"tags": ["v*"]}}
    assert workflow["permissions"] == {}
    assert {name: job["permissions"] for name, job in workflow["jobs"].items()} == {
        "build": {"contents": "read"},
        "publish": {"id-token": "write", "attestations": "write"},
    }
    assert workflow["jobs"]["publish"]["needs"] == "build"
    assert "pull_request_target" not in text
    assert "secrets." not in text
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(re.search(r"@(v\d+|release/v\d+|[0-9a-f]{40})$", step["uses"]) for step in steps if "uses" in step)
    # What runs in the job that signs is named here: no script, and no code of ours.
    assert [step["uses"].partition("@")[0] for step in workflow["jobs"]["publish"]["steps"]] == [
        "actions/download-artifact",
        "actions/attest-build-provenance",
        "pypa/gh-action-pypi-publish",
    ]


def test_the_pythons_that_are_promised_are_tested() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["classifiers"]
    promised = [c.rpartition(" ")[2] for c in classifiers if re.search(r":: 3\.\d+$", c)]
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == promised != []


def test_the_default_of_an_architecture_is_first() -> None:
    names = {"a.big": 160, "a.none": None, "a.pair": [224, 256]}
    entries = [{"tag": tag, "holds": "complete", "model_args": {"upsample": size}} for tag, size in names.items()]
    assert [e["tag"] for e in sorted(entries, key=release._sort_key)] == ["a.pair", "a.big", "a.none"]

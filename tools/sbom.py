"""The wheel's bill of materials, CycloneDX 1.6, made from pyproject.toml and the weights' manifest.

    python tools/sbom.py [--check]

Writes sqzoo/sbom.cdx.json; with --check writes nothing and exits with 1 where it would change. The file is committed,
and a dependency's licence is kept once it is there: it is read from the installed package only where the dependency is
new, so that no build and no check hangs on what is installed. Delete the file to read all of them again.
"""

import argparse
import base64
import json
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import ROOT

SBOM = ROOT / "sqzoo" / "sbom.cdx.json"
CIFAR10 = "data/cifar10"

Json = dict[str, Any]


def bom(project: Json, version: str, weights: list[Json], known: dict[str, Json], fetched: list[Json]) -> Json:
    """Return the document.

    project: the table of that name in pyproject.toml. weights: the manifest's entries. known: the dependencies of the
    document before this one, by name, whose licences are kept. fetched: components that are not in the wheel, but
    fetched and run or read by it.
    """
    own = f"pkg:pypi/{project['name']}@{version}"
    listed = [_dependency(Requirement(line), known) for line in project["dependencies"]]
    listed += [_weights(entry) for entry in weights]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "library",
                "bom-ref": own,
                "name": project["name"],
                "version": version,
                "description": project["description"],
                "licenses": _licences(project["license"]),
                "purl": own,
            }
        },
        "components": [*listed, *fetched, _cifar10(weights)],
        "dependencies": [{"ref": own, "dependsOn": [c["bom-ref"] for c in listed]}],
    }
    # The serial number must tell one document from another, yet be the same wherever this one is made.
    return {"serialNumber": uuid5(NAMESPACE_URL, json.dumps(document)).urn} | document


def _dependency(wanted: Requirement, known: dict[str, Json]) -> Json:
    purl = f"pkg:pypi/{canonicalize_name(wanted.name)}"
    component = {"type": "library", "bom-ref": purl, "name": wanted.name, "purl": purl}
    licence = known.get(wanted.name) or _read_licence(wanted.name)
    return component | {
        "licenses": licence["licenses"],
        "properties": [
            *_properties(version_range=str(wanted.specifier)),
            *(p for p in licence["properties"] if p["name"] == "sqzoo:licence_read_from"),
        ],
    }


def _read_licence(name: str) -> Json:
    try:
        installed = metadata(name)
    except PackageNotFoundError:
        sys.exit(f"{name} is new in pyproject.toml and is not installed; install it, so that its licence can be read.")
    fields = [t for field in ("License-Expression", "License", "Classifier") for t in installed.get_all(field) or []]
    # Some packages have the licence's whole text where its name belongs.
    texts = [t for t in fields if t and "\n" not in t and (" :: " not in t or t.startswith("License :: "))]
    return {
        "licenses": _licences(texts[0].rpartition(" :: ")[2]) if texts else [],
        "properties": _properties(licence_read_from=f"{name} {installed['Version']}"),
    }


def _licences(text: str) -> list[Json]:
    try:
        return [{"expression": canonicalize_license_expression(text), "acknowledgement": "declared"}]
    except InvalidLicenseExpression:
        return [{"license": {"name": text, "acknowledgement": "declared"}}]


def _weights(entry: Json) -> Json:
    hub = entry.get("hub")
    place = f"hf-hub:{hub}@{entry['commit']}" if hub else f"sqzoo/weights/{entry['file']}"
    return {
        "type": "machine-learning-model",
        "bom-ref": f"weights/{entry['tag']}",
        "name": entry["tag"],
        "hashes": [{"alg": "SHA-256", "content": entry["sha256"]}],
        "licenses": _licences(entry["licence"]),
        "pedigree": {
            "ancestors": [{"type": "machine-learning-model", "publisher": "torchvision", "name": entry["trunk"]}],
            "notes": entry["provenance"],
        },
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": "image-classification",
                "modelArchitecture": entry["tag"].partition(".")[0],
                "datasets": [{"ref": CIFAR10}],
            }
        },
        "properties": _properties(file=place, bytes=str(entry["size"]), holds=entry["holds"]),
    }


def fetched_components(runtime: str, trunks: str) -> list[Json]:
    """Return what is fetched when it is first used: the page's engine, and torchvision's ImageNet weights.

    runtime, trunks: the sources of sqzoo/demo/engine.py and sqzoo/weights/trunks.py, which pin them.
    """
    (engine,) = re.findall(r'^VERSION = "(.+)"$', runtime, re.MULTILINE)
    (integrity,) = re.findall(r'^INTEGRITY = "sha512-(.+)"$', runtime, re.MULTILINE)
    purl = f"pkg:npm/onnxruntime-web@{engine}"
    components: list[Json] = [
        {
            "type": "library",
            "bom-ref": purl,
            "name": "onnxruntime-web",
            "version": engine,
            "description": "Two of its files run in the browser of who opens the page of `sqzoo demo`.",
            "scope": "optional",
            "hashes": [{"alg": "SHA-512", "content": base64.b64decode(integrity).hex()}],
            "licenses": _licences("MIT"),
            "purl": purl,
        }
    ]
    pins = re.findall(r'Trunk\(\s*"(.+)",\s*"(https://.+)",\s*"([0-9a-f]{64})"', trunks)
    for name, url, digest in sorted(pins):
        file = url.rpartition("/")[2]
        components.append(
            {
                "type": "machine-learning-model",
                "bom-ref": f"fetched/{file}",
                "name": file,
                "description": f"torchvision's {name}, trained on ImageNet: what the weights were trained from.",
                "scope": "optional",
                "licenses": _licences("BSD-3-Clause"),
                "externalReferences": [{"type": "distribution", "url": url}],
                "properties": _properties(sha256_of_the_trunks_tensors=digest),
            }
        )
    return components


def _cifar10(weights: list[Json]) -> Json:
    digests = sorted({(name, digest) for entry in weights for name, digest in entry.get("data", {}).items()})
    url = "https://www.cs.toronto.edu/~kriz/cifar.html"
    return {
        "type": "data",
        "bom-ref": CIFAR10,
        "name": "CIFAR-10",
        "description": "The weights were trained and tested on it; it is not in the package. It states no licence.",
        "scope": "excluded",
        "externalReferences": [{"type": "website", "url": url}],
        "data": [{"type": "dataset", "name": "CIFAR-10", "contents": {"url": url}}],
        "properties": [p for name, digest in digests for p in _properties(**{name: digest})],
    }


def _properties(**values: str) -> list[Json]:
    return [{"name": f"sqzoo:{name}", "value": value} for name, value in values.items()]


def main() -> int:
    """Write the bill of materials, or with --check compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    # Read, not imported: that would load torch, and another checkout's sqzoo where that one is installed.
    source = (ROOT / "sqzoo" / "__init__.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    weights = json.loads((ROOT / "sqzoo" / "weights" / "manifest.json").read_text(encoding="utf-8"))["weights"]
    before = SBOM.read_text(encoding="utf-8") if SBOM.is_file() else ""
    known = {c["name"]: c for c in json.loads(before)["components"] if c["type"] == "library"} if before else {}
    sources = (ROOT / "sqzoo" / place for place in ("demo/runtime.py", "weights/trunks.py"))
    fetched = fetched_components(*(file.read_text(encoding="utf-8") for file in sources))
    text = json.dumps(bom(project, version, weights, known, fetched), indent=1, ensure_ascii=False) + "\n"
    if text == before:
        return 0
    said = "differs from pyproject.toml, the version or the manifest; run python tools/sbom.py"
    print(f"{SBOM.relative_to(ROOT)} {said if check else 'written'}", file=sys.stderr)
    if not check:
        SBOM.write_text(text, encoding="utf-8")
    return 1 if check else 0


if __name__ == "__main__":
    sys.exit(main())

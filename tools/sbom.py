"""The wheel's bill of materials, CycloneDX 1.6, from pyproject.toml, the manifest of weights and what sqzoo downloads.

    python tools/sbom.py [--check]

Writes tools/sbom.cdx.json, which the wheel carries (PEP 770); with --check writes nothing and exits with 1 where it
would change. The file is committed, and a dependency's licence is kept once it is there: it is read from the
installed package only where the dependency is new, so that no build and no check depends on what is installed. Delete
the file to read all of them again.
"""

import argparse
import base64
import json
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, metadata
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType, Pedigree
from cyclonedx.model.license import DisjunctiveLicense, License, LicenseAcknowledgement, LicenseExpression
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sqzoo
from benchmarks import ROOT
from sqzoo.data import cifar
from sqzoo.demo import engine
from sqzoo.weights import TRUNKS, Entry, read_manifest

SBOM = ROOT / "tools" / "sbom.cdx.json"
_READ_FROM = "sqzoo:licence_read_from"


def bom(project: dict[str, Any], known: dict[str, Component]) -> str:
    """Return the document as JSON.

    Args:
        project: the table of that name in pyproject.toml.
        known: components of the document before this one, by name; the licences of dependencies are kept.
    """
    purl = PackageURL("pypi", name=project["name"], version=sqzoo.__version__)
    own = Component(
        name=project["name"],
        version=sqzoo.__version__,
        bom_ref=str(purl),
        purl=purl,
        description=project["description"],
        licenses=[_licence(project["license"])],
    )
    entries = read_manifest().values()
    shipped = [*(_dependency(Requirement(line), known) for line in project["dependencies"]), *map(_weights, entries)]
    document = Bom(components=[*shipped, _engine(), *_trunks(), _cifar10(entries)])
    document.metadata.component = own
    document.metadata.timestamp = None  # type: ignore[assignment]  # or each run would give another document
    document.register_dependency(own, shipped)
    # The serial number must tell one document from another, yet be the same wherever this one is made.
    document.serial_number = UUID(int=0)
    document.serial_number = uuid5(NAMESPACE_URL, _json(document))
    return _json(document) + "\n"


def _json(document: Bom) -> str:
    return make_outputter(document, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)


def _dependency(requirement: Requirement, known: dict[str, Component]) -> Component:
    purl = PackageURL("pypi", name=canonicalize_name(requirement.name))
    before = known.get(requirement.name) or _installed(requirement.name)
    kept = [p for p in before.properties if p.name == _READ_FROM]
    return Component(
        name=requirement.name,
        bom_ref=str(purl),
        purl=purl,
        licenses=before.licenses,
        properties=[*kept, *_properties(version_range=str(requirement.specifier))],
    )


def _installed(name: str) -> Component:
    """Return a component with the licence that an installed package states."""
    try:
        about = metadata(name)
    except PackageNotFoundError:
        sys.exit(f"{name} is new in pyproject.toml and is not installed; install it, so that its licence can be read.")
    fields = [t for field in ("License-Expression", "License", "Classifier") for t in about.get_all(field) or []]
    # Some packages have the licence's whole text where its name belongs.
    texts = [t for t in fields if t and "\n" not in t and (" :: " not in t or t.startswith("License :: "))]
    licences = [_licence(texts[0].rpartition(" :: ")[2])] if texts else []
    return Component(
        name=name, licenses=licences, properties=[Property(name=_READ_FROM, value=f"{name} {about['Version']}")]
    )


def _licence(text: str) -> License:
    declared = LicenseAcknowledgement.DECLARED
    try:
        return LicenseExpression(canonicalize_license_expression(text), acknowledgement=declared)
    except InvalidLicenseExpression:
        return DisjunctiveLicense(name=text, acknowledgement=declared)


def _weights(entry: Entry) -> Component:
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=entry.tag,
        bom_ref=f"weights/{entry.tag}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=entry.sha256)],
        licenses=[_licence(entry.licence)],
        pedigree=Pedigree(ancestors=[_trunk(entry.trunk)], notes=entry.provenance),
        properties=_properties(
            file=f"hf-hub:{entry.hub}@{entry.commit}" if entry.hub else f"sqzoo/weights/{entry.file}",
            bytes=str(entry.size),
            holds=entry.holds,
            architecture=entry.architecture,
        ),
    )


def _engine() -> Component:
    purl = PackageURL("npm", name="onnxruntime-web", version=engine.VERSION)
    digest = base64.b64decode(engine.INTEGRITY.removeprefix("sha512-")).hex()
    return Component(
        name="onnxruntime-web",
        version=engine.VERSION,
        bom_ref=str(purl),
        purl=purl,
        scope=ComponentScope.OPTIONAL,
        description="Downloaded by `sqzoo demo`; two of its files run in the browser of who opens the page.",
        hashes=[HashType(alg=HashAlgorithm.SHA_512, content=digest)],
        licenses=[_licence("MIT")],
        properties=_properties(**{f"sha256 of {name}": digest for name, digest in engine.FILES.items()}),
    )


def _trunks() -> list[Component]:
    return [_trunk(name, bom_ref=f"downloaded/{trunk.file}") for name, trunk in TRUNKS.items()]


def _trunk(name: str, bom_ref: str | None = None) -> Component:
    trunk = TRUNKS[name]
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=trunk.file,
        bom_ref=bom_ref,
        publisher="torchvision",
        scope=ComponentScope.OPTIONAL,
        description=f"{name} trained on ImageNet; downloaded to train, and by tags that are stored as head weights.",
        licenses=[_licence("BSD-3-Clause")],
        external_references=[ExternalReference(type=ExternalReferenceType.DISTRIBUTION, url=XsUri(trunk.url))],
        properties=_properties(sha256_of_the_trunks_tensors=trunk.sha256),
    )


def _cifar10(entries: Iterable[Entry]) -> Component:
    url = f"https://huggingface.co/datasets/{cifar.HUB_REPO}/tree/{cifar.HUB_COMMIT}"
    digests = sorted({item for entry in entries for item in entry.data.items()})
    return Component(
        type=ComponentType.DATA,
        name="CIFAR-10",
        bom_ref="downloaded/cifar10",
        scope=ComponentScope.OPTIONAL,
        description="Downloaded to train and to evaluate; the weights were trained on it. It states no licence.",
        external_references=[
            ExternalReference(type=ExternalReferenceType.DISTRIBUTION, url=XsUri(url)),
            ExternalReference(
                type=ExternalReferenceType.WEBSITE, url=XsUri("https://www.cs.toronto.edu/~kriz/cifar.html")
            ),
        ],
        properties=[Property(name=f"sqzoo:{name}", value=digest) for name, digest in digests],
    )


def _properties(**values: str) -> list[Property]:
    return [Property(name=f"sqzoo:{name}", value=value) for name, value in values.items()]


def main() -> int:
    """Write the bill of materials, or with --check compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    before = SBOM.read_text(encoding="utf-8") if SBOM.is_file() else '{"components": []}'
    components = Bom.from_json(json.loads(before)).components
    text = bom(project, {c.name: c for c in components if c.type is ComponentType.LIBRARY})
    if text == before:
        return 0
    said = "differs from pyproject.toml, the version, the manifest or what is downloaded; run python tools/sbom.py"
    print(f"{SBOM.relative_to(ROOT)} {said if check else 'written'}", file=sys.stderr)
    if not check:
        SBOM.write_text(text, encoding="utf-8")
    return 1 if check else 0


if __name__ == "__main__":
    sys.exit(main())

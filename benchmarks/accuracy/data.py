"""Is the CIFAR-10 that was trained on the published one? Its digests beside what is known of the published files.

    python benchmarks/accuracy/data.py [--data FOLDER]

Reads the images as training does, and the folder's lists train_not_exact.txt and test_not_exact.txt, where there are
some: images whose pixels are not the published ones. Of the published files' own folder it compares the MD5. Writes
results/accuracy/data.json.
"""

import argparse
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR10

from benchmarks import RESULTS, run_main
from benchmarks.record import write_record
from sqzoo.data import cifar10
from tools.readme import BENCHMARKS, README, write_into

RESULT = RESULTS / "accuracy" / "data.json"
SPLITS = ("train", "test")


def published() -> dict[str, str]:
    """Return the MD5 of the published archive and of the batches in it, as torchvision states them."""
    batches = dict(CIFAR10.train_list + CIFAR10.test_list)
    return {CIFAR10.filename: CIFAR10.tgz_md5} | {str(name): str(md5) for name, md5 in batches.items()}


def inexact(folder: str | None, split: str) -> list[int]:
    """Return the places of images that are not the published pixels, as the data's folder lists them."""
    listed = Path(folder or os.environ.get("SQZOO_CIFAR10", ".")) / f"{split}_not_exact.txt"
    return [int(i) for i in np.loadtxt(listed, dtype=np.int64, ndmin=1)] if listed.is_file() else []


def batches_md5(folder: str | None) -> dict[str, str]:
    """Return the MD5 of the batches in a folder of the published layout; {} of another."""
    place = Path(folder or os.environ.get("SQZOO_CIFAR10", "."))
    files = [f for name in published() for f in (place / name, place / CIFAR10.base_folder / name) if f.is_file()]
    return {f.name: hashlib.md5(f.read_bytes(), usedforsecurity=False).hexdigest() for f in files}


def sentence(record: dict[str, Any]) -> str:
    """Return what a reader of a figure must know about the images."""
    train, test = (record["splits"][split] for split in SPLITS)
    if not train["not_exact"] and not test["not_exact"]:
        return "The images are the published CIFAR-10's."
    return (
        f"Of the CIFAR-10 used here {len(train['not_exact'])} training and {len(test['not_exact'])} test images are "
        "from a JPEG copy, the rest as published."
    )


def details(record: dict[str, Any]) -> str:
    """Return the digests beside the published files', as Markdown."""
    lines = [sentence(record), "", "| images | number | digest here (pixels and labels) | not the published pixels |"]
    lines += ["|---|---|---|---|"]
    for split in SPLITS:
        row = record["splits"][split]
        places = ", ".join(map(str, row["not_exact"])) or "none"
        lines.append(f"| {split} | {row['images']:,} | `{row['digest']}` | {places} |")
    known = ", ".join(f"`{name}` `{md5}`" for name, md5 in record["published_md5"].items())
    lines += [
        "",
        f"Known of the published files is the MD5: {known}. A digest of their pixels could not be computed here, where "
        "they could not be downloaded; `python benchmarks/accuracy/data.py` prints it where they are.",
    ]
    return "\n".join(lines)


def main() -> int:
    """Read, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="CIFAR-10 folder (default: $SQZOO_CIFAR10, else the Hub)")
    arguments = parser.parse_args()
    splits = {}
    for split in SPLITS:
        data = cifar10(split, arguments.data)  # type: ignore[arg-type]
        splits[split] = {"images": len(data), "digest": data.digest, "not_exact": inexact(arguments.data, split)}
        print(f"{split}: {len(data):,} images, digest {data.digest}")
    known, found = published(), batches_md5(arguments.data)
    if found:  # of a copy of the published files, a record would claim too much for what was trained on
        same = all(known[name] == md5 for name, md5 in found.items())
        print(f"The batches are {'' if same else 'not '}the published ones.")
        return 0 if same else 1
    record = {"splits": splits, "published_md5": known}
    write_record(RESULT, record)
    write_into(README, "data", sentence(record))
    write_into(BENCHMARKS, "data", details(record))
    print(details(record))
    return 0


if __name__ == "__main__":
    run_main(main)

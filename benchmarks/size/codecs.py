"""Why Huffman codes alone: the symbols of the compressed tags by each standard codec, and how long a tag takes to load.

    pip install zstandard
    python benchmarks/size/codecs.py [--runs 20] [--only PATTERN]

Each tensor's indices (and gaps) are coded by themselves, as in the file. "entropy" is the bound of any coder that knows
how often each symbol occurs in a tensor and nothing else. Times are the best of so many runs, one thread. Loading is
from the file in the package to a network ready for images: its hash, decoding, the comparison of names and shapes.
Writes results/size/codecs.json.
"""

import argparse
import bz2
import fnmatch
import json
import lzma
import math
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import zstandard
from safetensors.torch import load

from benchmarks import RESULTS
from benchmarks.record import write_record
from sqzoo import create_model
from sqzoo.environment import environment
from sqzoo.weights import Entry, read_manifest
from sqzoo.weights.coded import LAYERS, SYMBOLS, deflate
from sqzoo.weights.loading import load_strict, read_verified

RESULT = RESULTS / "size" / "codecs.json"

CODECS: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    "Huffman codes alone (zlib)": (lambda b: deflate([np.frombuffer(b, np.uint8)]), zlib.decompress),
    "deflate (zlib), level 9": (lambda b: zlib.compress(b, 9), zlib.decompress),
    "Zstandard, level 19": (zstandard.ZstdCompressor(level=19).compress, zstandard.ZstdDecompressor().decompress),
    "bzip2, level 9": (bz2.compress, bz2.decompress),
    "LZMA (xz), preset 9": (lambda b: lzma.compress(b, preset=9), lzma.decompress),
}


def entropy(data: bytes) -> float:
    """Return the bytes that symbols take where each is coded by how often it occurs."""
    counts = np.bincount(np.frombuffer(data, np.uint8))
    shares = counts[counts > 0] / len(data)
    return float(-(shares * np.log2(shares)).sum() * len(data) / 8)


def best(work: Callable[[], Any], runs: int) -> float:
    """Return the fewest milliseconds that `work` took in so many runs."""
    took = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return round(1000 * min(took), 2)


def symbols(data: bytes) -> list[bytes]:
    """Return what a file's tensors have before it is coded: each one's indices, or its gaps and then its indices."""
    tensors = {k: zlib.decompress(t.numpy().tobytes()) for k, t in load(data).items() if k in (LAYERS, SYMBOLS)}
    parts, start = [], 0
    for _, shape, _, gaps in json.loads(tensors[LAYERS]):
        for count in [math.prod(shape)] if gaps is None else [gaps, gaps]:
            parts.append(tensors[SYMBOLS][start : start + count])
            start += count
    return [part for part in parts if part]


def measure(entry: Entry, runs: int) -> dict[str, Any]:
    """Return bytes and milliseconds by codec, and the milliseconds to load, of a compressed tag."""
    parts = symbols(entry.path.read_bytes())
    rows: dict[str, Any] = {"entropy": {"bytes": round(sum(map(entropy, parts)))}}
    for name, (pack, unpack) in CODECS.items():
        packed = [pack(part) for part in parts]
        if [unpack(each) for each in packed] != parts:
            raise SystemExit(f"{name} does not give back what it was given.")
        took = best(lambda packed=packed, unpack=unpack: [unpack(each) for each in packed], runs)
        rows[name] = {"bytes": sum(map(len, packed)), "decode_ms": took}
    model = create_model(entry.tag)

    def loading() -> None:
        load_strict(model, read_verified(entry), entry.tag, model.classifier_name, "features.0")

    return {"file_bytes": entry.size, "load_ms": best(loading, runs), "codecs": rows}


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--only", default="*", help="tags to measure; with a pattern nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    entries = [e for e in read_manifest().values() if e.stored == "coded" and fnmatch.fnmatch(e.tag, arguments.only)]
    tags = {entry.tag: measure(entry, arguments.runs) for entry in entries}
    for tag, row in tags.items():
        print(f"{tag}: {row['file_bytes']:,} bytes, loads in {row['load_ms']:.0f} ms")
        for name, found in row["codecs"].items():
            print(f"  {name:28} {found['bytes']:>10,} bytes  {found.get('decode_ms', '-'):>8} ms to decode")
    if arguments.only == "*":
        record = {"environment": environment(), "zstandard": zstandard.__version__, "tags": tags}
        write_record(RESULT, record, tags)


if __name__ == "__main__":
    main()

"""Put a finished run into the package: weights file, manifest entry and record.

python tools/release_weights.py RUN TAG [--record-only]
"""

import argparse
import os
from pathlib import Path

import torch
from safetensors.torch import save

from benchmarks.record import check
from sqzoo.compress.release import add, entry_of, read_run, write_record
from sqzoo.errors import SqzooError, WeightsError
from sqzoo.weights import load_trunk


def publish(run: str | os.PathLike[str], tag: str, root: str | os.PathLike[str], *, record_only: bool = False) -> None:
    """Put the run's best weights and its record under `root` (a checkout), and its entry into the manifest.

    A frozen-trunk run is stored as a head file; an all-layers run as a complete file, none of whose tensors may be
    the trunk's own. `record_only` writes the record alone, for weights too large to ship.
    """
    result, tensors = read_run(run, tag.partition(".")[0])
    check(result)
    entry = entry_of(result, tag, f"benchmarks/results/runs/{tag}.json")
    if record_only:
        write_record(Path(root), entry, result | {"tag": tag})
        return
    if entry["holds"] == "complete":
        trunk = load_trunk(entry["trunk"])
        unchanged = [k for k, v in trunk.items() if k in tensors and torch.equal(v, tensors[k])]
        if unchanged:
            raise WeightsError(f"{run} left {unchanged} as they were in the ImageNet trunk; train all layers.")
    add(Path(root), entry, save(tensors, {"format": "pt", "tag": tag}), result | {"tag": tag})


def main() -> None:
    """Read the arguments and publish into the checkout of the current folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("tag", help="weights tag, such as sq1.paper_cifar10")
    parser.add_argument("--record-only", action="store_true", help="write the record, not the weights")
    arguments = parser.parse_args()
    try:
        publish(arguments.run, arguments.tag, Path.cwd(), record_only=arguments.record_only)
    except SqzooError as e:
        raise SystemExit(f"release_weights: {e}") from e


if __name__ == "__main__":
    main()

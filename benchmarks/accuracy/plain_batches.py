"""Evaluate the tags as a CIFAR-10 user would: plain normalised 32x32 batches through `timm.create_model`.

    python benchmarks/accuracy/plain_batches.py [--only PATTERN] [--data FOLDER]

By the model's own mean and standard deviation, which must give the recorded accuracy to 0.05 points, and by CIFAR-10's,
which many pass instead. Writes results/accuracy/plain_batches.json; exits with 1 where a tag is off its record.
"""

import argparse
import fnmatch
import json

import timm
import torch

from benchmarks import RESULTS, run_main
from benchmarks.record import write_record
from sqzoo import get_weights, list_models
from sqzoo.data import CIFAR10, cifar10
from sqzoo.environment import environment

RESULT = RESULTS / "accuracy" / "plain_batches.json"
TOLERANCE = 0.05  # points of top-1


def top1(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, mean: object, std: object) -> float:
    """Return the top-1 accuracy in percent on uint8 images (N, 3, 32, 32), normalised by `mean` and `std`."""
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    right = 0
    with torch.inference_mode():
        for few, truth in zip(images.split(8), labels.split(8), strict=True):
            right += int((model((few / 255 - shift) / scale).argmax(1) == truth).sum())
    return 100 * right / len(labels)


def main() -> int:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="shell pattern of tags")
    parser.add_argument("--data", help="CIFAR-10 folder (default: $SQZOO_CIFAR10, else the Hub)")
    arguments = parser.parse_args()
    about, data = environment(), cifar10("test", arguments.data)
    images, labels = torch.from_numpy(data.images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(data.labels)
    before = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"tags": {}}
    rows, off = before["tags"], []
    for tag in fnmatch.filter(list_models("*.*", pretrained=True), arguments.only):
        model = timm.create_model(tag, pretrained=True)
        own, recorded = model.pretrained_cfg, get_weights(tag).metrics["test_top1"]
        row = {
            "own": top1(model, images, labels, own["mean"], own["std"]),
            "cifar10": top1(model, images, labels, *CIFAR10),
        }
        off += [tag] if abs(row["own"] - recorded) > TOLERANCE else []
        print(
            f"{tag}: recorded {recorded:.2f} %, own mean and std {row['own']:.2f} %, CIFAR-10's {row['cifar10']:.2f} %"
        )
        rows[tag] = row | {"weights_sha256": get_weights(tag).sha256, "environment": about}
        write_record(RESULT, {"test_digest": data.digest, "tags": rows})  # after each, so that a stop loses one alone
    return 1 if off else 0


if __name__ == "__main__":
    run_main(main)

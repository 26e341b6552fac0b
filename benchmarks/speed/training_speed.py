"""Time to train Sq-1's head for 50 epochs: the textbook loop against the cached trunk, on the same images.

    python benchmarks/speed/training_speed.py [--data FOLDER] [--trunk FOLDER] [--images 2000] [--epochs 2]

Textbook: a torchvision-style data set of PIL images with Resize, CenterCrop, ToTensor and Normalize, a DataLoader with
a worker a core, the frozen trunk run in every epoch. Ours: `sqzoo.train`'s own cache and batches. Both train the same
head from the same seed over the same images in the same order, and the two heads are compared. The times on `--images`
images are multiplied up to 50,000 images and 50 epochs; nothing else is extrapolated.
Writes results/speed/training_speed.json.
"""

import argparse
import os
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from benchmarks import RESULTS
from benchmarks.record import write_record
from sqzoo import create_model
from sqzoo.data import IMAGENET, Dataset, Normalise, cifar10
from sqzoo.environment import environment
from sqzoo.train.features import trunk_features

RESULT = RESULTS / "speed" / "training_speed.json"
IMAGES, EPOCHS, BATCH, LR = 50_000, 50, 128, 0.0004


class TextbookImages(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Labelled PIL images with torchvision's transforms, as torchvision.datasets.CIFAR10 gives them."""

    def __init__(self, data: Dataset, order: np.ndarray) -> None:
        self.data, self.order = data, order
        steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
        self.transform = transforms.Compose([*steps, transforms.Normalize(*IMAGENET)])

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        i = self.order[index]
        return self.transform(Image.fromarray(self.data.images[i])), int(self.data.labels[i])


def head(trunk: str | None) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Return Sq-1 on the ImageNet trunk, its head drawn from seed 0, and the head's optimiser."""
    torch.manual_seed(0)
    model = create_model("sq1", init="imagenet", trunk=trunk, drop_rate=0.0, logit_drop_rate=0.0, upsample=(256, 224))
    model.features.requires_grad_(False)
    return model, torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=LR)


def step(logits: torch.Tensor, labels: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Take one step of Adam on a batch."""
    F.cross_entropy(logits, labels).backward()
    optimizer.step()
    optimizer.zero_grad()


def textbook(data: Dataset, orders: list[np.ndarray], trunk: str | None) -> tuple[torch.nn.Module, float]:
    """Train the textbook way; return the model and the seconds."""
    model, optimizer = head(trunk)
    began = time.perf_counter()
    for order in orders:
        loader = DataLoader(TextbookImages(data, order), batch_size=BATCH, num_workers=os.cpu_count() or 1)
        for images, labels in loader:
            with torch.no_grad():
                features = model.features(images)  # type: ignore[operator]
            step(model.forward_head(features), labels, optimizer)  # type: ignore[operator]
    return model, time.perf_counter() - began


def cached(data: Dataset, orders: list[np.ndarray], trunk: str | None) -> tuple[torch.nn.Module, float, float]:
    """Train on cached features; return the model, the seconds for the cache and those for the epochs."""
    model, optimizer = head(trunk)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    labels = torch.from_numpy(data.labels)
    began = time.perf_counter()
    model.eval()
    images = torch.from_numpy(data.images)
    features = trunk_features(model, images, Normalise(), data.digest)  # type: ignore[arg-type]
    model.train()
    ready = time.perf_counter()
    for order in orders:
        for low in range(0, len(order), BATCH):
            part = order[low : low + BATCH]
            step(model.forward_head(features[part]), labels[torch.from_numpy(part)], optimizer)  # type: ignore[operator]
    return model, ready - began, time.perf_counter() - ready


def main() -> None:
    """Measure both, compare the heads, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="CIFAR-10 folder (default: $SQZOO_CIFAR10, else the Hub)")
    parser.add_argument("--trunk", help="folder with the ImageNet trunk (default: $SQZOO_TRUNKS, else torchvision's)")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    data = cifar10("train", arguments.data)[: arguments.images]
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(data)) for _ in range(arguments.epochs)]
    ours, cache_seconds, epoch_seconds = cached(data, orders, arguments.trunk)
    theirs, textbook_seconds = textbook(data, orders, arguments.trunk)
    scale = IMAGES / len(data)
    ours_50 = cache_seconds * scale + epoch_seconds / len(orders) * EPOCHS * scale
    textbook_50 = textbook_seconds / len(orders) * EPOCHS * scale
    trained = {n for n, p in ours.named_parameters() if p.requires_grad}
    other = dict(theirs.named_parameters())
    moved = max(
        (p - dict(head(arguments.trunk)[0].named_parameters())[n]).abs().max().item()
        for n, p in ours.named_parameters()
        if n in trained
    )
    difference = max((p - other[n]).abs().max().item() for n, p in ours.named_parameters() if n in trained)
    result: dict[str, Any] = {
        "environment": environment(),
        "seed": 0,
        "data_digest": data.digest,
        "images": len(data),
        "epochs": len(orders),
        "measured_seconds": {"textbook": textbook_seconds, "cache": cache_seconds, "cached_epochs": epoch_seconds},
        "seconds_for_50_epochs_of_50000": {"textbook": textbook_50, "cached": ours_50},
        "ratio": textbook_50 / ours_50,
        "heads": {"largest_difference": difference, "largest_change_by_training": moved},
    }
    write_record(RESULT, result)
    print(
        f"50 epochs of 50,000 images: textbook {textbook_50 / 3600:.2f} h, cached {ours_50 / 60:.1f} min: "
        f"x{result['ratio']:.1f}\nheads after {len(orders)} epochs differ by at most {difference:.1e}, where training "
        f"moved weights by up to {moved:.1e}"
    )


if __name__ == "__main__":
    main()

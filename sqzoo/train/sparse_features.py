"""Backbone features of many images by their non-zeros: what a CPU trains heads on (see `sqzoo.models.sparse`)."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from sqzoo.models.sparse import SparseMaps

_SEGMENT = 1 << 16  # positions within a segment fit 16 bits


@dataclass(frozen=True)
class SparseFeatures:
    """Backbone features of a fixed list of images, exact: `features[indices]` gives any of them as `SparseMaps`.

    Two-byte positions and four-byte values take 2.8 GB for SqueezeNet's 50,000 training images, against 17.3 GB dense.
    """

    shape: torch.Tensor  # (C, H, W)
    positions: torch.Tensor  # (non-zeros,) uint16: place within a segment of 65,536 of the image's map (H, W, C)
    values: torch.Tensor  # (non-zeros,) float32
    counts: torch.Tensor  # (images, segments) int64: non-zeros in each segment

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def nbytes(self) -> int:
        """Bytes of positions and values."""
        return self.positions.nbytes + self.values.nbytes

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what `SparseFeatures(**tensors)` takes."""
        return {name: getattr(self, name) for name in ("shape", "positions", "values", "counts")}

    @staticmethod
    def join(parts: list["SparseFeatures"]) -> "SparseFeatures":
        """Return the features of all parts' images, in order."""
        names = ("positions", "values", "counts")
        return SparseFeatures(parts[0].shape, *(torch.cat([getattr(p, n) for p in parts]) for n in names))

    @cached_property
    def _ends(self) -> np.ndarray:
        """Non-zeros before each image, and of all: (images + 1,)."""
        return np.concatenate([[0], np.cumsum(self.counts.numpy().sum(1))])

    def __getitem__(self, index: torch.Tensor | np.ndarray) -> SparseMaps:
        indices = np.arange(len(self))[
            np.asarray(index)
        ]  # counts negative ones from the end, refuses those out of range
        channels, height, width = self.shape.tolist()
        all_positions, all_values, counts = self.positions.numpy(), self.values.numpy(), self.counts.numpy()
        spans = [slice(*self._ends[i : i + 2]) for i in indices]
        first = np.arange(len(indices))[:, None] * (channels * height * width) + np.arange(counts.shape[1]) * _SEGMENT
        where = np.repeat(first.ravel(), counts[indices].ravel())
        where += np.concatenate([all_positions[span] for span in spans])
        values = np.concatenate([all_values[span] for span in spans])
        return SparseMaps((len(indices), channels, height, width), where, torch.from_numpy(values))


def sparse_of(maps: torch.Tensor) -> SparseFeatures:
    """Return dense maps (N, C, H, W) by their non-zeros."""
    count, *shape = maps.shape
    flat = maps.permute(0, 2, 3, 1).reshape(count, -1)
    where = torch.nonzero(flat)
    segments = -(-flat.shape[1] // _SEGMENT)
    rows = where[:, 0] * segments + where[:, 1] // _SEGMENT
    counts = torch.bincount(rows, minlength=count * segments).view(count, segments)
    positions = (where[:, 1] % _SEGMENT).to(torch.uint16)
    return SparseFeatures(torch.tensor(shape), positions, flat[where[:, 0], where[:, 1]], counts)

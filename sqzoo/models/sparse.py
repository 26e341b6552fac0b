"""Store feature maps as their non-zeros, and convolve them (1x1) as such, to train heads on a CPU.

After SqueezeNet's last ReLU nine values in ten are zero. A 1x1 convolution of such a map is a weighted sum of weight
rows at each position, and its gradient a weighted sum of gradient rows for each channel: both are what
`torch.nn.functional.embedding_bag` computes fast. On one AVX-512 core, forward and backward of Sq-1's 512 to 128
channels take 80 microseconds per image instead of 300.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

_SEGMENT = 1 << 16  # positions within a segment fit 16 bits
_SLICE = 16  # images per backward sum: their output gradients, 1.4 MB for 128 channels, fit into the cache


class SparseMaps:
    """Sparse maps (N, C, H, W) for 1x1 `conv2d` and `dropout`; other torch functions receive the dense tensor.

    No gradient flows back into the maps.

    Args:
        shape: (N, C, H, W).
        where: (non-zeros,) int64, ascending: offsets in the maps laid out as (N, H, W, C).
        values: (non-zeros,) float32.
    """

    def __init__(self, shape: tuple[int, int, int, int], where: np.ndarray, values: torch.Tensor) -> None:
        self.shape, self.where, self.values = shape, where, values

    def __len__(self) -> int:
        return self.shape[0]

    def dense(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return the dense tensor, channels last."""
        count, channels, height, width = self.shape
        out = torch.zeros(count * channels * height * width, dtype=dtype)
        out.index_copy_(0, torch.from_numpy(self.where), self.values.to(dtype))
        return out.view(count, height, width, channels).permute(0, 3, 1, 2)

    @cached_property
    def channels(self) -> torch.Tensor:
        """Channel of each non-zero, int32."""
        channels = self.shape[1]
        power_of_two = channels & (channels - 1) == 0  # the remainder takes five times as long
        result = self.where & (channels - 1) if power_of_two else self.where % channels
        return torch.from_numpy(result.astype(np.int32))

    @cached_property
    def starts(self) -> torch.Tensor:
        """First non-zero of each position, and their number, int32: (N * H * W + 1,)."""
        count, channels, height, width = self.shape
        firsts = np.arange(count * height * width + 1) * channels
        return torch.from_numpy(np.searchsorted(self.where, firsts).astype(np.int32))

    @cached_property
    def by_channel(self) -> list[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """The non-zeros sorted by channel, a few images at a time: (positions, position, first, value)."""
        from scipy.sparse import csr_matrix  # an optional package, of the extra "train"

        count, channels, height, width = self.shape
        values, columns, starts = self.values.numpy(), self.channels.numpy(), self.starts.numpy()
        slices = []
        for image in range(0, count, _SLICE):
            low, high = image * height * width, min(image + _SLICE, count) * height * width
            first, last = starts[low], starts[high]
            rows = csr_matrix(
                (values[first:last], columns[first:last], starts[low : high + 1] - first), (high - low, channels)
            )
            turned = rows.tocsc()
            parts = (torch.from_numpy(a) for a in (turned.indices, turned.indptr, turned.data))
            slices.append((slice(low, high), *parts))
        return slices  # type: ignore[return-value]

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return _dropout(*args, **kwargs)
        plain_1x1 = func is torch.conv2d and args[3:] == ((1, 1), (0, 0), (1, 1), 1) and args[1].shape[2:] == (1, 1)
        if plain_1x1 and not kwargs:
            return _Convolution.apply(*args[:3])
        return func(*_dense(args), **dict(zip(kwargs, _dense(kwargs.values()), strict=True)))


def _dense(arguments: Any) -> Iterator[Any]:
    return (a.dense() if isinstance(a, SparseMaps) else a for a in arguments)


def _dropout(maps: SparseMaps, p: float = 0.5, training: bool = True, inplace: bool = False) -> SparseMaps:
    """Drop non-zeros only (a dropped zero stays zero): a tenth of the random numbers."""
    if not training or p == 0:
        return maps
    return SparseMaps(maps.shape, maps.where, F.dropout(maps.values, p))


class _Convolution(torch.autograd.Function):
    """1x1 convolution of maps by weight (O, C, 1, 1) and bias (O,): (N, O, H, W), channels last."""

    @staticmethod
    def forward(ctx: Any, maps: SparseMaps, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.maps, ctx.has_bias = maps, bias is not None
        rows = _sums(maps.channels, weight.flatten(1).t().contiguous(), maps.starts, maps.values)
        if bias is not None:
            rows += bias
        count, _, height, width = maps.shape
        out = rows.view(count, height, width, len(weight)).permute(0, 3, 1, 2)
        # Not a view: after one, an in-place ReLU would cost autograd two copies.
        return torch.empty(0).set_(out.untyped_storage(), 0, out.shape, out.stride())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[None, torch.Tensor, torch.Tensor | None]:
        channels, outputs = ctx.maps.shape[1], grads[0].shape[1]
        rows = grads[0].permute(0, 2, 3, 1).reshape(-1, outputs)
        total = torch.zeros(channels, outputs)
        for positions, position, first, value in ctx.maps.by_channel:
            total += _sums(position, rows[positions], first, value)
        return None, total.t()[:, :, None, None], rows.sum(0) if ctx.has_bias else None


def _sums(rows: torch.Tensor, table: torch.Tensor, starts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return F.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights, include_last_offset=True)


@dataclass(frozen=True)
class SparseFeatures:
    """Exact trunk features of a list of images: `features[indices]` gives `SparseMaps`.

    Two-byte positions and four-byte values take 2.8 GB for SqueezeNet's 50,000 training images, dense maps 17.3 GB.
    They are stored in shards of equally many images, the last excepted, so that at most one is ever copied.
    """

    shape: torch.Tensor  # (C, H, W)
    positions: list[torch.Tensor]  # by shard (non-zeros,) uint16: offset in a segment of 65,536 of a map (H, W, C)
    values: list[torch.Tensor]  # by shard (non-zeros,) float32
    counts: torch.Tensor  # (images, segments) int64: non-zeros in each segment
    per_shard: int  # images

    def __len__(self) -> int:
        return len(self.counts)

    @staticmethod
    def of(shards: list[dict[str, torch.Tensor]]) -> "SparseFeatures":
        """Join shards, as `sparse_shard` returns them."""
        positions, values, counts = ([shard[n] for shard in shards] for n in ("positions", "values", "counts"))
        return SparseFeatures(shards[0]["shape"], positions, values, torch.cat(counts), len(counts[0]))

    @cached_property
    def _ends(self) -> np.ndarray:
        """Non-zeros before each image, and of all: (images + 1,)."""
        return np.concatenate([[0], np.cumsum(self.counts.numpy().sum(1))])

    def __getitem__(self, index: torch.Tensor | np.ndarray) -> SparseMaps:
        indices = np.arange(len(self))[np.asarray(index)]  # resolves negative indices, refuses those out of range
        channels, height, width = self.shape.tolist()
        counts, positions, values = self.counts.numpy(), [], []
        for i in indices:
            shard = i // self.per_shard
            low, high = self._ends[i : i + 2] - self._ends[shard * self.per_shard]
            positions.append(self.positions[shard].numpy()[low:high])
            values.append(self.values[shard].numpy()[low:high])
        first = np.arange(len(indices))[:, None] * (channels * height * width) + np.arange(counts.shape[1]) * _SEGMENT
        where = np.repeat(first.ravel(), counts[indices].ravel())
        where += np.concatenate(positions)
        maps = torch.from_numpy(np.concatenate(values))
        return SparseMaps((len(indices), channels, height, width), where, maps)


def sparse_shard(batches: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert batches of dense maps (N, C, H, W) to a shard of `SparseFeatures`."""
    parts: dict[str, list[torch.Tensor]] = {"positions": [], "values": [], "counts": []}
    for maps in batches:
        count, *shape = maps.shape
        flat = maps.permute(0, 2, 3, 1).reshape(count, -1)
        where = torch.nonzero(flat)
        segments = -(-flat.shape[1] // _SEGMENT)
        rows = where[:, 0] * segments + where[:, 1] // _SEGMENT
        parts["positions"].append((where[:, 1] % _SEGMENT).to(torch.uint16))
        parts["values"].append(flat[where[:, 0], where[:, 1]])
        parts["counts"].append(torch.bincount(rows, minlength=count * segments).view(count, segments))
    return {"shape": torch.tensor(shape)} | {name: torch.cat(some) for name, some in parts.items()}

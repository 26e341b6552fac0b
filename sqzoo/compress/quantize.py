"""Quantise one layer: an entropy-constrained codebook, and each weight's error compensated by the later weights.

The codebook comes from k-means that also counts the bits of each index (Chou, Lookabaugh, Gray 1989), which prunes as
it quantises: zero is the cheapest. Errors are compensated as in GPTQ (Frantar et al. 2023), their mean by the bias.
"""

import math

import torch

from sqzoo.compress.stages import Layer, Moments
from sqzoo.weights.coded import pick_encoding

_SAMPLE = 20_000  # weights that a codebook is fitted to
_FINEST = 120  # steps from zero to a layer's largest weight: an index is a byte
_BLOCK = 64  # columns whose errors are passed on together
# Bits against squared error: at fine steps a quantiser's error is step^2 / 12 and falls by 4 per bit.
_PRICE = 2 * math.log(2) / 12


def set_rows(layer: Layer, rows: torch.Tensor, output: torch.Tensor, mean: torch.Tensor) -> None:
    """Set a layer's weights to `rows`, and its bias so that inputs of that mean give that mean output."""
    layer.weight.copy_(rows.view(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.copy_((output - rows @ mean).half())


def quantize_rows(rows: torch.Tensor, moments: Moments, step: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise weights (units, inputs), by about `step`; return indices of that shape and at most 256 values."""
    values, counts = _codebook(rows, step)
    price = _PRICE * step**2 * (moments.spread.diagonal() ** -2).median()
    indices = _round(rows, moments, values, counts, price)
    counts = torch.bincount(indices.flatten(), minlength=len(values))
    used = (counts > 0) | (values == 0)
    return (used.cumsum(0) - 1)[indices], values[used]


def quantize_to(rows: torch.Tensor, moments: Moments, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise weights (units, inputs) to `levels` values, by k-means; return indices of that shape and the values."""
    sample = _sample(rows).sort().values
    grid = torch.linspace(0, 1, levels)
    # Between equal steps and equal counts: the one wastes values on few large weights, the other lacks them there.
    values = (sample[(grid * (len(sample) - 1)).long()] + sample[0] + grid * (sample[-1] - sample[0])) / 2
    for _ in range(60):
        chosen = torch.bucketize(sample, (values[1:] + values[:-1]) / 2)
        counts = torch.bincount(chosen, minlength=levels)
        values = torch.where(counts > 0, torch.zeros(levels).index_add_(0, chosen, sample) / counts, values)
    return _round(rows, moments, values, torch.ones(levels), torch.tensor(0.0)), values


def _round(
    rows: torch.Tensor, moments: Moments, values: torch.Tensor, counts: torch.Tensor, price: torch.Tensor
) -> torch.Tensor:
    """Return an index into `values` per weight; each column's errors are compensated by the later columns."""
    rows, indices = rows.clone(), torch.empty(rows.shape, dtype=torch.long)
    diagonal = moments.spread.diagonal()
    for low in range(0, rows.shape[1], _BLOCK):
        high = min(rows.shape[1], low + _BLOCK)
        bits = -torch.log2(counts / counts.sum())
        errors = torch.empty(len(rows), high - low)
        for j in range(low, high):
            weights = rows[:, j]
            chosen = ((weights[:, None] - values) ** 2 + price * diagonal[j] ** 2 * bits).argmin(1)
            indices[:, j] = chosen
            errors[:, j - low] = (weights - values[chosen]) / diagonal[j]
            rows[:, j + 1 : high] -= torch.outer(errors[:, j - low], moments.spread[j, j + 1 : high])
        rows[:, high:] -= errors @ moments.spread[low:high, high:]
        counts = counts + torch.bincount(indices[:, low:high].flatten(), minlength=len(values))
    return indices


def _codebook(rows: torch.Tensor, step: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit a codebook, float16 values in float32 with zero among them; return it and about how often each is used."""
    step = max(step, rows.abs().max().item() / _FINEST)
    sample = _sample(rows)
    low, high = (math.floor(v.item() / step + 0.5) for v in rows.aminmax())
    values = torch.arange(min(low, 0), max(high, 0) + 1) * step
    counts = torch.bincount(torch.round(sample / step).long() - min(low, 0), minlength=len(values)) + 0.5
    for _ in range(5):
        chosen = ((sample[:, None] - values) ** 2 - _PRICE * step**2 * torch.log2(counts / counts.sum())).argmin(1)
        counts = torch.bincount(chosen, minlength=len(values)).float()
        centres = torch.zeros_like(values).index_add_(0, chosen, sample) / counts
        values = torch.where(counts > 0, centres, values)
        counts += 0.5
        values[values.abs().argmin()] = 0
    return values.half().float(), counts * (rows.numel() / len(sample) / 10)


def _sample(rows: torch.Tensor) -> torch.Tensor:
    flat = rows.flatten()
    return flat[:: math.ceil(len(flat) / _SAMPLE)]


def step_for(rows: torch.Tensor, bits: float) -> float:
    """Return the step at which a uniform quantiser takes so many bits per weight, by the indices' entropy."""
    sample, largest = _sample(rows), rows.abs().max().item()
    low, high = -math.log2(_FINEST), 0.5
    for _ in range(30):
        middle = (low + high) / 2
        counts = torch.round(sample / (largest * 2**middle)).long().unique(return_counts=True)[1]
        shares = counts.double() / counts.sum()
        entropy = float(-(shares * shares.log2()).sum())
        low, high = (middle, high) if entropy > bits else (low, middle)
    return largest * 2**high


def bits_per_weight(indices: torch.Tensor, values: torch.Tensor) -> float:
    """Return the bits that each weight takes in the file."""
    coded = pick_encoding(indices.to(torch.uint8).numpy().ravel(), values.numpy())
    return 8 * coded[1] / indices.numel()

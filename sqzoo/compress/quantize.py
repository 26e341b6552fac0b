"""A network's weights made small: shared values, fewer bits where a layer bears it, Huffman codes; no training.

    sqzoo compress sq1.ft_cifar10 sq1.tiny_cifar10

Weight sharing and Huffman codes are those of "Deep Compression" (Han, Mao, Dally 2016). The values of a layer come from
k-means that also counts the bits of each index (entropy-constrained: Chou, Lookabaugh, Gray 1989), which prunes as it
quantises: zero is the cheapest. Each weight's error is made up for by the weights not yet coded (GPTQ: Frantar et al.
2023), the mean error by the bias. How coarse a layer may be is measured, one layer at a time, on training images that
the parent did not learn from; no setting looks at the test images.
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load, save

from sqzoo.data import Dataset, Normalise
from sqzoo.errors import ArgumentError
from sqzoo.models.base import ZooModel
from sqzoo.weights.coded import CodedTensor, decode, encode, pick_encoding

Batches = list[torch.Tensor]
_BATCH = 16  # images
_TRUNK_IMAGES = 512  # that a trunk's layers are measured on: each has many places; a head's wide layers have one
_PLACES = 49  # of a map that a convolution is measured at
_SAMPLE = 20_000  # weights that a layer's values are found from
_FINEST = 120  # steps from zero to a layer's largest weight: an index is a byte
_BLOCK = 64  # columns whose errors are passed on together
_DAMPING = 0.01  # of the mean variance, as in GPTQ
# Bits against squared error: at fine steps a quantiser's error is step^2 / 12 and falls by 4 a bit.
_PRICE = 2 * math.log(2) / 12


@dataclass(frozen=True)
class Moments:
    """A layer's inputs over the calibration images: their mean (d,) and what spreads a weight's error (d, d).

    `spread` is upper triangular with `spread.T @ spread` the inverse of the inputs' covariance.
    """

    mean: torch.Tensor
    spread: torch.Tensor


@dataclass(frozen=True)
class Probe:
    """A layer coded alone: log2 of its step, bits a weight, and what it costs (KL to the parent, nats)."""

    step: float
    bits: float
    loss: float


@dataclass(frozen=True)
class Compressed:
    """What came of it: the file's bytes, the decoded model, and a row a layer for the record."""

    data: bytes
    model: ZooModel
    layers: dict[str, dict[str, Any]]


def compress(
    parent: ZooModel,
    calibration: Dataset,
    held_out: Dataset,
    size: int,
    *,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[str], Any] = lambda line: None,
) -> Compressed:
    """Return `parent` as a coded file of at most `size` bytes, and the model that it decodes to.

    parent: a float32 model in evaluation mode, with its `pretrained_cfg`. calibration: training images whose
    activations steer the rounding. held_out: training images on which each layer's sensitivity is measured. Raises
    `ArgumentError` where `size` cannot be reached.
    """
    if not all(t.isfinite().all() for t in parent.state_dict().values()):
        raise ArgumentError("The weights are not all finite (NaN or infinity): a training that failed; give others.")
    model = copy.deepcopy(parent).eval().to(memory_format=torch.channels_last)
    layers = _layers(model)
    weights = sum(m.weight.numel() for m in layers.values())
    others = {k: v for k, v in model.state_dict().items() if k.removesuffix(".weight") not in layers}
    # What the file holds besides: the others in half precision, their names, the codebooks.
    spare = 2 * sum(t.numel() for t in others.values()) + 80 * len(others) + 100 * len(layers) + 400
    budget = 0.995 * 8 * (size - spare)
    if budget < 0.1 * weights:
        raise ArgumentError(f"size={size} is too small for {weights:,} weights; give at least {spare + weights // 80}.")
    with torch.inference_mode():
        probes, means = _probe(model, calibration, held_out, budget / weights, progress)
        for _ in range(4):
            steps = _share_out(probes, {n: m.weight.numel() for n, m in layers.items()}, budget)
            coded, biases, rows = _code(copy.deepcopy(model), means, calibration, steps, progress)
            data = save(encode(coded, others | biases), {"format": "pt", **(metadata or {})})
            if len(data) <= size:
                break
            progress(f"{len(data):,} bytes are too many for {size:,}: once more")
            budget -= 10 * (len(data) - size) + 0.005 * budget  # 8 bits a byte, and some more
        else:
            raise ArgumentError(f"size={size} was not reached, {len(data)} bytes were; give more.")
        model.load_state_dict(decode(load(data), weights, "the coded file"), strict=True)
    for name, row in rows.items():
        row["probes"] = [dataclasses.asdict(p) for p in probes[name]]
    return Compressed(data, model, rows)


def _layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    found = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    grouped = [n for n, m in found.items() if getattr(m, "groups", 1) > 1]
    if grouped:
        raise ArgumentError(f"{grouped[0]} is a grouped convolution, which is not compressed; take separable=False.")
    return found


def _stages(model: ZooModel) -> Iterator[tuple[int, Callable[[torch.Tensor], torch.Tensor], list[str]]]:
    """Yield (number, forward, names of its layers) of the trunk's layers in turn, then of the head."""
    names = list(_layers(model))
    for i, stage in enumerate(model.features):
        yield i, stage, [n for n in names if f"{n}.".startswith(f"features.{i}.")]
    yield len(model.features), model.forward_head, [n for n in names if not n.startswith("features.")]


def _prepared(model: ZooModel, data: Dataset) -> Batches:
    return list(_batches(model, data))


def _behind_trunk(model: ZooModel, data: Dataset) -> Batches:
    return [model.features(x) for x in _batches(model, data)]


def _batches(model: ZooModel, data: Dataset) -> Iterator[torch.Tensor]:
    normalise = Normalise.of(model)
    for i in range(0, len(data), _BATCH):
        yield model.upsample(normalise(data.images[i : i + _BATCH]))


def _advance(stage: Callable[[torch.Tensor], torch.Tensor], batches: Batches) -> None:
    for i, x in enumerate(batches):
        batches[i] = stage(x)


# What a layer bears


def _probe(
    model: ZooModel, calibration: Dataset, held_out: Dataset, bits: float, progress: Callable[[str], Any]
) -> tuple[dict[str, list[Probe]], dict[str, torch.Tensor]]:
    """Return two probes of each layer, at fewer and more bits than the average, and its mean output (channels,)."""
    layers, stages = _layers(model), list(_stages(model))
    inputs, held = _prepared(model, calibration[:_TRUNK_IMAGES]), _prepared(model, held_out)
    wanted = F.log_softmax(torch.cat([model(x) for x in held]).double(), 1)
    weights = sum(m.weight.numel() for m in layers.values())
    probes: dict[str, list[Probe]] = {}
    means = {}
    for i, stage, names in stages:
        if i == len(model.features):
            inputs = _behind_trunk(model, calibration)
        for name, found in _moments(stage, {n: layers[n] for n in names}, inputs):
            layer, rows = layers[name], _rows(layers[name])
            before = copy.deepcopy(layer.state_dict())
            means[name] = rows @ found.mean + _bias(layer)
            # A small layer of a network of very few bits a weight is worth more of them.
            usual = bits if layer.weight.numel() > weights / 10 else max(bits, 3.0)
            probes[name] = []
            for share in (1.4, 0.8):
                step = _step(rows, usual * share)
                indices, values = _coded(rows, found, step)
                _put(layer, values[indices], means[name], found.mean)
                got = torch.cat([_rest(stages, i, x) for x in held]).double()
                loss = F.kl_div(F.log_softmax(got, 1), wanted, reduction="batchmean", log_target=True).item()
                probes[name].append(Probe(math.log2(step), _bits(indices, values), max(loss, 1e-9)))
                layer.load_state_dict(before)
            progress(f"{name}: " + ", ".join(f"{p.bits:.2f} bits cost {p.loss:.5f}" for p in probes[name]))
        _advance(stage, inputs)
        _advance(stage, held)
    return probes, means


def _rest(stages: list[Any], start: int, x: torch.Tensor) -> torch.Tensor:
    for _, stage, _ in stages[start:]:
        x = stage(x)
    return x


def _share_out(probes: Mapping[str, list[Probe]], sizes: Mapping[str, int], budget: float) -> dict[str, float]:
    """Return each layer's step, for as many bits together, so that a bit more is worth the same in all of them.

    Between and around a layer's two probes its loss is taken as a power of the step, its bits as linear in log(step).
    """

    def at(worth: float) -> tuple[dict[str, float], float]:
        steps, bits = {}, 0.0
        for name, (fine, coarse) in probes.items():
            width = max(coarse.step - fine.step, 0.01)
            power = min(max(math.log2(coarse.loss / fine.loss) / width, 0.5), 4.0)
            slope = max((fine.bits - coarse.bits) / width, 0.1)
            loss = worth * sizes[name] * slope / power
            step = fine.step + math.log2(loss / fine.loss) / power
            step = min(max(step, fine.step - 2), coarse.step + 1)  # no further than the probes can tell
            steps[name] = 2**step
            bits += sizes[name] * max(fine.bits - slope * (step - fine.step), 0.05)
        return steps, bits

    low, high = -60.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at(2**middle)[1] > budget else (low, middle)
    return at(2**high)[0]


# Coding


def _code(
    model: ZooModel,
    means: Mapping[str, torch.Tensor],
    calibration: Dataset,
    steps: Mapping[str, float],
    progress: Callable[[str], Any],
) -> tuple[dict[str, CodedTensor], dict[str, torch.Tensor], dict[str, dict[str, Any]]]:
    """Code all layers in turn, each on what the coded ones before it give; return indices and values, biases, rows."""
    layers, inputs = _layers(model), _prepared(model, calibration[:_TRUNK_IMAGES])
    coded: dict[str, CodedTensor] = {}
    biases, rows = {}, {}
    for i, stage, names in _stages(model):
        if i == len(model.features):
            inputs = _behind_trunk(model, calibration)
        for name in names:
            layer = layers[name]
            ((_, found),) = _moments(stage, {name: layer}, inputs)
            indices, values = _coded(_rows(layer), found, steps[name])
            _put(layer, values[indices], means[name], found.mean)
            shaped = indices.view(layer.weight.shape).to(torch.uint8).numpy()
            coded[f"{name}.weight"] = (shaped, values.half().numpy())
            if layer.bias is not None:
                biases[f"{name}.bias"] = layer.bias.clone()
            rows[name] = {
                "weights": indices.numel(),
                "values": len(values),
                "bits": round(_bits(indices, values), 4),
                "zeros": round((values[indices] == 0).double().mean().item(), 4),
            }
            progress(f"{name}: {rows[name]}")
        _advance(stage, inputs)
    return coded, biases, rows


def _rows(layer: nn.Conv2d | nn.Linear) -> torch.Tensor:
    return layer.weight.detach().flatten(1)


def _bias(layer: nn.Conv2d | nn.Linear) -> torch.Tensor:
    return torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()


def _put(layer: nn.Conv2d | nn.Linear, rows: torch.Tensor, wanted: torch.Tensor, mean: torch.Tensor) -> None:
    """Give a layer its new weights, and the bias with which its mean output is the parent's."""
    layer.weight.copy_(rows.view(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.copy_((wanted - rows @ mean).half())


class _Sums:
    """Sums over a layer's inputs, one column of weights each: what `Moments` are made of."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        width = layer.weight[0].numel()
        self.squares, self.sum, self.count = torch.zeros(width, width), torch.zeros(width), 0

    def note(self, layer: nn.Conv2d | nn.Linear, inputs: tuple[torch.Tensor]) -> None:
        (x,) = inputs
        if isinstance(layer, nn.Conv2d):
            columns = F.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride)  # type: ignore[arg-type]
            x = columns[:, :, :: -(-columns.shape[2] // _PLACES)].transpose(1, 2).flatten(0, 1)
        self.squares.addmm_(x.T, x)
        self.sum += x.sum(0)
        self.count += len(x)

    def moments(self) -> Moments:
        mean = self.sum / self.count
        covariance = self.squares.div_(self.count).addr_(mean, mean, alpha=-1)
        # Of few images for many inputs, correlations are in part chance.
        variances = covariance.diagonal().clamp(min=0)
        covariance *= self.count / (self.count + 0.2 * len(mean))
        covariance.diagonal().copy_(variances + _DAMPING * variances.mean() + 1e-6 * mean.square().mean() + 1e-12)
        if len(mean) <= 4096:  # larger ones would take gigabytes
            covariance = covariance.double()
        # With the order turned, Cholesky's lower factor becomes an upper one, whose inverse is the one wanted.
        upper = torch.linalg.cholesky(covariance.flip(0, 1)).flip(0, 1)
        identity = torch.eye(len(mean), dtype=upper.dtype)
        return Moments(mean, torch.linalg.solve_triangular(upper, identity, upper=True).float())


def _moments(
    stage: Callable[[torch.Tensor], torch.Tensor], layers: Mapping[str, nn.Conv2d | nn.Linear], inputs: Batches
) -> Iterator[tuple[str, Moments]]:
    """Yield the moments of the inputs of a stage's layers, over the batches that go into the stage."""
    sums = {name: _Sums(layer) for name, layer in layers.items()}
    hooks = [layer.register_forward_pre_hook(sums[name].note) for name, layer in layers.items()]
    for x in inputs if layers else []:
        stage(x)
    for hook in hooks:
        hook.remove()
    for name in layers:
        yield name, sums.pop(name).moments()


def _coded(rows: torch.Tensor, found: Moments, step: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return indices (rows' shape) and values (at most 256) of a layer's weights, for a step between the values."""
    values, counts = _values(rows, step)
    rows, indices = rows.clone(), torch.empty(rows.shape, dtype=torch.long)
    diagonal = found.spread.diagonal()
    price = _PRICE * step**2 * (diagonal**-2).median()
    for low in range(0, rows.shape[1], _BLOCK):
        high = min(rows.shape[1], low + _BLOCK)
        bits = -torch.log2(counts / counts.sum())
        errors = torch.empty(len(rows), high - low)
        for j in range(low, high):
            weights = rows[:, j]
            chosen = ((weights[:, None] - values) ** 2 + price * diagonal[j] ** 2 * bits).argmin(1)
            indices[:, j] = chosen
            errors[:, j - low] = (weights - values[chosen]) / diagonal[j]
            rows[:, j + 1 : high] -= torch.outer(errors[:, j - low], found.spread[j, j + 1 : high])
        rows[:, high:] -= errors @ found.spread[low:high, high:]
        counts += torch.bincount(indices[:, low:high].flatten(), minlength=len(values))
    counts = torch.bincount(indices.flatten(), minlength=len(values))
    used = (counts > 0) | (values == 0)
    return (used.cumsum(0) - 1)[indices], values[used]


def _values(rows: torch.Tensor, step: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a layer's values, float16 in float32, zero among them, and about how often each is used."""
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
    return flat[:: -(-len(flat) // _SAMPLE)]


def _step(rows: torch.Tensor, bits: float) -> float:
    """Return the step at which evenly spaced values take so many bits a weight."""
    sample, largest = _sample(rows), rows.abs().max().item()
    low, high = -math.log2(_FINEST), 0.5
    for _ in range(30):
        middle = (low + high) / 2
        rounded = torch.round(sample / (largest * 2**middle)).long()
        low, high = (middle, high) if _entropy(rounded) > bits else (low, middle)
    return largest * 2**high


def _bits(indices: torch.Tensor, values: torch.Tensor) -> float:
    """Return the bits that a weight takes in the file."""
    coded = pick_encoding(indices.to(torch.uint8).numpy().ravel(), values.numpy())
    return 8 * coded[1] / indices.numel()


def _entropy(indices: torch.Tensor) -> float:
    """Return the bits an index takes where each is coded by how often it occurs."""
    _, counts = indices.unique(return_counts=True)
    shares = counts.double() / counts.sum()
    return float(-(shares * shares.log2()).sum())

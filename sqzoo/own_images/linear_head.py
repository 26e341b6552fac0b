"""A head by multinomial logistic regression on the frozen backbone's pooled features, as weights of the architecture.

The strength of its L2 penalty is chosen by cross-validation on the training images alone. Each architecture can hold a
linear classifier exactly, so the result is an ordinary model, and a good start for training all layers.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from sqzoo.data import NORMALISATIONS, Normalise
from sqzoo.environment import environment
from sqzoo.errors import ArgumentError
from sqzoo.evaluation import metrics
from sqzoo.files import write_json
from sqzoo.models.base import ZooModel
from sqzoo.own_images.pixels import ImageSet
from sqzoo.registry import start_from, start_sha256
from sqzoo.train.checkpoint import open_run
from sqzoo.train.learner import initial_model
from sqzoo.train.recipes import Recipe

STRENGTHS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)  # of the penalty, strongest first: each fit starts from the one before
_FOLDS, _MANY = 5, 5000  # more training images than that are split once: the error is small, and fits take long
_CHUNK = 8  # images per forward pass, which stay in a CPU's cache
_OFFSET = 0.01  # see `_set_fire_next`


def train_head(
    plan: Recipe,
    images: ImageSet,
    folder: Path,
    *,
    trunk: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> tuple[ZooModel, dict[str, Any]]:
    """Fit the head of a recipe's initial model to the training images; a finished one is read again.

    Args:
        plan: start, size, normalisation, seed and the model's arguments.
        images: of the plan's size.
        folder: of the stage, new or this one's.
        trunk: file or folder with the ImageNet backbone.
        device: where the features are computed.
        progress: show a bar on a terminal.

    Returns:
        The model on the device, and the stage's result: as `train`'s, and `cross_validation`.
    """
    facts: dict[str, Any] = {"recipe": plan.to_json(), "train_digest": images.digest, "environment": environment()}
    facts["start_sha256"] = None if plan.start == "imagenet" else start_sha256(plan.start)
    model = initial_model(plan, trunk).to(device).eval()
    identity = {k: v for k, v in facts.items() if k != "environment"}
    if finished := open_run(folder, identity):
        start_from(model, str(folder / "model.safetensors"))
        return model, finished
    write_json(folder / "recipe.json", identity)
    train_idx, val_idx = images.split(0)
    normalise, began = Normalise(*NORMALISATIONS[plan.normalisation]), time.perf_counter()
    views = (False, True) if len(train_idx) <= _MANY else (False,)
    total = len(views) * len(train_idx) + len(val_idx)
    with tqdm(total=total, desc="features", disable=None if progress else True, leave=False) as bar:
        train = torch.stack([_pooled(model, images.images, train_idx, normalise, flip, bar) for flip in views])
        val = _pooled(model, images.images, val_idx, normalise, False, bar)
    feature_seconds, began = time.perf_counter() - began, time.perf_counter()
    head = fit_head(train, torch.from_numpy(images.labels[train_idx]), len(images.classes), plan.seed)
    set_head(model, head)
    scores = [{"strength": s, "loss": round(a, 4), "top1": round(b, 2)} for s, (a, b) in head.scores.items()]
    result = facts | {
        "epoch": 0,
        "val": vars(metrics(val @ head.weight.t() + head.bias, images.labels[val_idx])),
        "training_seconds": round(time.perf_counter() - began, 1),
        "feature_seconds": round(feature_seconds, 1),
        "log": [],
        "cross_validation": {"strength": head.strength, "scores": scores},
    }
    return model, result


@torch.inference_mode()
def _pooled(
    model: ZooModel, images: np.ndarray, idx: np.ndarray, normalise: Normalise, flip: bool, bar: Any
) -> torch.Tensor:
    """Return average-pooled features (N, D) of some images or of their mirror images, on the CPU."""
    device, rows = next(model.parameters()).device, []
    for few in np.split(idx, range(_CHUNK, len(idx), _CHUNK)):
        x = normalise(torch.from_numpy(images[few]).to(device))
        maps = model.forward_features(x.flip(3) if flip else x)
        rows.append(F.adaptive_avg_pool2d(maps, model.global_pool.side).flatten(1).float().cpu())
        bar.update(len(few))
    return torch.cat(rows)


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier of pooled features (D,): `weight` (classes, D), `bias` (classes,), and how it was chosen.

    `scores` has, by strength, the cross-validated loss (nats) and accuracy (percent).
    """

    weight: torch.Tensor
    bias: torch.Tensor
    strength: float
    scores: dict[float, tuple[float, float]]


def head_args(architecture: str, num_classes: int) -> dict[str, Any]:
    """Return the arguments with which an architecture can hold a linear classifier of so many classes."""
    if architecture == "sq1":  # Table 3's widths where they suffice
        return {"width": min(max(128, 2 * num_classes), 512), "mid": max(32, num_classes)}
    if architecture == "fire_next":  # figure 11, left: the features pass around the block
        return {"add": True, "width": 512}
    return {"logit_relu": False} if architecture == "squeezenet_cifar" else {}


def fit_head(features: torch.Tensor, labels: torch.Tensor, num_classes: int, seed: int) -> LinearHead:
    """Fit logistic regression on pooled features, with a penalty chosen by stratified 5-fold cross-validation.

    Args:
        features: (views, N, D) of the training images, such as each image and its mirror image.
        labels: (N,).
        num_classes: the classes of `labels` are below it.
        seed: of the folds.
    """
    x, y = features.float().numpy(), labels.numpy()
    folds = _folds(y, seed)
    count = min(_FOLDS, int(folds.max()) + 1)
    losses, right, tested = dict.fromkeys(STRENGTHS, 0.0), dict.fromkeys(STRENGTHS, 0), 0
    for fold in range(1 if len(y) > _MANY else count) if count > 1 else ():
        train, test = folds != fold, folds == fold
        tested += int(test.sum())
        params = None
        for strength in STRENGTHS:
            params = _fit(x[:, train], y[train], num_classes, strength, params)
            fold_metrics = metrics(torch.from_numpy(x[0, test] @ params[:-1] + params[-1]), y[test])
            losses[strength] += fold_metrics.loss * fold_metrics.images
            right[strength] += round(fold_metrics.top1 / 100 * fold_metrics.images)
    strength = min(STRENGTHS, key=losses.__getitem__)
    fitted = torch.from_numpy(_fit(x, y, num_classes, strength))
    scores = {s: (losses[s] / tested, 100 * right[s] / tested) for s in STRENGTHS} if tested else {}
    return LinearHead(fitted[:-1].t().contiguous(), fitted[-1], strength, scores)


def _folds(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return a fold for each image; the images of a class are spread evenly."""
    order, rng = np.empty(len(labels), int), np.random.default_rng(seed)
    for number, label in enumerate(np.unique(labels)):
        members = rng.permutation(np.flatnonzero(labels == label))
        order[members] = (np.arange(len(members)) + number) % _FOLDS  # not all small classes in the first folds
    return np.unique(order, return_inverse=True)[1]


def _fit(x: np.ndarray, y: np.ndarray, classes: int, strength: float, start: np.ndarray | None = None) -> np.ndarray:
    """Minimise mean cross-entropy + strength / 2 * |weights|², on standardised features, by L-BFGS.

    Returns:
        (D + 1, classes): weights for features as they are, and the bias.
    """
    from scipy.optimize import minimize

    rows = x.reshape(-1, x.shape[-1])
    mean, std = rows.mean(0), rows.std(0)
    std = np.where(std > 1e-6, std, np.inf).astype(np.float32)  # the weight of a constant feature is 0
    rows, target = (rows - mean) / std, np.tile(y, len(x))
    index, shape = np.arange(len(rows)), (rows.shape[1] + 1, classes)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        params = flat.reshape(shape).astype(np.float32)
        logits = rows @ params[:-1] + params[-1]
        logits -= logits.max(1, keepdims=True)
        p = np.exp(logits)
        total = p.sum(1, keepdims=True)
        value = np.log(total[:, 0]).mean() - logits[index, target].mean() + strength / 2 * np.square(params[:-1]).sum()
        p /= total
        p[index, target] -= 1
        p /= len(rows)
        grad = np.concatenate([rows.T @ p + strength * params[:-1], p.sum(0, keepdims=True)])
        return float(value), grad.ravel().astype(np.float64)

    first = np.zeros(shape)
    if start is not None:
        scale = np.where(np.isfinite(std), std, 0)[:, None]
        first[:-1], first[-1] = start[:-1] * scale, start[-1] + mean @ start[:-1]
    params = minimize(loss, first.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x.reshape(shape)
    weight = params[:-1] / std[:, None]
    return np.concatenate([weight, (params[-1] - mean @ weight)[None]]).astype(np.float32)


@torch.no_grad()
def set_head(model: ZooModel, head: LinearHead) -> None:
    """Make a model of `head_args` compute a linear classifier; units that it does not need keep their random weights.

    `head.weight` is for the average-pooled features, which AlexNet pools to 6x6.
    """
    weight, bias = head.weight, head.bias
    classes = len(weight)
    modules = dict(model.named_modules())
    if model.classifier_name == "classifier.1":  # squeezenet_cifar: pooling is linear
        _set(modules["classifier.1"], weight, bias)
    elif model.classifier_name == "classifier":
        _set_fire_next(modules, weight, bias)
    elif model.classifier_name == "fc2":  # sq1
        conv: Any = modules["conv"]
        if conv.out_channels >= 2 * classes:  # both signs of each logit, so that ReLU loses neither
            _set(conv, torch.cat([weight, -weight]))
            _set(modules["fc1"], torch.cat([torch.eye(classes), -torch.eye(classes)], 1))
        else:  # the features are not negative: they pass the ReLU
            _set(conv, torch.eye(weight.shape[1]))
            _set(modules["fc1"], weight)
        _set(modules["fc2"], torch.eye(classes), bias)
    elif 2 * classes <= modules["classifier.4"].in_features:  # alexnet_cifar
        _set(modules["classifier.1"], torch.cat([weight, -weight]))
        _set(modules["classifier.4"], torch.eye(2 * classes))
        _set(modules["classifier.6"], torch.cat([torch.eye(classes), -torch.eye(classes)], 1), bias)
    else:
        raise ArgumentError(f"alexnet_cifar takes at most 2,048 classes here, not {classes:,}; train another model.")


def _set_fire_next(modules: dict[str, Any], weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Set the block to add a constant to the features: at exactly 0, its last ReLU would have no gradient."""
    nn.init.zeros_(modules["block.expand.0"].weight)
    nn.init.constant_(modules["block.expand.0"].bias, _OFFSET)
    _set(modules["classifier"], weight, bias - _OFFSET * weight.sum(1))


def _set(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor | float = 0.0) -> None:
    """Set the first rows of a layer, whose other inputs they do not use."""
    rows, columns = weight.shape
    parameter, offset = layer.weight, layer.bias
    parameter[:rows] = 0  # type: ignore[operator]
    parameter.view(len(parameter), -1)[:rows, :columns] = weight  # type: ignore[operator,arg-type]
    offset[:rows] = bias  # type: ignore[operator]

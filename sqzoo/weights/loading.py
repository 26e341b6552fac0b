"""Weights into a model: locate the file, verify its bytes, compare every tensor, load strictly."""

import hashlib
import logging
from collections.abc import Mapping

import torch
import torch.nn as nn
from safetensors import SafetensorError
from safetensors.torch import load
from timm.models import adapt_input_conv

from sqzoo.errors import WeightsError
from sqzoo.weights.manifest import Entry
from sqzoo.weights.trunks import load_trunk

_logger = logging.getLogger("sqzoo")


def read_verified(entry: Entry) -> dict[str, torch.Tensor]:
    """Return the tensors of an entry's file after comparing its size and full SHA-256 with the manifest.

    The bytes that were hashed are the bytes that are parsed. Raises `WeightsError` where they differ.
    """
    try:
        data = entry.path.read_bytes()
    except OSError as e:
        raise WeightsError(f"Cannot read {entry.path} ({e.strerror}); reinstall sqzoo to restore {entry.tag}.") from e
    found = hashlib.sha256(data).hexdigest()
    if len(data) != entry.size or found != entry.sha256:
        raise WeightsError(
            f"{entry.path} is damaged: expected {entry.size} bytes with SHA-256 {entry.sha256}, found {len(data)} "
            f"bytes with SHA-256 {found}; reinstall sqzoo to restore {entry.tag}."
        )
    try:
        return load(data)
    except SafetensorError as e:
        raise WeightsError(f"{entry.path} is not a safetensors file ({e}); reinstall sqzoo.") from e


def load_state(entry: Entry) -> dict[str, torch.Tensor]:
    """Return the whole network's tensors; a head file is joined with its verified ImageNet trunk."""
    tensors = read_verified(entry)
    if entry.holds == "head":
        trunk = load_trunk(entry.trunk)
        # Fire-Next leaves the trunk's last Fire module out; the head file says so by its architecture alone.
        depth = 12 if entry.architecture == "fire_next" else len(trunk)
        tensors |= {k: v for k, v in trunk.items() if int(k.split(".")[1]) < depth}
    return tensors


def fit(model: nn.Module, tensors: Mapping[str, torch.Tensor], name: str, classifier: str, first_conv: str) -> None:
    """Load `tensors` into `model` strictly; only another number of classes or input channels may differ.

    A head of another size stays freshly initialised, which is logged; a first convolution for other channels is
    summed or tiled as timm does. Raises `WeightsError` on any other difference in names, shapes or dtypes.
    """
    state = dict(tensors)
    own = model.state_dict()
    head = [f"{classifier}.weight", f"{classifier}.bias"]
    given = state[head[0]].shape[0] if head[0] in state else 0
    wanted = own[head[0]].shape[0] if head[0] in own else 0
    if given != wanted:
        _logger.info(
            "%s: classifier %s not loaded, %d classes in the file, %d asked for", name, classifier, given, wanted
        )
        for key in head:
            state.pop(key, None)
            if key in own:
                state[key] = own[key]
    stem = f"{first_conv}.weight"
    if stem in state and stem in own and state[stem].shape[1] != own[stem].shape[1]:
        state[stem] = adapt_input_conv(own[stem].shape[1], state[stem], base_chans=state[stem].shape[1])
    _compare(state, own, name)
    model.load_state_dict(state, strict=True)


def _compare(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], name: str) -> None:
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        raise WeightsError(
            f"{name} does not fit the model: missing tensors {missing or 'none'}, unexpected tensors {extra or 'none'}; "
            "use the arguments that the weights were trained with, or pretrained=False."
        )
    for key, tensor in own.items():
        if state[key].shape != tensor.shape or not state[key].is_floating_point():
            raise WeightsError(
                f"{name} does not fit the model: {key} is {list(state[key].shape)} {state[key].dtype} in the file, "
                f"{list(tensor.shape)} {tensor.dtype} in the model; use the arguments that the weights were trained "
                "with, or pretrained=False."
            )

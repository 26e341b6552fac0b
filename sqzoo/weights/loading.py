"""Load weights: locate the file, verify its bytes, compare every tensor, load strictly."""

import hashlib
import logging
from collections.abc import Iterable, Mapping

import torch
import torch.nn as nn

from sqzoo.errors import WeightsError
from sqzoo.weights.coded import decode
from sqzoo.weights.header import check_matches, read_tensors
from sqzoo.weights.manifest import Entry, organisation
from sqzoo.weights.remote import Source, fetch
from sqzoo.weights.trunks import load_trunk
from sqzoo.weights.untrusted import read_bytes

_logger = logging.getLogger("sqzoo")


def read_verified(entry: Entry) -> dict[str, torch.Tensor]:
    """Return the tensors of an entry's file, verified by size and SHA-256, and decoded if they are coded.

    The bytes that are hashed are the bytes that are parsed.

    Raises:
        WeightsError: the file is missing or differs from the manifest.
    """
    if entry.hub:
        source = Source(f"{organisation()}/{entry.hub}", revision=entry.commit)
        data, _ = fetch(source, entry.file, entry.size, entry.sha256)
    else:
        data = _from_package(entry)
    name = entry.hub or str(entry.path)
    tensors = read_tensors(data, name)
    return decode(tensors, entry.params, name) if entry.stored == "coded" else tensors


def _from_package(entry: Entry) -> bytes:
    try:
        size = entry.path.stat().st_size
        data = read_bytes(entry.path, entry.size) if size == entry.size else b""
    except OSError as e:
        raise WeightsError(f"Cannot read {entry.path} ({e.strerror}); reinstall sqzoo to restore {entry.tag}.") from e
    sha256 = hashlib.sha256(data).hexdigest()
    if size != entry.size or sha256 != entry.sha256:
        raise WeightsError(
            f"{entry.path} is damaged: expected {entry.size} bytes with SHA-256 {entry.sha256}, found {size} bytes"
            f"{f' with SHA-256 {sha256}' if data else ''}; reinstall sqzoo to restore {entry.tag}."
        )
    return data


def load_state(entry: Entry, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Return a tag's state dict; head weights are joined with the trunk's tensors of the given names."""
    tensors = read_verified(entry)
    if entry.holds == "head":
        trunk = load_trunk(entry.trunk)
        if any(k in tensors for k in trunk):
            raise WeightsError(f"{entry.path} holds trunk tensors besides its head; use a file that sqzoo published.")
        tensors |= {k: trunk[k] for k in names if k in trunk}
    return tensors


def load_strict(
    model: nn.Module, tensors: Mapping[str, torch.Tensor], name: str, classifier: str, first_conv: str
) -> None:
    """Load a state dict strictly; only the number of classes and of input channels may differ.

    A head of another size keeps its random initialisation, which is logged. A first convolution for RGB is adapted to
    other channels as timm does.

    Args:
        model: the model to load into.
        tensors: the state dict.
        name: of the weights, for errors.
        classifier: name of the last layer.
        first_conv: name of the first convolution.

    Raises:
        WeightsError: names, shapes or kinds of dtype differ otherwise.
    """
    state = dict(tensors)
    own = model.state_dict()
    head = [f"{classifier}.weight", f"{classifier}.bias"]
    # Only a file with a whole head can have another number of classes; one without is damaged.
    if all(key in state and state[key].dim() for key in head):
        given, classes = (len(s[head[1]]) if head[1] in s else 0 for s in (state, own))
        if given != classes and len(state[head[0]]) == given:
            _logger.info("%s: %s not loaded, %d classes in the file, %d asked for", name, classifier, given, classes)
            state = {k: v for k, v in state.items() if k not in head} | {k: own[k] for k in head if k in own}
    stem = f"{first_conv}.weight"
    if stem in state and stem in own and state[stem].dim() == 4 and state[stem].shape[1] == 3 != own[stem].shape[1]:
        from timm.models import adapt_input_conv  # here, for importing timm imports sqzoo.models, which import this

        state[stem] = adapt_input_conv(own[stem].shape[1], state[stem])
    check_matches(state, own, name)
    model.load_state_dict(state, strict=True)

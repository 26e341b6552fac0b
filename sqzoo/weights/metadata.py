"""Describe a model in the metadata of an exported file."""

import json
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn as nn

from sqzoo import __version__
from sqzoo.files import tensors_sha256
from sqzoo.weights.loading import read_verified
from sqzoo.weights.manifest import read_manifest


def metadata(model: nn.Module) -> dict[str, str]:
    """Return the metadata of a model of `create_model`; lists and numbers as JSON.

    `tag` and its manifest entry are included only where the model's tensors are the tag's, not trained further.
    """
    config: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    state = model.state_dict()
    facts: dict[str, Any] = {
        "sqzoo": __version__,
        "architecture": config["architecture"],
        "labels": list(config.get("label_names") or ()),
        "input_size": [model.in_chans, *config["input_size"][1:]],
        **{key: config[key] for key in ("crop_pct", "interpolation", "mean", "std")},
        "ood_threshold": getattr(model, "ood_threshold", None),
        "weights_sha256": tensors_sha256(state),
    }
    entry = read_manifest().get(f"{config['architecture']}.{config.get('tag')}")
    if entry:
        own = read_verified(entry)
        if all(k in state and torch.equal(state[k], v.to(state[k].dtype)) for k, v in own.items()):
            facts |= {"tag": entry.tag, "file_sha256": entry.sha256, "licence": entry.licence}
            facts |= {"provenance": entry.provenance, "test_top1": entry.metrics["test_top1"]}
    if len(facts["labels"]) != model.num_classes:
        facts["labels"] = []
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}

"""Several architectures on one SqueezeNet trunk, trained together: one pass through the trunk serves every head.

Most of the multiply-adds are the trunk's, so three networks cost little more than one. Each is taken out whole
afterwards; they differ in their heads and in how deep into the trunk they reach.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn as nn

from sqzoo.registry import create_model


class SharedTrunk(nn.Module):
    """The networks `names`, "sq1+fire_next" form: images (N, 3, H, W) to logits (heads * N, classes), head by head."""

    def __init__(self, names: str) -> None:
        super().__init__()
        models = {name: create_model(name) for name in names.split("+")}
        self.depths = {name: len(model.features) for name, model in models.items()}  # type: ignore[arg-type]
        self.features: nn.Sequential = models[max(self.depths, key=self.depths.__getitem__)].features  # type: ignore[assignment]
        for model in models.values():
            model.features = nn.Identity()
        self.heads = nn.ModuleDict(models)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = {}
        for depth, layer in enumerate(self.features, 1):
            x = layer(x)
            maps[depth] = x
        return torch.cat([self.heads[n].forward_head(maps[d]) for n, d in self.depths.items()])  # type: ignore[operator]

    def alone(self, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the forward of one of the networks: images to logits (N, classes)."""
        trunk, head = self.features[: self.depths[name]], self.heads[name]
        return lambda x: head.forward_head(trunk(x))  # type: ignore[operator]


def take_out(tensors: Mapping[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """Return one network's state dict from that of the `SharedTrunk` it was trained in."""
    own = create_model(name, device="meta").state_dict()
    return {k: tensors[k if k.startswith("features.") else f"heads.{name}.{k}"] for k in own}

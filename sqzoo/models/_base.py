"""The timm interface that all architectures share: a trunk `features`, then a head."""

from typing import Any, ClassVar

import torch
import torch.nn as nn
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices  # private in timm, same place from 1.0.22 to 1.0.31

from sqzoo.errors import ArgumentError
from sqzoo.models._arguments import POOLS, count, one_of


def check_images(x: torch.Tensor, in_chans: int, least: int) -> None:
    """Raise `ArgumentError` unless `x` is (N, in_chans, H, W) with H and W of at least `least` pixels."""
    if x.dim() != 4 or x.shape[1] != in_chans or x.shape[2] < least or x.shape[3] < least:
        raise ArgumentError(
            f"expected images of shape (N, {in_chans}, H, W) with H and W of at least {least} pixels, "
            f"not {list(x.shape)}; resize them or change in_chans."
        )


torch.fx.wrap("check_images")  # symbolic tracing would trip over its comparisons


class ZooModel(nn.Module):
    """Base of the architectures: images (N, in_chans, H, W) in, logits (N, num_classes) out.

    `forward_features` is the trunk, which the paper freezes; `forward_head` is all that the paper trains.
    Subclasses build `features`, `feature_info` and their head, and give `forward_head` and `reset_classifier`.
    """

    min_input_size: int = 32
    head_layers: ClassVar[tuple[str, ...]] = ()  # attributes that leave with the head when layers are pruned
    taps: ClassVar[tuple[tuple[int, int, int], ...]] = ()  # (index in features, channels, reduction), after a ReLU

    features: nn.Sequential

    def __init__(self, num_classes: int, in_chans: int, global_pool: str) -> None:
        super().__init__()
        self.num_classes = count("num_classes", num_classes, least=0)
        self.in_chans = count("in_chans", in_chans)
        self.pool_kind = one_of("global_pool", global_pool, (*POOLS, ""))
        self.grad_checkpointing = False
        self.num_features = self.taps[-1][1]
        self.head_hidden_size = self.num_features
        self.tap_ends = [index for index, _, _ in self.taps]
        self.feature_info = [
            {"num_chs": chs, "reduction": reduction, "module": f"features.{index}"}
            for index, chs, reduction in self.taps
        ]

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Run the trunk: (N, in_chans, H, W) to (N, num_features, h, w), 13 x 13 at 224 for SqueezeNet."""
        check_images(x, self.in_chans, self.min_input_size)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.features, x)
        return self.features(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Run the head on trunk features: logits (N, num_classes), or (N, head_hidden_size) with `pre_logits`."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Return (final features, feature maps at the stages `indices`), or the maps alone.

        `indices`: the last n stages if an int, all if None. `norm` has no effect (there is no final norm).
        """
        assert output_fmt == "NCHW", "output_fmt must be 'NCHW'"
        check_images(x, self.in_chans, self.min_input_size)
        take, last = feature_take_indices(len(self.tap_ends), indices)
        wanted = [self.tap_ends[i] for i in take]
        maps: list[torch.Tensor] = []
        if torch.jit.is_scripting() or not stop_early:  # TorchScript cannot slice a Sequential by a variable
            layers = self.features
        else:
            layers = self.features[: self.tap_ends[last] + 1]
        for i, layer in enumerate(layers):
            x = layer(x)
            if i in wanted:
                maps.append(x)
        if intermediates_only:
            return maps
        return x, maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the layers behind the last stage of `indices` (and the head); return the kept stages."""
        take, last = feature_take_indices(len(self.tap_ends), indices)
        cut = last < len(self.tap_ends) - 1
        if cut:
            self.features = self.features[: self.tap_ends[last] + 1]
            self.num_features = self.feature_info[last]["num_chs"]
        if cut or prune_head:
            self.reset_classifier(0)
            for name in self.head_layers:
                setattr(self, name, nn.Identity())
            self.head_hidden_size = self.num_features
        return take

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by a fresh one for `num_classes` (0 removes it); None keeps the pooling."""
        raise NotImplementedError

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the last layer, the one that `num_classes` sizes."""
        raise NotImplementedError

    @torch.jit.ignore
    def input_dropout(self) -> nn.Dropout | None:
        """Return the dropout that the head applies to the trunk's features first of all, if it has one."""
        return None

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that group parameters by depth, for layer-wise learning rates."""
        return {"stem": r"^features\.0", "blocks": r"^features\.(\d+)"}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute the trunk's activations in the backward pass."""
        self.grad_checkpointing = enable

    def _like_weights(self) -> dict[str, Any]:
        weight = next(self.parameters())
        return {"device": weight.device, "dtype": weight.dtype}

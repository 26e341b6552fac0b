"""Implement the timm interface that all architectures share: a trunk `features`, then a head."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn as nn
from timm.models._features import feature_take_indices  # private in timm, same place in all of 1.0
from torch.jit import is_scripting, is_tracing  # type: ignore[attr-defined]  # torch does not list them as exports
from torch.utils.checkpoint import checkpoint

from sqzoo.errors import ArgumentError
from sqzoo.models.arguments import count, positive
from sqzoo.models.blocks import GlobalPool
from sqzoo.models.upsample import Upsample, enlarge_to, make_upsample, tuned_input


def check_images(x: torch.Tensor, in_chans: int) -> None:
    """Raise `ArgumentError` unless `x` is (N, in_chans, H, W)."""
    if is_tracing():  # sizes are tensors then, and each comparison warns
        return
    if x.dim() != 4 or x.shape[1] != in_chans or x.shape[2] < 1 or x.shape[3] < 1:
        raise ArgumentError(
            f"expected images of shape (N, {in_chans}, H, W), not {list(x.shape)}; change their shape or in_chans."
        )


torch.fx.wrap("check_images")  # symbolic tracing would trip over its comparisons
torch.fx.wrap("enlarge_to")


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and restore the mode of each module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class ZooModel(nn.Module):
    """Base of the architectures: normalised images (N, in_chans, H, W) to logits (N, num_classes).

    `forward_features` is upsampling and the trunk, which the paper freezes; `forward_head` is what the paper trains.
    Subclasses define `features`, their head, `global_pool` and `_head`. Images with a side below `min_input_size`,
    which would vanish in the trunk's pools, are enlarged to it.

    Args:
        num_classes: 0 omits the last layer.
        in_chans: channels of the images.
        global_pool: "avg", "max" or "".
        upsample: None, or the image size that 32x32 images are enlarged to inside the network, such as 160, or (256,
            224) for the paper's resize to 256 and centre crop of 224. Larger images are first reduced to 32x32.
        temperature: divides the logits, to calibrate their softmax (Guo et al. 2017).
    """

    __constants__ = ("min_input_size",)  # TorchScript sees no other class attributes
    min_input_size = 32
    stages: ClassVar[tuple[tuple[int, int, int], ...]] = ()  # (index in features, channels, reduction), after a ReLU
    classifier_name: ClassVar[str] = ""  # the last layer, which num_classes sizes
    hidden_layers: ClassVar[tuple[str, ...]] = ()  # the head's layers before the last; pruning removes them
    linear_head: ClassVar[bool] = False  # linear layers need a pooled input, 1x1 convolutions do not

    if TYPE_CHECKING:  # TorchScript reads a class's annotations and fails on modules
        features: nn.Sequential
        global_pool: GlobalPool
        pretrained_cfg: dict[str, Any]

    def __init__(
        self, num_classes: int, in_chans: int, global_pool: str, upsample: Any = None, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.upsample = make_upsample(upsample)
        self.temperature = positive("temperature", temperature)
        self.num_classes = count("num_classes", num_classes, least=0)
        self.in_chans = count("in_chans", in_chans)
        self._check_pool(num_classes, global_pool)
        self.grad_checkpointing = False
        self.ood_threshold: float | None = None  # of the loaded weights, see sqzoo.uncertainty
        self.num_features = self.stages[-1][1]
        self.head_hidden_size = self.num_features
        self.stage_ends = [index for index, _, _ in self.stages]
        self.feature_info = [
            {"num_chs": chs, "reduction": reduction, "module": f"features.{index}"}
            for index, chs, reduction in self.stages
        ]

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Upsample the images, if the network does, and run the trunk.

        Args:
            x: normalised images (N, in_chans, H, W).

        Returns:
            Maps (N, num_features, h, w), 13x13 at 224 pixels for SqueezeNet.
        """
        x = self._upsampled(x)
        if self.grad_checkpointing and not is_scripting():
            return self._recomputing(x)
        return self.features(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Run the head on trunk features: logits (N, num_classes), or (N, head_hidden_size) with `pre_logits`."""
        x = self._head(x, pre_logits)
        if self.temperature == 1.0 or pre_logits or self.num_classes == 0:
            return x
        return x / self.temperature

    def _head(self, x: torch.Tensor, pre_logits: bool) -> torch.Tensor:
        raise NotImplementedError

    def _upsampled(self, x: torch.Tensor) -> torch.Tensor:
        check_images(x, self.in_chans)
        return enlarge_to(self.upsample(x), self.min_input_size)

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
        """Return the final features and the feature maps of some stages.

        Args:
            x: as in `forward_features`.
            indices: the stages; an int means the last n, None all.
            norm: has no effect, as there is no final norm.
            stop_early: end at the last of the stages.
            output_fmt: "NCHW".
            intermediates_only: return only the maps.
        """
        if output_fmt != "NCHW":
            raise ArgumentError(f"output_fmt must be 'NCHW', not '{output_fmt}'.")
        x = self._upsampled(x)
        take, last = feature_take_indices(len(self.stage_ends), indices)
        ends = [self.stage_ends[i] for i in take]
        end = self.stage_ends[last] if stop_early else len(self.features) - 1
        maps: list[torch.Tensor] = []
        for i, layer in enumerate(self.features):
            if i <= end:  # no break and no slice: TorchScript unrolls this loop
                x = layer(x)
                if i in ends:
                    maps.append(x)
        if intermediates_only:
            return maps
        return x, maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the layers after the last stage of `indices`, and the head; return the stages.

        A shorter trunk always loses its head. What remains of the head pools, and takes a new last layer.
        """
        take, last = feature_take_indices(len(self.stage_ends), indices)
        cut = last < len(self.stage_ends) - 1
        if cut:
            self.features = self.features[: self.stage_ends[last] + 1]
            self.stage_ends = self.stage_ends[: last + 1]
            self.feature_info = self.feature_info[: last + 1]
            self.num_features = self.stages[last][1]
        if cut or prune_head:
            self.reset_classifier(0)
            for name in self.hidden_layers:
                self.set_submodule(name, nn.Identity())
            self.global_pool.side = 1
            self.head_hidden_size = self.num_features
        return take

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by a new one.

        With a new head, the labels, calibration and upsampling of the old one are dropped, and the network takes images
        of the size that its trunk was trained at.

        Args:
            num_classes: 0 removes the last layer, and keeps the rest.
            global_pool: None keeps the pooling, or makes it "avg" where linear layers need one.
        """
        count("num_classes", num_classes, least=0)
        kind = self.global_pool.pool_type if global_pool is None else global_pool
        if global_pool is None and kind == "" and num_classes and self.linear_head:
            kind = "avg"
        self._check_pool(num_classes, kind)
        self.global_pool = GlobalPool(kind, self.global_pool.side).train(self.training)
        weight = next(self.parameters())
        layer = self.last_layer(self.head_hidden_size, num_classes, device=weight.device, dtype=weight.dtype)
        self.set_submodule(self.classifier_name, layer.train(self.training))
        self.num_classes = num_classes
        if num_classes:
            self._forget_classes()

    @torch.jit.ignore
    def _forget_classes(self) -> None:
        """Drop the labels, upsampling and calibration of the old head."""
        config = getattr(self, "pretrained_cfg", {})
        config["label_names"] = None
        if isinstance(self.upsample, Upsample):
            config.update(tuned_input((self.upsample.resize, self.upsample.crop)) | {"pool_size": None})
        self.upsample = nn.Identity().train(self.training)
        self.temperature, self.ood_threshold = 1.0, None
        for name in ("upsample", "temperature"):  # or timm would save them with the model
            getattr(self, "_model_args", {}).pop(name, None)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the last layer."""
        return self.get_submodule(self.classifier_name)

    @classmethod
    def last_layer(cls, width: int, num_classes: int, **dd: Any) -> nn.Module:
        """Build a last layer from `width` channels to the classes; the identity for 0 classes."""
        if num_classes == 0:
            return nn.Identity()
        return nn.Linear(width, num_classes, **dd) if cls.linear_head else nn.Conv2d(width, num_classes, 1, **dd)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that group parameters by depth, for layer-wise learning rates; `coarse` has no effect."""
        return {"stem": r"^features\.0\.", "blocks": r"^features\.(\d+)\."}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute the trunk's activations in the backward pass."""
        self.grad_checkpointing = enable

    def _recomputing(self, x: torch.Tensor) -> torch.Tensor:
        # By stages: none starts with an in-place ReLU, which would overwrite its saved input.
        start = 0
        for end in sorted({*self.stage_ends, len(self.features) - 1}):
            x = checkpoint(self.features[start : end + 1], x, use_reentrant=False)
            start = end + 1
        return x

    @classmethod
    def _check_pool(cls, num_classes: int, kind: str) -> None:
        if num_classes and not kind and cls.linear_head:
            raise ArgumentError("global_pool='' leaves a map that linear layers cannot take; add num_classes=0.")

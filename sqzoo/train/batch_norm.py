"""Batch norm during training alone: inserted after each convolution of a backbone, folded into it at the end.

SqueezeNet has none and learns slowly without. Inserted so that the output stays the same, it keeps ImageNet's features.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.distributed.nn.functional import all_reduce  # has a gradient, unlike torch.distributed's
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sqzoo.train.distributed import processes

_MOMENTUM = 0.1  # PyTorch's


class Norm(nn.BatchNorm2d):
    """Batch norm over the whole batch, also if several processes have a shard of it each (SyncBatchNorm)."""

    def __init__(self, channels: int, device: torch.device) -> None:
        super().__init__(channels, device=device)
        self.num_batches_tracked = None  # a counter would be one more kernel for each norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or processes() == 1:
            measured = self.training and x.numel() > x.shape[1]  # one image of one pixel has no variance
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, measured, _MOMENTUM, self.eps
            )
        y = x.float()
        count = torch.tensor([float(y.numel() // y.shape[1])], device=y.device)
        total = all_reduce(torch.cat([y.sum((0, 2, 3)), count]))
        mean = total[:-1] / total[-1]
        centred = y - mean[:, None, None]
        variance = all_reduce(centred.square().sum((0, 2, 3))) / total[-1]
        with torch.no_grad():
            self.running_mean.lerp_(mean, _MOMENTUM)  # type: ignore[union-attr]
            self.running_var.lerp_(variance * total[-1] / (total[-1] - 1), _MOMENTUM)  # type: ignore[union-attr]
        scale = (variance + self.eps).rsqrt() * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class NormedConv(nn.Conv2d):
    """A convolution followed by batch norm, whose own parameters keep their names."""

    norm: Norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(x))


def insert_batch_norm(layers: nn.Module, x: torch.Tensor) -> None:
    """Insert batch norm after each convolution of `layers`, set so that their output for `x` (N, C, H, W) stays."""
    hooks = []
    for conv in [module for module in layers.modules() if isinstance(module, nn.Conv2d)]:
        conv.norm = Norm(conv.out_channels, conv.weight.device)
        conv.__class__ = NormedConv  # in place, so that parameters and their names stay
        hooks.append(conv.norm.register_forward_pre_hook(_match))
    layers.eval()
    with torch.no_grad():
        layers(x)
    for hook in hooks:
        hook.remove()


def _match(norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
    variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
    scale = (variance + norm.eps).sqrt()  # type: ignore[operator]
    for name, value in dict(running_mean=mean, running_var=variance, bias=mean, weight=scale).items():
        getattr(norm, name).data.copy_(value)


def fold_batch_norm(layers: nn.Module) -> None:
    """Fold each inserted batch norm into its convolution; in evaluation mode, the output stays the same."""
    for conv in [module for module in layers.eval().modules() if isinstance(module, NormedConv)]:
        fused = fuse_conv_bn_eval(conv, conv.norm)
        for name, parameter in (("weight", conv.weight), ("bias", conv.bias)):
            parameter.data.copy_(getattr(fused, name))  # type: ignore[union-attr]
        del conv.norm
        conv.__class__ = nn.Conv2d  # type: ignore[assignment]

"""Batch norm for the time of training: inserted behind each convolution of a backbone, folded into it afterwards.

SqueezeNet has none and learns slowly for it. Inserted so that nothing changes at first, it keeps what ImageNet taught.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.distributed.nn.functional import all_reduce  # with a gradient, unlike torch.distributed's
from torch.nn.utils.fusion import fuse_conv_bn_weights

from sqzoo.train.distributed import processes

_MOMENTUM = 0.1  # PyTorch's


class Norm(nn.BatchNorm2d):
    """Batch norm over the whole batch, also where several processes have a shard of it each (SyncBatchNorm)."""

    def __init__(self, channels: int, device: torch.device) -> None:
        super().__init__(channels, device=device)
        self.num_batches_tracked = None  # counting would be a kernel more for each norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or processes() == 1:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.training, _MOMENTUM, self.eps
            )
        y = x.float()
        count = torch.tensor([float(y.numel() // y.shape[1])], device=y.device)
        total = all_reduce(torch.cat([y.sum((0, 2, 3)), count]))
        mean = total[:-1] / total[-1]
        apart = y - mean[:, None, None]
        variance = all_reduce(apart.square().sum((0, 2, 3))) / total[-1]
        with torch.no_grad():
            self.running_mean.lerp_(mean, _MOMENTUM)  # type: ignore[union-attr]
            self.running_var.lerp_(variance * total[-1] / (total[-1] - 1), _MOMENTUM)  # type: ignore[union-attr]
        scale = (variance + self.eps).rsqrt() * self.weight
        return (apart * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class NormedConv(nn.Conv2d):
    """A convolution with a batch norm behind it; its own parameters keep their names."""

    norm: Norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(x))


def insert_batch_norm(layers: nn.Module, x: torch.Tensor) -> None:
    """Insert a batch norm behind each convolution of `layers`, set so that on `x` (N, C, H, W) nothing changes."""
    hooks = []
    for conv in [module for module in layers.modules() if isinstance(module, nn.Conv2d)]:
        # The class alone changes, so that parameters, optimisers and names go on as they are.
        conv.norm = Norm(conv.out_channels, conv.weight.device)
        conv.__class__ = NormedConv
        hooks.append(conv.norm.register_forward_pre_hook(_match))
    layers.eval()
    with torch.no_grad():
        layers(x)
    for hook in hooks:
        hook.remove()


def _match(norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
    assert isinstance(norm, Norm)
    variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
    scale = (variance + norm.eps).sqrt()
    for name, value in dict(running_mean=mean, running_var=variance, bias=mean, weight=scale).items():
        getattr(norm, name).data.copy_(value)


def fold_batch_norm(layers: nn.Module) -> None:
    """Fold each inserted batch norm into its convolution, with the running statistics; outputs stay the same."""
    for module in layers.modules():
        conv: nn.Module = module
        if isinstance(conv, NormedConv):
            norm = conv.norm
            assert norm.running_mean is not None and norm.running_var is not None
            weight, bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            conv.weight.data.copy_(weight)
            conv.bias.data.copy_(bias)  # type: ignore[union-attr]
            del conv.norm
            module.__class__ = nn.Conv2d

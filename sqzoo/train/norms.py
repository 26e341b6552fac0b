"""Batch norm for the time of training: put behind every convolution of a trunk, folded into it afterwards.

SqueezeNet has none and learns slowly for it. Put in so that it changes nothing at first, it keeps what ImageNet taught;
folded, it leaves the network as it was: the same layers, names and number of parameters.
"""

from collections.abc import Iterable

import torch
import torch.nn as nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


class NormedConv(nn.Conv2d):
    """A convolution with a batch norm behind it; the convolution's own parameters keep their names."""

    norm: nn.BatchNorm2d

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(x))


def put_in(trunk: nn.Module, images: torch.Tensor) -> None:
    """Put a batch norm behind each convolution of `trunk`, set so that on `images` (N, C, H, W) nothing changes."""
    convs = [module for module in trunk.modules() if isinstance(module, nn.Conv2d)]
    hooks = []
    for conv in convs:
        # The class alone changes, so that parameters, optimisers and names go on as they are.
        conv.norm = nn.BatchNorm2d(conv.out_channels, device=conv.weight.device)
        conv.__class__ = NormedConv
        hooks.append(conv.norm.register_forward_pre_hook(_match))
    trunk.eval()
    with torch.no_grad():
        trunk(images)
    for hook in hooks:
        hook.remove()


def _match(norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
    assert isinstance(norm, nn.BatchNorm2d)
    variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
    for tensor, value in ((norm.running_mean, mean), (norm.running_var, variance), (norm.bias, mean)):
        tensor.data.copy_(value)  # type: ignore[union-attr]
    norm.weight.data.copy_((variance + norm.eps).sqrt())


def measure_anew(trunk: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Set the norms' running statistics to those of `batches` of images (N, C, H, W), which are met one by one."""
    norms = [module.norm for module in trunk.modules() if isinstance(module, NormedConv)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    with torch.no_grad():
        for images in batches:
            trunk(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def fold_away(trunk: nn.Module) -> None:
    """Fold each batch norm of `put_in` into its convolution, with the running statistics; outputs stay the same."""
    for module in trunk.modules():
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

"""Feature maps by their non-zeros give what the plain tensor gives."""

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from sqzoo import create_model
from sqzoo.models.sparse import SparseMaps


def maps(shape: tuple[int, int, int, int] = (19, 12, 5, 5), share: float = 0.2, seed: int = 0) -> SparseMaps:
    rng = np.random.default_rng(seed)
    where = np.flatnonzero(rng.random(np.prod(shape)) < share)
    return SparseMaps(shape, where, torch.from_numpy(rng.random(len(where), np.float32) + 0.1))


@pytest.mark.parametrize("channels", [12, 16])  # 16: a power of two goes another way
@pytest.mark.parametrize("bias", [True, False])
def test_pointwise_convolution_and_its_gradients(channels: int, bias: bool) -> None:
    """19 images are more than the backward pass takes at once."""
    given = maps((19, channels, 5, 5))
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, 7, 1, bias=bias)
    results = []
    for x in (given, given.dense()):
        layer.zero_grad()
        out = layer(x)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in layer.parameters() if p.grad is not None)])
    assert results[0][0].is_contiguous(memory_format=torch.channels_last)
    assert len(results[0]) == 2 + bias
    for sparse, plain in zip(*results, strict=True):
        torch.testing.assert_close(sparse, plain, rtol=1e-5, atol=1e-4)


def test_a_relu_in_place_may_follow() -> None:
    given, layer = maps(), nn.Conv2d(12, 4, 1)
    out = nn.ReLU(inplace=True)(layer(given))
    out.sum().backward()
    torch.testing.assert_close(out, F.relu(layer(given.dense())))


@pytest.mark.parametrize("layer", [nn.Conv2d(12, 4, 3), nn.Conv2d(12, 4, 1, stride=2), nn.Conv2d(12, 12, 1, groups=12)])
def test_other_layers_get_the_plain_tensor(layer: nn.Module) -> None:
    given = maps()
    assert torch.equal(layer(given), layer(given.dense()))
    assert torch.equal(F.adaptive_avg_pool2d(given, 1), F.adaptive_avg_pool2d(given.dense(), 1))  # type: ignore[arg-type]


def test_dropout_drops_its_share_of_the_non_zeros_and_scales_the_rest() -> None:
    given = maps((64, 32, 9, 9))
    full = given.dense()
    torch.manual_seed(0)
    dropped = F.dropout(given, 0.3)  # type: ignore[arg-type]
    assert isinstance(dropped, SparseMaps) and not dropped.dense()[full == 0].any()
    kept = dropped.dense() != 0
    torch.testing.assert_close(dropped.dense()[kept], full[kept] / 0.7)
    count = len(given.values)
    assert abs(1 - kept.sum() / count - 0.3) < 5 * (0.21 / count) ** 0.5  # five standard deviations of the mean
    torch.manual_seed(0)
    assert torch.equal(F.dropout(given, 0.3).dense(), dropped.dense())  # type: ignore[arg-type]
    # Its gradient is that of what is left, in both orders.
    layer = nn.Conv2d(32, 3, 1)
    layer(dropped).sum().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad[0].flatten(), dropped.dense().sum((0, 2, 3)))


def test_without_dropout_no_random_number_is_drawn() -> None:
    given, before = maps(), torch.get_rng_state()
    assert F.dropout(given, 0.5, training=False) is given and F.dropout(given, 0.0) is given  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["sq1", "squeezenet_cifar", "fire_next", "alexnet_cifar"])
def test_every_head_takes_them(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name).eval()
    shape = (3, 256, 6, 6) if name == "alexnet_cifar" else (3, 512, 13, 13)
    given = maps(shape)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_head(given), model.forward_head(given.dense()), rtol=1e-4, atol=1e-4)


def test_no_non_zero_at_all() -> None:
    given = maps(share=0.0)
    layer = nn.Conv2d(12, 4, 1)
    out = layer(given)
    out.sum().backward()
    assert torch.equal(out, layer.bias.detach()[None, :, None, None].expand(19, 4, 5, 5))
    assert layer.weight.grad is not None and not layer.weight.grad.any()

"""Muon: its updates are orthogonal, of AdamW's size, and what the textbook iteration gives for one matrix at a time."""

import torch

from sqzoo.train.muon import Muon, Packing

SHAPES = ((64, 3, 3, 3), (16, 64, 1, 1), (16, 128, 1, 1), (64, 16, 1, 1), (64, 16, 3, 3), (48, 384, 1, 1))


def orthogonal(weights: list[torch.Tensor]) -> list[torch.Tensor]:
    return Packing(weights).orthogonal(torch.cat([w.flatten() for w in weights]))


def test_updates_are_nearly_orthogonal_and_of_the_same_size() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(shape) for shape in SHAPES]
    for weight, update in zip(weights, orthogonal(weights), strict=True):
        assert update.shape == weight.shape
        matrix = update.flatten(1)
        size = 0.2 * max(matrix.shape) ** 0.5
        values = torch.linalg.svdvals(matrix) / size
        assert values.min() > 0.6 and values.max() < 1.3  # the iteration's coefficients end near 1, not at it
        assert 0.13 < matrix.square().mean().sqrt() < 0.24
        # The singular vectors are the weight's own: their product with it is symmetric.
        product = matrix @ weight.flatten(1).T
        assert (product - product.T).abs().max() < 0.05 * product.abs().max()


def test_a_batch_of_filled_up_matrices_is_each_by_itself() -> None:
    torch.manual_seed(1)
    weights = [torch.randn(shape) for shape in SHAPES]
    for weight, update in zip(weights, orthogonal(weights), strict=True):
        matrix = weight.flatten(1)
        tall = matrix.shape[0] > matrix.shape[1]
        x = (matrix.T if tall else matrix) / (matrix.norm() + 1e-7)
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
        expected = (x.T if tall else x).reshape(weight.shape) * 0.2 * max(matrix.shape) ** 0.5
        torch.testing.assert_close(update, expected, rtol=1e-3, atol=1e-4)


def test_a_step_is_momentum_decay_and_the_orthogonal_update() -> None:
    torch.manual_seed(2)
    p = torch.nn.Parameter(torch.randn(8, 4, 3, 3))
    before, momentum = p.detach().clone(), torch.zeros_like(p)
    optimizer = Muon([p], lr=0.1, weight_decay=0.5)
    for _ in range(2):
        p.grad = torch.randn_like(p)
        momentum = 0.95 * momentum + 0.05 * p.grad
        update = orthogonal([0.05 * p.grad + 0.95 * momentum])[0]
        before = before * (1 - 0.1 * 0.5) - 0.1 * update
        optimizer.step()
        torch.testing.assert_close(p.detach(), before)


def test_weights_in_another_memory_order_get_the_same_updates() -> None:
    torch.manual_seed(3)
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    others = [torch.nn.Parameter(w.detach().clone(memory_format=torch.channels_last)) for w in weights]
    optimizers = Muon(weights, lr=0.1, weight_decay=0.1), Muon(others, lr=0.1, weight_decay=0.1)
    for _ in range(2):
        for w, o in zip(weights, others, strict=True):
            w.grad = torch.randn_like(w)
            o.grad = w.grad.clone()  # of the first's memory order
        for optimizer in optimizers:
            optimizer.step()
    for w, o in zip(weights, others, strict=True):
        torch.testing.assert_close(o.detach(), w.detach(), rtol=1e-4, atol=1e-5)

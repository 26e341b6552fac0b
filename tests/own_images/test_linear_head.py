"""The head by logistic regression: the minimum, its penalty's choice, and its exact place in each architecture."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sqzoo import create_model
from sqzoo.own_images.folder import find_images
from sqzoo.own_images.linear_head import STRENGTHS, LinearHead, fit_head, head_args, set_head
from sqzoo.own_images.pixels import image_size


def clusters(count: int, classes: int, spread: float, size: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Features around a centre for each class, of very different scales, one of them constant."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    x = rng.normal(size=(classes, size))[labels] + spread * rng.normal(size=(count, size))
    x = x * np.geomspace(0.01, 100, size) + 5
    x[:, 3] = 7
    return torch.from_numpy(x).float()[None], torch.from_numpy(labels)


def test_it_is_scikit_learns_logistic_regression() -> None:
    x, y = clusters(90, 3, 2.0)
    head = fit_head(x, y, 3, 0)
    scaler = StandardScaler().fit(x[0])
    theirs = LogisticRegression(C=1 / (head.strength * len(y)), tol=1e-8, max_iter=2000).fit(scaler.transform(x[0]), y)
    expected = torch.from_numpy(theirs.predict_proba(scaler.transform(x[0]))).float()
    assert torch.allclose((x[0] @ head.weight.t() + head.bias).softmax(1), expected, atol=2e-3)


def test_the_penalty_suits_the_data() -> None:
    """Where the classes overlap the penalty is strong, where they are apart it is weak; the loss decides."""
    heads = [fit_head(*clusters(200, 4, spread), 4, 0) for spread in (6.0, 0.3)]
    assert heads[0].strength > heads[1].strength
    for head in heads:
        assert tuple(head.scores) == STRENGTHS and min(head.scores, key=lambda s: head.scores[s][0]) == head.strength
    assert heads[0].scores[heads[0].strength][1] < 90 < heads[1].scores[heads[1].strength][1]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_one_image_a_class_is_enough(count: int) -> None:
    x, y = clusters(count, 2, 0.1)
    head = fit_head(x, y, 2, 0)
    assert ((x[0] @ head.weight.t() + head.bias).argmax(1) == y).all()


@pytest.mark.parametrize("classes", [2, 40, 300])
@pytest.mark.parametrize("name", ["sq1", "squeezenet_cifar", "fire_next", "alexnet_cifar"])
def test_each_architecture_holds_it_exactly(name: str, classes: int) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=classes, **head_args(name, classes)).eval()
    with torch.no_grad():
        maps = model.forward_features(torch.randn(2, 3, 64, 64))
        features = F.adaptive_avg_pool2d(maps, model.global_pool.side).flatten(1)
        head = LinearHead(torch.randn(classes, features.shape[1]), torch.randn(classes), 1.0, {})
        set_head(model, head)
        expected = features @ head.weight.t() + head.bias
        assert torch.allclose(model.forward_head(maps), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    model.forward_head(maps).square().sum().backward()  # and all layers can learn from there
    weights = [p for n, p in model.named_parameters() if n.endswith("weight") and not n.startswith("features.")]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in weights)
    if name == "fire_next":
        assert model.block.expand[0].weight.grad.abs().max() > 0


def test_the_image_size_suits_the_photos(tmp_path: Path) -> None:
    for side, expected in ((32, 128), (128, 160), (300, 224)):
        for name in ("a", "b"):
            (tmp_path / str(side) / name).mkdir(parents=True)
            Image.new("RGB", (side + 20, side)).save(tmp_path / str(side) / name / "1.png")
        assert image_size(find_images(tmp_path / str(side))) == expected

"""The architectures: counts, the paper's factors, parity with torchvision, timm's interface, export."""

import warnings
from typing import Any

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file
from timm.optim import create_optimizer_v2

import sqzoo
from sqzoo.errors import ArgumentError, SqzooError, UnknownArgumentError
from tests.support.sentences import assert_one_sentence

NAMES = sqzoo.list_models()
SQUEEZE_NETS = ["fire_next", "sq1", "squeezenet_cifar"]
LINEAR_HEADS = ["alexnet_cifar", "sq1"]
CONV_HEADS = ["fire_next", "squeezenet_cifar"]
PAPERS = ["alexnet_cifar", "fire_next", "sq1", "squeezenet_cifar"]
LAST_LAYER = {
    "alexnet_cifar": "classifier.6",
    "fire_next": "classifier",
    "sq1": "fc2",
    "squeezenet_cifar": "classifier.1",
}
LEAST = {"alexnet_cifar": 63, "fire_next": 32, "sq1": 32, "squeezenet_cifar": 32}
for name in set(NAMES) - set(PAPERS):  # a new architecture is taken at its word
    LAST_LAYER[name], LEAST[name] = (
        getattr(type(sqzoo.create_model(name, device="meta")), a) for a in ("classifier_name", "min_input_size")
    )
AFTER_DROPOUT = {**LAST_LAYER, "alexnet_cifar": "classifier.1"}  # the first layer whose input is dropped

jit_is_deprecated = pytest.mark.filterwarnings(
    "ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning"
)


def make(name: str, **args: Any) -> Any:
    """Return a model in evaluation mode whose random weights are the same each time."""
    torch.manual_seed(0)
    return sqzoo.create_model(name, **args).eval()


def images(count: int = 2, channels: int = 3, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(1))


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def seen_by(model: nn.Module, layer: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a layer takes and gives while the model runs on `x`."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = model.get_submodule(layer).register_forward_hook(lambda _, given, out: seen.append((given[0].clone(), out)))
    with torch.no_grad():
        model(x)
    hook.remove()
    return seen[0]


# --- counts ---


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("squeezenet_cifar", {}, 727_626),
        ("sq1", {}, 792_618),
        ("sq1", {"mid": 64}, 797_066),
        ("fire_next", {}, 691_018),
        ("fire_next", {"batch_norm": True}, 692_170),
        ("alexnet_cifar", {}, 57_044_810),
    ],
)
def test_parameters_are_the_papers(name: str, args: dict[str, Any], expected: int) -> None:
    assert parameters(make(name, device="meta", **args)) == expected


@pytest.mark.parametrize("name", PAPERS)
def test_trunk_parameters_are_the_papers(name: str) -> None:
    expected = {"alexnet_cifar": 2_469_696, "fire_next": 525_312}.get(name, 722_496)
    assert parameters(make(name, device="meta").features) == expected


# --- the paper's factors ---


@pytest.mark.parametrize("name", SQUEEZE_NETS)
@pytest.mark.parametrize(("factor", "index", "other"), [("pool2", 5, 8), ("pool3", 8, 5)])
def test_trunk_pool(name: str, factor: str, index: int, other: int) -> None:
    base, changed = make(name), make(name, **{factor: "avg"})
    assert isinstance(base.features[index], nn.MaxPool2d)
    assert isinstance(changed.features[index], nn.AvgPool2d)
    assert isinstance(changed.features[other], nn.MaxPool2d)
    x = images()
    before, after = seen_by(changed, f"features.{index}", x)
    assert torch.equal(after, F.avg_pool2d(before, 3, 2, ceil_mode=True))
    assert not torch.equal(changed.forward_features(x), base.forward_features(x))
    assert changed.forward_features(x).shape == base.forward_features(x).shape


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("kind", "pool"), [("avg", F.adaptive_avg_pool2d), ("max", F.adaptive_max_pool2d)])
def test_global_pool(name: str, kind: str, pool: Any) -> None:
    side = 6 if name == "alexnet_cifar" else 1
    before, after = seen_by(make(name, global_pool=kind), "global_pool", images(height=200, width=120))
    assert before.shape[2] != before.shape[3]
    assert torch.equal(after, pool(before, side).flatten(1))


@pytest.mark.parametrize("name", NAMES)
def test_without_pool_and_classes_the_map_comes_out(name: str) -> None:
    model, x = make(name, num_classes=0, global_pool=""), images()
    out, trunk = model(x), model.forward_features(x)
    assert out.dim() == 4
    assert out.shape[2:] == trunk.shape[2:]


@pytest.mark.parametrize("name", CONV_HEADS)
def test_without_pool_a_convolution_gives_class_maps(name: str) -> None:
    x = images()
    maps = make(name, global_pool="")(x)
    assert maps.shape[1] == 10
    torch.testing.assert_close(maps.mean((2, 3)), make(name)(x))


@pytest.mark.parametrize("name", LINEAR_HEADS)
def test_linear_layers_need_a_pool(name: str) -> None:
    with pytest.raises(ArgumentError, match=r"global_pool=''.*num_classes=0"):
        make(name, global_pool="", device="meta")
    model = make(name, num_classes=0, global_pool="")
    with pytest.raises(ArgumentError, match="global_pool=''"):
        model.reset_classifier(5, "")
    model.reset_classifier(5)
    assert model(images()).shape == (2, 5)


def test_separable() -> None:
    """A filter per channel, then all channels at each position."""
    model = make("fire_next", separable=True)
    for layer, kernel, channels in (("conv1x3", (1, 3), (64, 128)), ("conv3x1", (3, 1), (128, 128))):
        filters, points = (m for m in model.block.get_submodule(layer) if isinstance(m, nn.Conv2d))
        assert filters.weight.shape == (channels[0], 1, *kernel)
        assert points.weight.shape == (channels[1], channels[0], 1, 1)
        x, out = seen_by(model, f"block.{layer}", images())
        padded = F.conv2d(
            x, filters.weight, filters.bias, padding=(kernel[0] // 2, kernel[1] // 2), groups=len(filters.weight)
        )
        torch.testing.assert_close(out, F.conv2d(padded, points.weight, points.bias).relu())


@pytest.mark.parametrize("mid", [1, 64])
def test_mid(mid: int) -> None:
    model = make("sq1", mid=mid)
    assert model.head_hidden_size == mid
    assert model.fc1.weight.shape == (mid, 128)
    assert model.fc2.weight.shape == (10, mid)
    assert model.forward_head(model.forward_features(images()), pre_logits=True).shape == (2, mid)


def test_width() -> None:
    sq1, fire_next = make("sq1", width=48), make("fire_next", width=48)
    assert sq1.conv.weight.shape == (48, 512, 1, 1)
    assert sq1.fc1.in_features == 48
    assert fire_next.classifier.weight.shape == (10, 48, 1, 1)
    assert fire_next.block(torch.zeros(1, 512, 3, 3)).shape == (1, 48, 3, 3)


def test_mid_relu() -> None:
    x = images(8)
    plain, _ = seen_by(make("sq1"), "fc2", x)
    rectified, _ = seen_by(make("sq1", mid_relu=True), "fc2", x)
    assert plain.min() < 0
    assert torch.equal(rectified, plain.relu())


@pytest.mark.parametrize("name", ["squeezenet_cifar", "fire_next"])
def test_logit_relu(name: str) -> None:
    """Behind the last convolution, before the pool."""
    x = images(8)
    plain, rectified = make(name, logit_relu=False), make(name, logit_relu=True)
    rectified.load_state_dict(plain.state_dict())
    maps = {model: seen_by(model, "global_pool", x)[0] for model in (plain, rectified)}
    assert maps[plain].min() < 0
    assert torch.equal(maps[rectified], maps[plain].relu())
    assert torch.equal(make(name)(x), rectified(x)) == (name == "squeezenet_cifar")


def test_dropout_before_sq1s_convolution() -> None:
    model, x = make("sq1", conv_drop_rate=0.5), images(2)
    still, _ = seen_by(model, "conv", x)
    dropped, _ = seen_by(model.train(), "conv", x)
    assert torch.equal(dropped[dropped != 0], 2 * still[dropped != 0])
    assert 0.3 < (dropped != 0)[still != 0].float().mean() < 0.7


def test_reduction_sizes_the_two_squeezes() -> None:
    block = make("fire_next", reduction=0.5).block
    shapes = [tuple(p.shape) for p in block.parameters() if p.dim() == 4]
    assert shapes == [(256, 512, 1, 1), (128, 256, 1, 1), (256, 128, 1, 3), (256, 256, 3, 1), (128, 256, 1, 1)]
    default = [p.shape[0] for p in make("fire_next").block.parameters() if p.dim() == 4]
    assert default == [128, 64, 128, 128, 128]


def test_add_joins_input_and_output() -> None:
    model, x = make("fire_next", add=True), torch.rand(2, 512, 4, 4) - 0.5
    block = model.block
    chain = block.expand(block.conv3x1(block.conv1x3(block.squeeze2(block.squeeze1(x)))))
    assert torch.equal(block(x), torch.relu(chain + block.shortcut(x)))
    assert parameters(model) - parameters(make("fire_next")) == 512 * 128 + 128
    same_width = make("fire_next", add=True, width=512).block
    assert parameters(same_width.shortcut) == 0
    assert (same_width(x) >= x.relu()).all()


def test_batch_norm_follows_each_convolution_of_the_block() -> None:
    model = make("fire_next", batch_norm=True)
    kinds = [type(m) for m in model.block.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d] * 5
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.features.modules())


@pytest.mark.parametrize(
    ("name", "rates"),
    [("squeezenet_cifar", [0.5]), ("sq1", [0.0, 0.1, 0.1]), ("fire_next", [0.0]), ("alexnet_cifar", [0.5, 0.5])],
)
def test_default_dropout(name: str, rates: list[float]) -> None:
    model = make(name, device="meta")
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == rates


@pytest.mark.parametrize("name", NAMES)
def test_drop_rate(name: str) -> None:
    model = make(name, drop_rate=0.5)
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} - {0.5} == (
        {0.0, 0.1} if name == "sq1" else set()
    )
    x = images(8)
    still, _ = seen_by(model, AFTER_DROPOUT[name], x)
    dropped, _ = seen_by(model.train(), AFTER_DROPOUT[name], x)
    kept = dropped != 0
    assert torch.equal(dropped[kept], 2 * still[kept])
    assert 0.3 < kept[still != 0].float().mean() < 0.7


def test_logit_dropout_zeroes_logits_in_training_alone() -> None:
    model, x = make("sq1", drop_rate=0.0, logit_drop_rate=0.5), images(32)
    with torch.no_grad():
        still, dropped = model(x), model.train()(x)
    kept = dropped != 0
    assert torch.equal(dropped[kept], 2 * still[kept])
    assert 0.3 < kept.float().mean() < 0.7
    assert (still != 0).all()


# --- torchvision ---


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("squeezenet_cifar", torchvision.models.squeezenet1_1), ("alexnet_cifar", torchvision.models.alexnet)],
)
def test_torchvision_gives_the_same_bits(name: str, theirs: Any) -> None:
    torch.manual_seed(2)
    reference = theirs(num_classes=10).eval()
    model = make(name)
    model.load_state_dict(reference.state_dict(), strict=True)
    with torch.no_grad():
        for x in (images(2, 3, 224, 224), images(1, 3, 97, 130)):
            assert torch.equal(model.forward_features(x), reference.features(x))
            assert torch.equal(model(x), reference(x))


@pytest.mark.parametrize("name", PAPERS)
def test_imagenet_trunk_gives_torchvisions_features(name: str, trunks: Any) -> None:
    source = "alexnet" if name == "alexnet_cifar" else "squeezenet1_1"
    reference = torchvision.models.get_model(source).features.eval()
    tensors = load_file(trunks / f"{source}_features.safetensors")
    reference.load_state_dict({k.removeprefix("features."): v for k, v in tensors.items()}, strict=True)
    model, x = make(name, init="imagenet", trunk=trunks), images(1, 3, 224, 224)
    with torch.no_grad():
        expected = reference[: len(model.features)](x)
        assert torch.equal(model.forward_features(x), expected)
    assert expected.std() > 0.1


# --- heads ---


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [0, 1, 7])
def test_num_classes(name: str, classes: int) -> None:
    model, x = make(name, num_classes=classes), images()
    assert model.num_classes == classes
    assert model(x).shape == (2, classes or model.head_hidden_size)
    layer = model.get_classifier()
    assert layer is model.get_submodule(LAST_LAYER[name])
    assert isinstance(layer, nn.Identity) if classes == 0 else layer.weight.shape[0] == classes


@pytest.mark.parametrize("name", NAMES)
def test_pre_logits_is_what_no_classes_gives(name: str) -> None:
    model, x = make(name), images()
    with torch.no_grad():
        features = model.forward_features(x)
        before = model.forward_head(features, pre_logits=True)
        assert before.shape == (2, model.head_hidden_size)
        model.reset_classifier(0)
        assert torch.equal(model(x), before)


@pytest.mark.parametrize("name", NAMES)
def test_reset_classifier_changes_the_last_layer_alone(name: str) -> None:
    model = make(name, dtype=torch.float64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.reset_classifier(7, "max")
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert {k for k in after if not torch.equal(after[k], before[k])} == {
        f"{LAST_LAYER[name]}.{p}" for p in ("weight", "bias")
    }
    assert model.num_classes == 7
    assert model.global_pool.pool_type == "max"
    assert not any(m.training for m in model.modules())
    assert model(images().double()).dtype == torch.float64
    model.reset_classifier(3)
    assert model.global_pool.pool_type == "max"
    with pytest.raises(ArgumentError, match="-1"):
        model.reset_classifier(-1)
    with pytest.raises(ArgumentError, match="'mean'"):
        model.reset_classifier(5, "mean")
    assert model(images().double()).shape == (2, 3)


# --- images ---


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_in_chans(name: str, channels: int) -> None:
    model = make(name, in_chans=channels)
    assert model.in_chans == channels
    assert model(images(channels=channels)).shape == (2, 10)
    with pytest.raises(ArgumentError, match=rf"\(N, {channels}, H, W\).*\[2, 2, 64, 64\]"):
        model(images(channels=2))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width"), [(0, 0), (0, 100), (33, 1), (161, 161)])
def test_any_size_from_the_least(name: str, height: int, width: int) -> None:
    least = LEAST[name]
    logits = make(name)(images(2, 3, least + height, least + width))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_smaller_images_are_enlarged_to_the_least(name: str) -> None:
    model, least = make(name), LEAST[name]
    assert model.min_input_size == least
    for height, width in ((1, 1), (least - 1, 100), (100, least - 1)):
        x = images(2, 3, height, width)
        enlarged = nn.functional.interpolate(x, [max(height, least), max(width, least)], mode="bilinear")
        torch.testing.assert_close(model(x), model(enlarged))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_batch_is_a_clear_error(name: str) -> None:
    model = make(name)
    for shape in ((1, 4, 100, 100), (1, 3, 100, 0), (3, 100, 100)):
        for call in (model, model.forward_features, model.forward_intermediates):
            with pytest.raises(ArgumentError) as e:
                call(torch.zeros(shape))
            assert str(list(shape)) in str(e.value)
            assert "(N, 3, H, W)" in str(e.value)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    model, x = make(name), images(3)
    with torch.no_grad():
        together, alone = model(x), torch.cat([model(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


# --- feature maps ---


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["list", "dict", "hook", "getter", "fx"])
def test_features_only(name: str, kind: str) -> None:
    x = images(1, 3, 224, 224)
    with torch.no_grad():
        expected = make(name).forward_intermediates(x, intermediates_only=True)
        model = make(name, features_only=True, feature_cls=kind)
        maps = model(x)
    maps = list(maps.values()) if isinstance(maps, dict) else maps
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    sides = ([55, 27, 13] if name == "alexnet_cifar" else [111, 55, 27, 13])[: len(maps)]
    assert [tuple(m.shape[2:]) for m in maps] == [(s, s) for s in sides]
    assert all(torch.equal(m, e) for m, e in zip(maps, expected, strict=True))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("indices", [(1, 2), (-1,), (0, -2)])
def test_features_only_of_some_stages(name: str, indices: tuple[int, ...]) -> None:
    x = images()
    with torch.no_grad():
        stages = make(name).forward_intermediates(x, intermediates_only=True)
        maps = make(name, features_only=True, out_indices=indices)(x)
    assert all(torch.equal(m, stages[i]) for m, i in zip(maps, indices, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_forward_intermediates(name: str) -> None:
    model, x = make(name), images(1, 3, 96, 80)
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
        assert torch.equal(final, model.forward_features(x))
        assert [m.shape[1] for m in maps] == [info["num_chs"] for info in model.feature_info]
        assert all(m.min() == 0 for m in maps)  # tapped behind a ReLU
        last_two = model.forward_intermediates(x, indices=2, intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(last_two, maps[-2:], strict=True))
        for i, expected in enumerate(maps):
            early, one = model.forward_intermediates(x, indices=[i], stop_early=True)
            assert torch.equal(early, expected)
            assert torch.equal(one[0], expected)
    with pytest.raises(ArgumentError, match="NLC"):
        model.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("name", NAMES)
def test_pruned_models_keep_their_stages_and_take_a_new_head(name: str) -> None:
    x = images(1, 3, 96, 96)
    whole = make(name)
    with torch.no_grad():
        maps, logits = whole.forward_intermediates(x, intermediates_only=True), whole(x)
        whole.prune_intermediate_layers([-1], prune_head=False)
        assert torch.equal(whole(x), logits)
    for index, expected in enumerate(maps):
        model = make(name)
        assert model.prune_intermediate_layers([index]) == [index]
        with torch.no_grad():
            kept = model.forward_intermediates(x, intermediates_only=True)
            assert torch.equal(kept[-1], expected)
            assert len(kept) == len(model.feature_info) == index + 1
            if index < len(maps) - 1:
                assert torch.equal(model.forward_features(x), expected)
                torch.testing.assert_close(model(x), expected.mean((2, 3)))
        assert model.num_features == model.head_hidden_size == expected.shape[1]
        model.reset_classifier(5)
        model.train()(x).sum().backward()
        assert model(x).shape == (1, 5)
        assert all(p.grad is not None for p in model.parameters())


# --- training ---


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = make(name, drop_rate=0.0).train()
    F.cross_entropy(model(images(4)), torch.tensor([0, 1, 2, 3])).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_changes_no_gradient(name: str) -> None:
    grads = []
    for enable in (False, True):
        model = make(name)
        model.set_grad_checkpointing(enable)
        model(images()).pow(2).sum().backward()
        grads.append([p.grad for p in model.features.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        assert plain.any()
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize("name", NAMES)
def test_layer_decay_groups_go_by_depth(name: str) -> None:
    model = make(name, device="meta")
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    convolutions = [m for m in model.features if any(True for _ in m.parameters())]
    trunk = [scale[id(next(m.parameters()))] for m in convolutions]
    assert trunk == sorted(set(trunk))
    assert all(scale[id(p)] == 1.0 for p in model.get_classifier().parameters())
    assert len(scale) == len(list(model.parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_channels_last_and_double_agree(name: str) -> None:
    x = images(1, 3, 96, 96)
    with torch.no_grad():
        expected = make(name)(x)
        last = make(name).to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        double = make(name).double()(x.double())
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(double, expected.double(), rtol=1e-4, atol=1e-5)


# --- export ---


@pytest.mark.parametrize("name", NAMES)
def test_torch_export_with_any_batch(name: str) -> None:
    model, x = make(name), images(2, 3, 96, 96)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    more = images(5, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(more), model(more), rtol=1e-4, atol=1e-5)


@jit_is_deprecated
@pytest.mark.parametrize("name", NAMES)
def test_torchscript(name: str) -> None:
    model, x = make(name), images(2, 3, 96, 96)
    scripted = torch.jit.script(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, x)
    other = images(3, 3, 70, 120)
    with torch.no_grad():
        assert torch.equal(scripted(x), model(x))
        assert torch.equal(scripted(other), model(other))
        assert torch.equal(traced(x), model(x))
        features = scripted.forward_features(x)
        assert torch.equal(scripted.forward_head(features, True), model.forward_head(features, pre_logits=True))
        assert torch.equal(scripted(images(1, 3, 20, 20)), model(images(1, 3, 20, 20)))
    with pytest.raises(torch.jit.Error, match="expected images of shape"):
        scripted(images(1, 4, 64, 64))


@jit_is_deprecated
@pytest.mark.parametrize("name", NAMES)
def test_torchscript_of_features(name: str) -> None:
    x = images(1, 3, 96, 96)
    model = make(name, features_only=True, feature_cls="getter", out_indices=(0, 1))
    with torch.no_grad():
        for scripted, eager in zip(torch.jit.script(model)(x), model(x), strict=True):
            assert torch.equal(scripted, eager)


@pytest.mark.parametrize("name", NAMES)
def test_torch_compile_in_one_graph(name: str) -> None:
    model, x = make(name), images(2, 3, 96, 96)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_fx_graph_gives_the_same_bits(name: str) -> None:
    model, x = make(name), images(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


# --- mistakes ---

WRONG = [
    *((n, {"global_pool": "mean"}, "'mean'") for n in NAMES),
    *((n, {"drop_rate": 1.5}, "1.5") for n in NAMES),
    *((n, {"drop_rate": -0.1}, "-0.1") for n in NAMES),
    *((n, {"drop_rate": 1}, "not 1.") for n in NAMES),
    *((n, {"in_chans": 0}, "not 0.") for n in NAMES),
    *((n, {"in_chans": 2.5}, "2.5") for n in NAMES),
    *((n, {"num_classes": -1}, "-1") for n in NAMES),
    *((n, {"num_classes": True}, "True") for n in NAMES),
    *((n, {p: "median"}, "'median'") for n in SQUEEZE_NETS for p in ("pool2", "pool3")),
    ("sq1", {"logit_drop_rate": 2}, "2"),
    ("sq1", {"conv_drop_rate": 1.0}, "1.0"),
    ("sq1", {"mid": 0}, "not 0."),
    ("sq1", {"width": 0}, "not 0."),
    ("fire_next", {"width": -3}, "-3"),
    ("fire_next", {"reduction": 0}, "not 0."),
    ("fire_next", {"reduction": 1.01}, "1.01"),
]


@pytest.mark.parametrize("create", [sqzoo.create_model, timm.create_model], ids=["sqzoo", "timm"])
@pytest.mark.parametrize(("name", "args", "said"), WRONG)
def test_a_wrong_value_is_named(create: Any, name: str, args: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError) as e:
        create(name, device="meta", **args)
    assert_one_sentence(e.value, said, next(iter(args)))


@pytest.mark.parametrize("create", [sqzoo.create_model, timm.create_model], ids=["sqzoo", "timm"])
@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_argument_is_named_with_the_nearest(create: Any, name: str) -> None:
    with pytest.raises(UnknownArgumentError, match=f"^{name} has no argument 'drop_rat'. Did you mean 'drop_rate'?"):
        create(name, drop_rat=0.5)
    assert issubclass(UnknownArgumentError, SqzooError)
    assert issubclass(UnknownArgumentError, TypeError)

"""The enlargement inside the network: what it computes, which inputs it takes, and when it goes."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import functional as TF

import sqzoo
from sqzoo import hub
from sqzoo.data import cifar10
from sqzoo.errors import ArgumentError
from sqzoo.models.upsample import Upsample
from sqzoo.weights import CIFAR10_CLASSES, get_weights
from tests.support import CAT
from tests.support.sentences import assert_one_sentence

COMPLETE = [t for t in sqzoo.list_models(pretrained=True) if get_weights(t).holds == "complete"]


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("sizes", "crop"), [((160,), 160), ((256, 224), 224), ((40, 33), 33)])
def test_it_enlarges_bilinearly_and_takes_the_centre(sizes: tuple[int, ...], crop: int, images: torch.Tensor) -> None:
    whole = nn.Upsample(sizes[0], mode="bilinear")(images)
    low = (sizes[0] - crop) // 2
    found = Upsample(*sizes)(images)
    assert found.shape == (2, 3, crop, crop)
    assert torch.equal(found, whole[:, :, low : low + crop, low : low + crop])


def test_a_larger_picture_is_reduced_with_antialiasing_as_cifar10_was_made() -> None:
    photo = Image.open(CAT).convert("RGB").crop((75, 0, 375, 300))
    reduced = TF.to_tensor(photo.resize((32, 32), Image.Resampling.BILINEAR))[None]
    upsample = Upsample(160)
    found = upsample(TF.to_tensor(photo)[None])
    assert (found - upsample(reduced)).abs().max() < 1.5 / 255  # Pillow rounds to whole levels, twice
    plain = upsample(F.interpolate(TF.to_tensor(photo)[None], 32, mode="bilinear"))
    assert (plain - upsample(reduced)).abs().max() > 20 / 255  # so that the bound above means something


def test_a_smaller_picture_is_enlarged_at_once() -> None:
    digit = torch.rand(1, 3, 28, 28)
    assert torch.equal(Upsample(160)(digit), F.interpolate(digit, 160, mode="bilinear"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_it_keeps_the_dtype(dtype: torch.dtype) -> None:
    for size in (32, 50):
        found = Upsample(64)(torch.rand(1, 3, size, size).to(dtype))
        assert found.dtype == dtype


@pytest.mark.parametrize("value", ["160", 31, 5000, True, (160,), (160, 224), (64, 32, 16), 64.0, (64, 32.0)])
def test_wrong_sizes_are_one_clear_sentence(value: Any) -> None:
    with pytest.raises(ArgumentError, match="upsample") as caught:
        sqzoo.create_model("sq1", upsample=value)
    assert_one_sentence(caught.value)


@pytest.mark.parametrize("tag", COMPLETE)
def test_plain_cifar10_batches_give_the_recorded_accuracy_through_timm(tag: str, cifar10_root: Path) -> None:
    data = cifar10("test", cifar10_root)[:100]
    model = timm.create_model(tag, pretrained=True)
    config = timm.data.resolve_model_data_config(model)
    assert (config["input_size"], config["crop_pct"]) == ((3, 32, 32), 1.0)
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    batch = (torch.from_numpy(data.images).permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.inference_mode():
        right = 100 * (model(batch).argmax(1).numpy() == data.labels).mean()
    recorded = get_weights(tag).metrics["test_top1"]  # 13 % without the enlargement
    assert abs(right - recorded) < 4 * (recorded * (100 - recorded) / len(data)) ** 0.5


def test_photos_through_timms_transform_are_what_predict_says() -> None:
    from sqzoo.predict import predict

    model = timm.create_model("fire_next", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.inference_mode():
        probabilities = model(transform(Image.open(CAT).convert("RGB"))[None]).softmax(1)[0]
    for found in predict(model, CAT, top_k=10)[0]:
        assert found.probability == pytest.approx(probabilities[found.index].item(), abs=1e-5)


@pytest.mark.parametrize(("tag", "size", "crop_pct"), [("sq1.ft_cifar10", 160, 1.0), ("sq1.tiny_cifar10", 128, 1.0)])
def test_a_fresh_head_is_a_new_model(tag: str, size: int, crop_pct: float, tmp_path: Path) -> None:
    whole = sqzoo.create_model(tag, pretrained=True)
    assert whole.upsample.crop == size
    assert whole.temperature != 1
    hub.save_pretrained(whole, tmp_path)
    pruned, cut = copy.deepcopy(whole), copy.deepcopy(whole)
    pruned.reset_classifier(10)
    cut.reset_classifier(0)
    for headless in (cut, timm.create_model(tag, pretrained=True, num_classes=0)):  # they take what it took
        assert headless.upsample.crop == size
        assert headless.pretrained_cfg["input_size"] == (3, 32, 32)
    cut.reset_classifier(3)
    fresh = {
        "num_classes": sqzoo.create_model(tag, pretrained=True, num_classes=5),
        "num_classes, timm": timm.create_model(tag, pretrained=True, num_classes=5),
        "a folder": sqzoo.create_model(f"local-dir:{tmp_path}", num_classes=5),
        "a folder, timm": timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=5),
        "features": timm.create_model(tag, pretrained=True, features_only=True),
        "own labels": timm.create_model(
            tag, pretrained=True, pretrained_cfg_overlay={"label_names": [f"class {i}" for i in range(10)]}
        ),
        "reset_classifier": pruned,
        "reset_classifier, twice": cut,
    }
    for how, model in fresh.items():
        config = model.pretrained_cfg
        assert (config["input_size"], config["crop_pct"]) == ((3, size, size), crop_pct), how
        assert tuple(config.get("label_names") or ()) != CIFAR10_CLASSES, how
        assert getattr(model, "temperature", 1.0) == 1, how
        assert getattr(model, "ood_threshold", None) is None, how
        assert not any(isinstance(module, Upsample) for module in model.modules()), how
    assert fresh["own labels"].pretrained_cfg["label_names"] == [f"class {i}" for i in range(10)]
    again = timm.create_model(tag, pretrained=True, num_classes=5, upsample=64)
    assert again.upsample.crop == 64  # what the caller asks for stays
    assert again.pretrained_cfg["input_size"] == (3, 32, 32)


def test_a_fresh_head_saved_by_timm_stays_one(tmp_path: Path) -> None:
    model = sqzoo.create_model("sq1", pretrained=True)
    model.reset_classifier(4)
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    back = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert isinstance(back.upsample, nn.Identity)
    assert back.temperature == 1


def test_every_view_of_the_network_sees_the_enlarged_images(images: torch.Tensor) -> None:
    model = sqzoo.create_model("sq1.tiny_cifar10", pretrained=True)
    with torch.inference_mode():
        features = model.forward_features(images)
        assert torch.equal(model.forward_head(features), model(images))
        assert torch.equal(model.features(model.upsample(images)), features)
        final, maps = model.forward_intermediates(images)
    assert torch.equal(final, features)
    assert [m.shape[-1] for m in maps] == [63, 31, 15, 7]  # 128 pixels over 2, 4, 8 and 16


def test_one_channel(images: torch.Tensor) -> None:
    model = sqzoo.create_model("sq1", pretrained=True, in_chans=1)
    assert model(images[:, :1]).shape == (2, 10)
    assert isinstance(model.upsample, Upsample)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_it_can_be_traced_scripted_and_exported(images: torch.Tensor) -> None:
    model = sqzoo.create_model("sq1", pretrained=True)
    with torch.inference_mode():
        expected = model(images)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(images), expected)
    torch.testing.assert_close(torch.jit.script(model)(images), expected)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("N")},))
    torch.testing.assert_close(program.module()(images[:1].repeat(5, 1, 1, 1)), expected[:1].repeat(5, 1))


def test_pretrained_must_be_a_truth_value() -> None:
    for create in (sqzoo.create_model, timm.create_model):
        with pytest.raises(ArgumentError, match=r"pretrained must be True or False, not 'paper_cifar10'"):
            create("sq1", pretrained="paper_cifar10")


def test_numpy_images_of_any_square_size_answer(images: torch.Tensor) -> None:
    from sqzoo.predict import predict

    model = sqzoo.create_model("sq1", pretrained=True)
    photo = Image.open(CAT).convert("RGB").crop((75, 0, 375, 300))
    answers = [predict(model, np.asarray(photo.resize((n, n))))[0][0].label for n in (32, 64, 224, 300)]
    assert answers == ["cat"] * 4

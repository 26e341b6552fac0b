"""A panel of teachers in ONNX files: what it answers, how that is learnt from, what it refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sqzoo.train.negatives import NONE, with_noise
from sqzoo.train.panel import panel
from test_distributed import torchrun
from test_train import FROZEN, TRAIN, TRAINED, assert_one_sentence, run

from sqzoo import create_model
from sqzoo.data import Dataset
from sqzoo.errors import ArgumentError
from sqzoo.export import export
from sqzoo.graph import FromPixels
from sqzoo.train import Recipe
from sqzoo.train.augment import augment

TAGS = ("sq1.tiny_cifar10", "fire_next.tiny_cifar10")
PLAN = replace(TRAINED, model="fire_next", sizes=((32, 1),), hold_out=0, select="last", batch_size=100, cutout=8)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("teachers")
    return [export(create_model(tag, pretrained=True), folder / f"{tag}.onnx", preprocessing=True) for tag in TAGS]


def probabilities(images: torch.Tensor) -> torch.Tensor:
    """What the two networks say by PyTorch, on average."""
    nets = [FromPixels(create_model(tag, pretrained=True)).eval() for tag in TAGS]
    with torch.inference_mode():
        return torch.stack([net(images) for net in nets]).mean(0)


def test_a_panel_answers_with_its_mean_probabilities(teachers: list[Path]) -> None:
    images = torch.from_numpy(TRAIN.images)
    found = panel("+".join(map(str, teachers)))(images).exp()
    torch.testing.assert_close(found, probabilities(images), rtol=0, atol=0.02)  # bfloat16, where the CPU has it


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_what_the_pupil_sees_is_what_the_panel_is_asked_about(
    noise: float, tmp_path: Path, trunks: Path, teachers: list[Path], photo_squares: np.ndarray
) -> None:
    """The first loss, written out: labels and answers on the same shifted, cut images; noise is all classes alike."""
    plan = replace(PLAN, noise=noise, teacher="+".join(map(str, teachers)))
    data = Dataset(photo_squares[:100], TRAIN.labels)  # of noise a teacher says the same, however it is cut
    result = run(plan, tmp_path, trunks, train_set=data)
    torch.manual_seed(plan.seed)
    model = create_model("fire_next", init="imagenet", trunk=trunks).train()
    torch.manual_seed(plan.seed * 1_000_003)
    batch = data[torch.randperm(100).numpy()]
    images, labels = augment(torch.from_numpy(batch.images), plan.pad, plan.flip, plan.cutout), batch.labels
    images, marked = with_noise(images, torch.from_numpy(labels), noise) if noise else (images, torch.tensor(labels))
    assert bool((marked == NONE).any()) == (noise > 0)
    wanted = 0.3 * F.one_hot(torch.from_numpy(labels), 10) + 0.7 * probabilities(images)
    wanted[marked == NONE] = 0.1
    found = model(plan.preprocessing(32)(images))
    sure = torch.where((marked == NONE)[:, None], 0.1, probabilities(images))
    expected = F.cross_entropy(found, wanted) - 0.7 * -(sure * sure.log()).sum(1).mean()
    assert result["log"][0]["train_loss"] == pytest.approx(expected.item(), rel=0.02)


def test_two_processes_ask_about_their_own_images(tmp_path: Path, trunks: Path, teachers: list[Path]) -> None:
    """33 in a batch leave one image for the last, of which one process has none."""
    plan = replace(PLAN, batch_size=33, teacher=str(teachers[0]))
    alone = run(plan, tmp_path / "alone", trunks)
    done = torchrun(plan, tmp_path / "two", trunks)
    assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / "best.safetensors") for name in ("alone", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-2, atol=1e-4)
    assert run(plan, tmp_path / "alone", trunks) == alone  # finished: the same run


def test_a_panel_that_cannot_teach_is_refused(tmp_path: Path, trunks: Path, teachers: list[Path]) -> None:
    def refused(plan: Recipe, *parts: str) -> None:
        with pytest.raises(ArgumentError) as caught:
            run(plan, tmp_path / "run", trunks)
        assert_one_sentence(caught.value, *parts)

    refused(replace(PLAN, teacher=f"{teachers[0]}+absent.onnx"), "absent.onnx", "No such file")
    (tmp_path / "text.onnx").write_text("text")
    refused(replace(PLAN, teacher=str(tmp_path / "text.onnx")), "text.onnx", "sqzoo export")
    with pytest.raises(ArgumentError) as caught:
        replace(FROZEN, teacher=str(teachers[0]))
    assert_one_sentence(caught.value, "frozen", "give a tag")

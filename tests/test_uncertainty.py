"""Temperature and threshold: what they promise on logits, in the manifest, and through `predict`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import sqzoo
from benchmarks.accuracy.calibrate import Distance, auroc
from benchmarks.accuracy.outside import sets
from sqzoo import hub
from sqzoo.errors import ArgumentError, WeightsError
from sqzoo.predict import classify, predict
from sqzoo.uncertainty import calibrate, fit_temperature, ood_score, ood_threshold
from sqzoo.weights import read_manifest
from tests.support import ROOT

CAT = ROOT / "examples" / "cat.jpg"


def drawn(temperature: float, count: int = 20000) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits that are `temperature` times what their labels were drawn by."""
    torch.manual_seed(0)
    honest = 3 * torch.randn(count, 10)
    return honest * temperature, torch.multinomial(honest.softmax(1), 1).flatten()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_was_put_in_is_found(temperature: float) -> None:
    logits, labels = drawn(temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.02)
    best = F.cross_entropy(logits / found, labels)
    assert all(F.cross_entropy(logits / (found * by), labels) > best for by in (0.95, 1.05))


def test_a_temperature_needs_mistakes() -> None:
    for logits in (torch.zeros(0, 10), torch.eye(10)):
        with pytest.raises(ArgumentError, match="needs validation images, some of them misclassified"):
            fit_temperature(logits, torch.arange(len(logits)))


def test_the_threshold_keeps_what_it_says() -> None:
    logits, labels = drawn(1.0)
    values = ood_score(logits.softmax(1))
    for kept in (0.9, 0.95):
        assert (values >= ood_threshold(values, kept)).double().mean() == pytest.approx(kept, abs=1e-3)
    assert calibrate(logits, labels).keys() == {"temperature", "threshold"}


def test_the_score_is_lower_the_more_even_the_probabilities() -> None:
    even, two, one = torch.full((10,), 0.1), torch.tensor([0.5, 0.5] + [0.0] * 8), torch.eye(10)[3]
    nearly = torch.tensor([0.91] + [0.01] * 9)
    values = ood_score(torch.stack([even, nearly, two, one]))
    assert values.tolist() == sorted(values.tolist())
    assert values[-1] == 0
    assert values[0].item() == pytest.approx(-10 * 0.09**0.1, rel=1e-6)


def test_the_network_divides_by_the_temperature_and_predict_says_unsure() -> None:
    model = sqzoo.create_model("sq1", pretrained=True, temperature=1.0)
    model.ood_threshold = None
    (plain,) = classify(model, CAT, top_k=10)
    assert plain.abstain is None
    logits = torch.tensor([p.probability for p in sorted(plain.predictions, key=lambda p: p.index)]).double().log()
    model = sqzoo.create_model("sq1", pretrained=True, temperature=2.0)
    model.ood_threshold = -1e-3
    (cooled,) = classify(model, CAT, top_k=10)
    expected = (logits / 2).softmax(0)
    assert cooled.ood_score == pytest.approx(ood_score(expected[None]).item(), abs=1e-3)
    assert [p.probability for p in cooled.predictions] == pytest.approx(
        [expected[p.index].item() for p in cooled.predictions], abs=1e-5
    )
    assert cooled.abstain is True
    model.ood_threshold = cooled.ood_score - 1e-3
    assert next(classify(model, CAT)).abstain is False
    assert predict(model, CAT)[0][0].label == "cat"


def test_calibration_goes_with_the_weights_and_their_classes(tmp_path: Path) -> None:
    model = sqzoo.create_model("sq1", temperature=1.5, upsample=64)
    assert model.ood_threshold is None
    model.ood_threshold = 3.25
    hub.save_pretrained(model, tmp_path / "saved")
    back = sqzoo.create_model(f"local-dir:{tmp_path / 'saved'}")
    assert (back.temperature, back.ood_threshold, back.upsample.resize) == (1.5, 3.25, 64)
    other = sqzoo.create_model(f"local-dir:{tmp_path / 'saved'}", num_classes=3)
    model.reset_classifier(10)
    for fresh in (other, model):
        assert (fresh.temperature, fresh.ood_threshold) == (1.0, None)
        assert isinstance(fresh.upsample, torch.nn.Identity)
        assert fresh.pretrained_cfg["input_size"] == (3, 64, 64)
    config = tmp_path / "saved" / "config.json"
    right = json.loads(config.read_text())
    for wrong in ("x", [1], True, float("nan")):
        config.write_text(json.dumps(right | {"ood_threshold": wrong}))
        with pytest.raises(WeightsError, match="configuration"):
            sqzoo.create_model(f"local-dir:{tmp_path / 'saved'}")
    for wrong in (0, "x", -1, True):
        config.write_text(json.dumps(right | {"model_args": right["model_args"] | {"temperature": wrong}}))
        with pytest.raises(WeightsError, match="temperature"):
            sqzoo.create_model(f"local-dir:{tmp_path / 'saved'}")


def test_the_manifest_has_what_the_benchmark_recorded() -> None:
    file = ROOT / "benchmarks" / "results" / "accuracy" / "uncertainty.json"
    recorded = json.loads(file.read_text(encoding="utf-8"))["tags"] if file.is_file() else {}
    for tag, entry in read_manifest().items():
        if not entry.recipe.get("hold_out"):
            assert not entry.calibration, f"{tag} was calibrated on images it was trained on"
        if not entry.calibration:
            continue
        row = recorded[tag]
        assert row["weights_sha256"] == entry.sha256, f"{tag}: run python benchmarks/accuracy/calibrate.py --only {tag}"
        assert entry.model_args["temperature"] == row["temperature"]
        assert entry.ood_threshold == row["threshold"]
        assert entry.calibration["held_out_images"] == row["held_out_images"]


CALIBRATED = [t for t, e in read_manifest().items() if e.calibration and e.holds == "complete"]


@pytest.mark.parametrize("tag", CALIBRATED)
def test_noise_is_none_of_the_ten(tag: str) -> None:
    noise = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)) for i in range(20)]
    answers = classify(sqzoo.create_model(tag, pretrained=True), noise)
    # AlexNet is surer of noise than the others (its card: of synthetic pictures a third get a class).
    assert sum(bool(a.abstain) for a in answers) >= (8 if tag.startswith("alexnet") else 15)


@pytest.mark.parametrize("tag", CALIBRATED)
def test_the_cat_is_one_of_the_ten(tag: str) -> None:
    (cat,) = classify(sqzoo.create_model(tag, pretrained=True), [Image.open(CAT)])
    assert not cat.abstain


def test_the_benchmarks_measures() -> None:
    assert auroc(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1.5])) == pytest.approx(5 / 6)
    assert auroc(torch.ones(4), torch.ones(3)) == 0.5
    torch.manual_seed(0)
    labels = torch.arange(400) % 2
    wide = torch.tensor([4.0, 0.1])  # the classes spread along the first axis
    features = torch.stack([labels * 1.0, labels * 10.0], 1) + torch.randn(400, 2) * wide
    distance = Distance(features, labels)
    near_along, off_across = distance(torch.tensor([[5.0, 10.0], [1.0, 5.0]]))
    assert near_along > off_across


def test_pictures_of_nothing_are_the_same_each_time() -> None:
    ((_, drawn_once),) = sets(None).values()
    ((_, drawn_again),) = sets(None).values()
    assert len(drawn_once) == 600
    assert all(a.size == (96, 96) and a.tobytes() == b.tobytes() for a, b in zip(drawn_once, drawn_again, strict=True))

"""Training on a CUDA GPU: the CPU's results within a tolerance, resume, two runs on one device, too little memory."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sqzoo.errors import ArgumentError
from sqzoo.train import Recipe, recipe, train
from tests.support.runs import FROZEN, TEST, TRAIN, TRAINED

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

# No dropout, whose masks a GPU draws otherwise, and no augmentation, for the same reason.
PLAIN = {"model": "fire_next", "flip": False, "pad": 0}
PLANS = {
    "head": replace(FROZEN, model="fire_next", sizes=((64, 1),)),
    "all layers": replace(TRAINED, **PLAIN, sizes=((64, 1),), lr=1e-5),
    "ft": replace(TRAINED, **PLAIN, sizes=((64, 1),), lr=1e-5, muon_lr=1e-5, batch_norm=True, ema=0.9),
}


def run(plan: Recipe, folder: Path, trunks: Path, device: str, **more: Any) -> dict[str, Any]:
    more = {"precision": "float32"} | more
    return train(plan, TRAIN, TEST, folder, trunk=trunks, device=device, progress=False, **more)


@pytest.mark.parametrize("name", PLANS)
def test_an_epoch_is_the_cpus(name: str, tmp_path: Path, trunks: Path) -> None:
    """In float32: losses within 1 %, test accuracy within two images of 40."""
    cpu, gpu = (run(PLANS[name], tmp_path / device, trunks, device) for device in ("cpu", "cuda"))
    assert gpu["log"][0]["train_loss"] == pytest.approx(cpu["log"][0]["train_loss"], rel=0.01)
    assert gpu["test"]["loss"] == pytest.approx(cpu["test"]["loss"], rel=0.02)
    assert gpu["test"]["top1"] == pytest.approx(cpu["test"]["top1"], abs=5.1)


@pytest.mark.parametrize("name", ["ft_cifar10", "held_out_cifar10", "paper_cifar10"])
def test_named_recipes_run(name: str, tmp_path: Path, trunks: Path) -> None:
    plan = recipe(name, "sq1", sizes=((96, 1),), hold_out=0 if name.startswith("paper") else 20, batch_size=32)
    assert run(plan, tmp_path, trunks, "cuda", precision="auto")["precision"] == "bfloat16"


def test_a_run_resumes(tmp_path: Path, trunks: Path) -> None:
    class Stop(Exception):
        pass

    def stop(row: dict[str, Any]) -> None:
        raise Stop

    with pytest.raises(Stop):
        run(TRAINED, tmp_path / "stopped", trunks, "cuda", on_epoch=stop)
    stopped, whole = (run(TRAINED, tmp_path / n, trunks, "cuda") for n in ("stopped", "whole"))
    assert len(stopped["log"]) == len(whole["log"]) == 3
    one, two = (load_file(tmp_path / n / "best.safetensors") for n in ("stopped", "whole"))
    for name in one:  # up to the order in which max pooling's backward pass adds
        torch.testing.assert_close(one[name], two[name], rtol=1e-2, atol=1e-3)


def test_two_runs_on_one_device(tmp_path: Path, trunks: Path) -> None:
    results: dict[str, dict[str, Any]] = {}
    threads = [
        threading.Thread(target=lambda n=n: results.update({n: run(FROZEN, tmp_path / n, trunks, "cuda")}))
        for n in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.keys() == {"a", "b"}


def test_too_little_memory_is_a_sentence(tmp_path: Path, trunks: Path) -> None:
    torch.cuda.set_per_process_memory_fraction(0.0005)
    try:
        with pytest.raises(ArgumentError, match=r"too little memory.*--set batch_size="):
            run(replace(TRAINED, sizes=((224, 1),), batch_size=80), tmp_path, trunks, "cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()

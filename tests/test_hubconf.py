"""torch.hub, for real: from the checkout and from the layout of its cache, with no network."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import sqzoo
from tests.support import ROOT
from tests.support.fork import python

NAMES = ["alexnet_cifar", "fire_next", "sq1", "squeezenet_cifar"]


@pytest.mark.parametrize("name", NAMES)
def test_load_from_checkout(name: str) -> None:
    model = torch.hub.load(str(ROOT), name, source="local", num_classes=7)
    assert type(model) is type(sqzoo.create_model(name))
    assert model.num_classes == 7


@pytest.mark.parametrize("name", [n for n in NAMES if sqzoo.list_models(f"{n}.*", pretrained=True)])
def test_pretrained_is_the_registry_s(name: str) -> None:
    model = torch.hub.load(str(ROOT), name, source="local", pretrained=True)
    expected = sqzoo.create_model(name, pretrained=True).state_dict()
    assert not model.training
    assert all(torch.equal(v, expected[k]) for k, v in model.state_dict().items())
    tag = sqzoo.get_weights(name).tag.partition(".")[2]
    by_tag = torch.hub.load(str(ROOT), name, source="local", weights=tag).state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in by_tag.items())


def test_unknown_tag_names_the_known_ones() -> None:
    with pytest.raises(sqzoo.SqzooError, match=r"Did you mean 'sq1.ft_cifar10'"):
        torch.hub.load(str(ROOT), "sq1", source="local", weights="ft_cifar11")


def test_cached_repository_loads_lists_and_helps_offline(tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "org_sqzoo_main"
    cached.mkdir(parents=True)
    shutil.copy(ROOT / "hubconf.py", cached)
    shutil.copytree(ROOT / "sqzoo", cached / "sqzoo", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import torch, sys\n"
        "model = torch.hub.load('org/sqzoo:main', 'fire_next', trust_repo=True, skip_validation=True, width=100)\n"
        "print(sys.modules['sqzoo'].__file__)\n"
        "print(sum(p.numel() for p in model.parameters()))\n"
        "print(torch.hub.list('org/sqzoo:main', trust_repo=True, skip_validation=True))\n"
        "print(torch.hub.help('org/sqzoo:main', 'sq1', trust_repo=True, skip_validation=True))\n"
    )
    environment = os.environ | {"TORCH_HOME": str(tmp_path), "PYTHONPATH": ""}
    done = subprocess.run(
        [python(), "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert str(cached) in out
    assert str(sum(p.numel() for p in sqzoo.create_model("fire_next", width=100).parameters())) in out
    assert str(NAMES) in out  # the entry points and nothing else
    assert "Table 3" in out

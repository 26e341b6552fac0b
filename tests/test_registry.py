"""Names, tags, weights files and what importing the package pulls in."""

import ast
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import adapt_input_conv
from timm.models._hub import save_for_hf

import sqzoo
from sqzoo.errors import ArgumentError, SqzooError, UnknownModelError, WeightsError
from sqzoo.registry import start_from_imagenet
from sqzoo.weights import trunk_source
from sqzoo.weights.loading import read_verified
from sqzoo.weights.manifest import architectures
from tests.support.fork import python
from tools.golden import FILE as GOLDEN
from tools.golden import golden_logits

NAMES = sqzoo.list_models()
TAGS = sqzoo.list_models(pretrained=True)
PACKAGE = Path(sqzoo.__file__).parent
Tensors = dict[str, torch.Tensor]


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def seeded(create: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return create(*args, **kwargs)


def run_python(code: str, folder: Path, program: str | None = None) -> str:
    """Run code in a fresh interpreter, by default one that has torch; it finds this checkout and `folder`."""
    done = subprocess.run(
        [program or python(timm=False), "-c", code],
        env={"PYTHONPATH": f"{PACKAGE.parent}:{folder}", "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- names ---


def test_list_models() -> None:
    assert NAMES == ["alexnet_cifar", "fire_next", "sq1", "squeezenet_cifar"]
    assert sqzoo.list_models("sq*") == ["sq1", "squeezenet_cifar"]
    assert sqzoo.list_models("resnet18") == []
    assert set(NAMES) < set(timm.list_models())


def test_listed_tags_are_the_manifests() -> None:
    manifest = json.loads((PACKAGE / "weights" / "manifest.json").read_text(encoding="utf-8"))
    assert sorted(TAGS) == sorted(entry["tag"] for entry in manifest["weights"])
    assert [t for n in NAMES for t in sqzoo.list_models(n, pretrained=True)] == TAGS
    assert architectures() == NAMES  # what `sqzoo list` and `sqzoo cache` know without importing torch


def test_foreign_models_are_not_ours(tmp_path: Path) -> None:
    # Its module is called as one of ours is, and so is its model, but for an ending.
    (tmp_path / "sq1.py").write_text(
        "from timm.models import register_model\n"
        "@register_model\n"
        "def sq1_b(pretrained=False, **kwargs): raise AssertionError('built')\n"
    )
    code = """
import sqzoo, sq1, timm
assert "sq1_b" in timm.list_models("sq1*")
print(sqzoo.list_models("sq1*"))
try:
    sqzoo.create_model("sq1_b")
except sqzoo.SqzooError as e:
    print(e)
"""
    listed, error = run_python(code, tmp_path).splitlines()
    assert listed == "['sq1']"
    assert error.startswith("Unknown model 'sq1_b'. Did you mean 'sq1'?")


@pytest.mark.parametrize("name", NAMES)
def test_timm_creates_the_same_model(name: str) -> None:
    args: dict[str, Any] = {"num_classes": 7, "in_chans": 1}
    ours, theirs = seeded(sqzoo.create_model, name, **args), seeded(timm.create_model, name, **args)
    assert type(ours) is type(theirs)
    assert same(ours.state_dict(), theirs.state_dict())
    assert ours.pretrained_cfg == theirs.pretrained_cfg


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sq2", "Unknown model 'sq2'. Did you mean 'sq1'?"),
        ("squeezenet", "Unknown model 'squeezenet'. Did you mean 'squeezenet_cifar'?"),
        ("resnet18", "Unknown model 'resnet18'. There are: alexnet_cifar, fire_next, sq1, squeezenet_cifar."),
        ("", "Unknown model ''."),
        ("sq1.nonsense", "sq1 has no weights tag 'nonsense'."),
    ],
)
def test_unknown_names(name: str, said: str) -> None:
    with pytest.raises(UnknownModelError) as e:
        sqzoo.create_model(name)
    assert str(e.value).startswith(said)
    assert "There are: " in str(e.value)
    assert isinstance(e.value, SqzooError)


def test_a_path_is_no_name(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match="No folder 'runs/absent', and no model of that name"):
        sqzoo.create_model("runs/absent")
    with pytest.raises(UnknownModelError, match=f"write local-dir:{tmp_path}"):
        sqzoo.create_model(str(tmp_path))


def test_weights_that_do_not_exist() -> None:
    with pytest.raises(UnknownModelError, match=r"^No weights named 'nothing'.*There are: "):
        sqzoo.get_weights("nothing")
    for name in NAMES:
        if not sqzoo.list_models(name, pretrained=True):
            with pytest.raises(UnknownModelError, match=f"^No weights named '{name}'"):
                sqzoo.create_model(name, pretrained=True)


def test_init_is_checked() -> None:
    with pytest.raises(ArgumentError, match=r"^init must be 'random' or 'imagenet', not 'foo'\.$"):
        sqzoo.create_model("sq1", init="foo")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="features_only"):
        sqzoo.create_model("sq1", init="imagenet", features_only=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_trunk_that_is_not_there_or_not_the_trunk(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"No .* trunk at {tmp_path / 'none'}"):
        sqzoo.create_model(name, init="imagenet", trunk=tmp_path / "none")
    save_file({"features.0.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"other\.safetensors does not hold torchvision's"):
        sqzoo.create_model(name, init="imagenet", trunk=tmp_path / "other.safetensors")


def test_init_imagenet_is_refused_by_a_trunk_that_is_not_imagenets(trunks: Path) -> None:
    model = sqzoo.create_model("sq1")
    model.features.insert(0, torch.nn.Conv2d(3, 3, 1))
    with trunk_source(trunks), pytest.raises(ArgumentError, match=r"^init='imagenet' is for .* mine has its own .*\.$"):
        start_from_imagenet(model, "mine")


@pytest.mark.parametrize("name", NAMES)
def test_init_imagenet_loads_the_trunk_and_leaves_the_head(name: str, trunks: Path) -> None:
    source = load_file(trunks / f"{'alexnet' if name == 'alexnet_cifar' else 'squeezenet1_1'}_features.safetensors")
    random = seeded(sqzoo.create_model, name).state_dict()
    state = seeded(sqzoo.create_model, name, init="imagenet", trunk=trunks).state_dict()
    assert all(torch.equal(v, source[k] if k.startswith("features.") else random[k]) for k, v in state.items())
    grey = seeded(sqzoo.create_model, name, init="imagenet", trunk=trunks, in_chans=1).state_dict()
    torch.testing.assert_close(grey["features.0.weight"], source["features.0.weight"].sum(1, keepdim=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_is_the_papers(name: str) -> None:
    model = sqzoo.create_model(name, device="meta")
    data = timm.data.resolve_model_data_config(model)
    assert data["input_size"] == (3, 224, 224)
    assert data["crop_pct"] == 0.875  # 224 / 0.875 is the paper's 256
    assert data["interpolation"] == "bilinear"
    assert not model.pretrained_cfg["label_names"]
    for tag in sqzoo.list_models(f"{name}.*", pretrained=True):
        model = sqzoo.create_model(tag, device="meta")
        config = timm.get_pretrained_cfg(tag).to_dict()
        assert (config["num_classes"], config["label_names"][3]) == (10, "cat")
        assert (config["input_size"], config["crop_pct"]) == ((3, 32, 32), 1.0)
        _, _, height, width = model.forward_features(torch.empty(1, 3, 32, 32, device="meta")).shape
        assert config["pool_size"] == (height, width)


# --- the caller's own weights, by timm's ways ---


def save(model: Any, folder: Path) -> Tensors:
    """Save as timm does and return the tensors."""
    save_for_hf(model, str(folder), safe_serialization=True)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("squeezenet_cifar", {"pool2": "avg"}),
        ("sq1", {"mid": 64, "mid_relu": True, "num_classes": 4}),
        ("fire_next", {"width": 100, "add": True, "in_chans": 1}),
        ("fire_next", {"batch_norm": True}),
        ("alexnet_cifar", {}),
    ],
)
def test_saved_models_come_back(name: str, args: dict[str, Any], tmp_path: Path) -> None:
    model = seeded(sqzoo.create_model, name, **args).eval()
    tensors = save(model, tmp_path)
    back = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert same(back.state_dict(), tensors)
    assert not back.training
    x = torch.randn(2, args.get("in_chans", 3), 80, 80)
    assert torch.equal(back(x), model(x))


def test_a_changed_head_comes_back(tmp_path: Path) -> None:
    model = seeded(sqzoo.create_model, "squeezenet_cifar").eval()
    model.reset_classifier(5, "max")
    save(model, tmp_path)
    back, x = timm.create_model(f"local-dir:{tmp_path}", pretrained=True), torch.randn(2, 3, 80, 80)
    assert torch.equal(back(x), model(x))


@pytest.mark.parametrize("name", ["fire_next", "sq1", "squeezenet_cifar"])
def test_saved_models_take_another_head_and_channels(name: str, tmp_path: Path) -> None:
    model = seeded(sqzoo.create_model, name)
    tensors, head = save(model, tmp_path), f"{model.classifier_name}."
    for args in ({"num_classes": 3}, {"num_classes": 0}, {"num_classes": 3, "in_chans": 4}):
        back = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, **args)
        expected = dict(tensors)
        if "in_chans" in args:
            expected["features.0.weight"] = adapt_input_conv(4, tensors["features.0.weight"])
        kept = {k: v for k, v in back.state_dict().items() if not k.startswith(head)}
        assert same(kept, {k: v for k, v in expected.items() if not k.startswith(head)})
        assert back.num_classes == args["num_classes"]
    maps = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True).eval()
    x = torch.randn(1, 3, 80, 80)
    expected_maps = model.eval().forward_intermediates(x, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(maps(x), expected_maps, strict=True))


def _lacking(tensors: Tensors) -> None:
    del tensors["features.3.squeeze.weight"]


def _misnamed(tensors: Tensors) -> None:
    tensors["features.3.squeezed.weight"] = tensors.pop("features.3.squeeze.weight")


def _all_misnamed(tensors: Tensors) -> None:
    for key in [*tensors]:
        tensors[f"trunk.{key}"] = tensors.pop(key)


def _unexpected(tensors: Tensors) -> None:
    tensors["features.99.weight"] = torch.zeros(1)


def _misshapen(tensors: Tensors) -> None:
    tensors["features.3.squeeze.weight"] = torch.zeros(5, 5)


def _whole_numbers(tensors: Tensors) -> None:
    tensors["features.3.squeeze.weight"] = tensors["features.3.squeeze.weight"].to(torch.int8)


DAMAGES = [_lacking, _misnamed, _all_misnamed, _unexpected, _misshapen, _whole_numbers]


@pytest.mark.parametrize("name", ["fire_next", "sq1", "squeezenet_cifar"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_callers_file_is_compared_whole(name: str, damage: Callable[[Tensors], None], tmp_path: Path) -> None:
    tensors = save(seeded(sqzoo.create_model, name), tmp_path)
    damage(tensors)
    file = tmp_path / "model.safetensors"
    save_file(tensors, file)
    overlay = {"pretrained_cfg_overlay": {"file": str(file)}}
    # timm alone would load the last three without a word.
    for args in ({}, {"num_classes": 3}, {"num_classes": 0}, {"features_only": True}):
        for source, more in ((f"local-dir:{tmp_path}", {}), (name, overlay)):
            with pytest.raises(WeightsError, match=r"features\.(3|99)\."):
                timm.create_model(source, pretrained=True, **args, **more)


def test_a_file_with_another_number_of_classes_than_stated_is_an_error(tmp_path: Path) -> None:
    save(sqzoo.create_model("sq1", num_classes=7), tmp_path)
    overlay: dict[str, Any] = {"file": str(tmp_path / "model.safetensors")}
    with pytest.raises(WeightsError, match=r"7 classes in fc2\.weight.* states 10"):
        sqzoo.create_model("sq1", pretrained=True, pretrained_cfg_overlay=overlay)
    right = sqzoo.create_model("sq1", pretrained=True, pretrained_cfg_overlay=overlay | {"num_classes": 7})
    assert same(right.state_dict(), load_file(overlay["file"]))


# --- weights tags ---


@pytest.fixture
def ready(tag: str, request: pytest.FixtureRequest) -> str:
    """The tag, once the ImageNet trunk is there if its file holds the head alone."""
    if sqzoo.get_weights(tag).holds == "head":
        folder = request.getfixturevalue("trunks")
        request.getfixturevalue("monkeypatch").setenv("SQZOO_TRUNKS", str(folder))
    return tag


@pytest.mark.parametrize("tag", TAGS)
def test_embedded_files_are_the_manifests(tag: str) -> None:
    entry = sqzoo.get_weights(tag)
    tensors = read_verified(entry)
    assert {str(t.dtype).removeprefix("torch.") for t in tensors.values()} == {entry.dtype}
    assert any(k.startswith("features.") for k in tensors) == (entry.holds == "complete")
    with pytest.raises(WeightsError, match="is damaged"):
        read_verified(dataclasses.replace(entry, sha256="0" * 64))
    with pytest.raises(WeightsError, match="is damaged"):
        read_verified(dataclasses.replace(entry, size=entry.size + 1))
    with pytest.raises(WeightsError, match="Cannot read"):
        read_verified(dataclasses.replace(entry, file="none.safetensors"))


@pytest.mark.parametrize("tag", TAGS)
def test_tags_load_whole_and_ready_to_use(ready: str) -> None:
    entry = sqzoo.get_weights(ready)
    model = sqzoo.create_model(ready, pretrained=True)
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) == entry.params
    assert all(torch.equal(model.state_dict()[k].to(v.dtype), v) for k, v in read_verified(entry).items())
    assert same(model.state_dict(), timm.create_model(ready, pretrained=True).state_dict())
    config = model.pretrained_cfg
    for key in ("input_size", "crop_pct", "mean", "std", "interpolation", "num_classes"):
        assert config[key] == getattr(entry, key), key
    assert config["architecture"] == entry.architecture


@pytest.mark.parametrize("tag", TAGS)
def test_tags_adapt_and_keep_the_rest(ready: str) -> None:
    model = sqzoo.create_model(ready, pretrained=True)
    whole, head = model.state_dict(), f"{model.classifier_name}."
    for args in ({"num_classes": 3}, {"num_classes": 0}, {"in_chans": 1}):
        state = sqzoo.create_model(ready, pretrained=True, **args).state_dict()
        changed = {k for k in whole if k not in state or not torch.equal(state[k], whole[k])}
        assert state.keys() <= whole.keys()
        assert changed == ({"features.0.weight"} if "in_chans" in args else {f"{head}weight", f"{head}bias"})
    x = torch.randn(1, *sqzoo.get_weights(ready).input_size)
    with torch.inference_mode():
        expected = model.forward_intermediates(x, intermediates_only=True)
        maps = sqzoo.create_model(ready, pretrained=True, features_only=True)(model.upsample(x))
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))


@pytest.mark.parametrize("name", [n for n in NAMES if sqzoo.list_models(n, pretrained=True)])
def test_the_default_tag_is_the_manifests_first(name: str) -> None:
    assert timm.get_pretrained_cfg(name).tag == sqzoo.get_weights(name).tag.partition(".")[2]


@pytest.mark.parametrize("tag", TAGS)
def test_golden_logits(tag: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if sqzoo.get_weights(tag).holds == "head":
        monkeypatch.setenv("SQZOO_TRUNKS", str(request.getfixturevalue("trunks")))
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert tag in expected, "run: python tools/golden.py"
    assert max(expected[tag]) - min(expected[tag]) > 1, "a network that says nothing of an image cannot be wrong"
    torch.testing.assert_close(torch.tensor(golden_logits(tag)), torch.tensor(expected[tag]), rtol=0, atol=1e-4)


# --- imports ---


def test_importing_the_package_imports_no_trainer(tmp_path: Path) -> None:
    code = """
import sys, sqzoo
sqzoo.create_model
heavy = ("sqzoo.train", "sqzoo.export", "sqzoo.demo", "sqzoo.cli", "pyarrow", "matplotlib", "onnx",
         "onnxruntime", "datasets")
print([m for m in heavy if m in sys.modules])
"""
    assert run_python(code, tmp_path).strip() == "[]"


def test_importing_the_package_imports_nothing_that_takes_seconds(tmp_path: Path) -> None:
    code = 'import sys, sqzoo; print({"torch", "timm", "numpy", "PIL"} & sys.modules.keys(), "optimize" in dir(sqzoo))'
    assert run_python(code, tmp_path, sys.executable).strip() == "set() True"


@pytest.mark.parametrize(
    "imports", ["sqzoo, timm", "timm, sqzoo", "sqzoo.models, timm", "sqzoo, timm.models._registry"]
)
def test_importing_the_package_registers_with_timm(imports: str, tmp_path: Path) -> None:
    code = f"import {imports}; print(timm.list_models('sq1*'), type(timm.create_model('sq1')).__name__)"
    assert run_python(code, tmp_path).strip() == "['sq1'] Sq1"


def test_importing_the_package_draws_no_random_number(tmp_path: Path) -> None:
    code = """
import torch
before = torch.get_rng_state()
import sqzoo
print(torch.equal(before, torch.get_rng_state()))
"""
    assert run_python(code, tmp_path).strip() == "True"


# From the bottom: a part imports parts of lower levels only. docs/architecture.md shows the same list.
LEVELS = (
    *(("errors",), ("files",), ("environment", "uncertainty"), ("weights", "report"), ("cache", "models")),
    *(("registry",), ("images",), ("data",), ("predict", "evaluation"), ("explain",), ("doctor", "deploy")),
    *(("__init__",), ("hub",), ("train",), ("compress",), ("export", "demo", "own_images"), ("cli",), ("__main__",)),
)
RANKS = {part: rank for rank, level in enumerate(LEVELS) for part in level}


def imported_parts(file: Path) -> set[str]:
    """Return the parts of sqzoo (its modules and subpackages) that a file imports anywhere, functions included."""
    parts = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [f"{alias.name}." for alias in node.names]
        else:
            continue
        for package, part, *_ in (name.split(".") for name in names):
            if package == "sqzoo" and part != "__version__":
                known = (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").is_file()
                parts.add(part if part and known else "__init__")
    return parts


def test_imports_go_one_way() -> None:
    graph: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        graph.setdefault(part, set()).update(imported_parts(file) - {part})
    assert graph.keys() == RANKS.keys()
    assert graph["models"] >= {"errors", "weights"}
    for part, imported in graph.items():
        wrong = {i for i in imported if RANKS[i] >= RANKS[part]}
        assert not wrong, f"sqzoo.{part} must not import {wrong}"

"""Every door, one answer: a picture gets the same label and probabilities whichever library or runtime is asked."""

import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
import sklearn
import timm
import torch
import torch.nn as nn
from PIL import Image, ImageOps
from selenium.webdriver.common.by import By
from transformers import AutoImageProcessor, AutoModelForImageClassification, TimmWrapperImageProcessor, pipeline

import sqzoo
from sqzoo import hub
from sqzoo.data import cifar10
from sqzoo.demo import Page, serve
from sqzoo.deploy.onnx_graph import run_onnx
from sqzoo.errors import ArgumentError
from sqzoo.export import export, run_openvino
from sqzoo.images.reader import ImageReader
from sqzoo.predict import predict
from sqzoo.weights import CIFAR10_CLASSES
from tests.support import ROOT, javascript
from tests.support.browser import NoBrowser, chromium, open_page, text_of, until
from tests.support.serving import serving

TAG = "sq1.ft_cifar10"
NEAR = 0.02  # of a probability, between any two doors
SAME = 1e-3  # between doors that share timm's preparation
CIFAR10_IMAGES = 200
QUANTIZED = 0.05  # with weights in int8
PAGE_IMAGES = 30  # of CIFAR-10; each goes through the page by hand
# Those that come with the packages themselves; PNG, JPEG, colour and grey.
PHOTOS = [
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png"),
    *("coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png"),
    *("page.png", "retina.jpg", "rocket.jpg"),
]
# Browsers and transformers.js turn its colours into sRGB, as its profile asks; Pillow, and so every door in Python,
# takes the numbers as they are, and finds another class.
WITH_COLOUR_PROFILE = "rocket.jpg"

Door = Callable[[list[Path]], np.ndarray]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `sqzoo export --format transformers-js` writes: all that `save_pretrained` does, and more."""
    return export(model(), tmp_path_factory.mktemp("saved") / "sq1", "transformers-js")


def photos() -> list[Path]:
    packages = Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images"
    found = [packages[0] / name for name in PHOTOS] + [packages[1] / name for name in ("china.jpg", "flower.jpg")]
    return [*found, ROOT / "examples" / "cat.jpg"]


@pytest.fixture(scope="module", params=["photos", "cifar10"])
def pictures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    if request.param == "photos":
        return photos()
    images = cifar10("test", request.getfixturevalue("cifar10_root")).images[:CIFAR10_IMAGES]
    place = tmp_path_factory.mktemp("cifar10")
    files = [place / f"{i}.png" for i in range(len(images))]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image).save(file)
    return files


@pytest.fixture(scope="module")
def expected(pictures: list[Path]) -> np.ndarray:
    """What `sqzoo.predict` says of the opened pictures, (N, classes)."""
    return by_predict(model(), [opened(f) for f in pictures])


@cache
def model() -> nn.Module:
    return sqzoo.create_model(TAG, pretrained=True)


def opened(file: Path) -> Image.Image:
    with Image.open(file) as image:
        image.load()
    return image


def rgb(file: Path) -> Image.Image:
    return ImageOps.exif_transpose(opened(file)).convert("RGB")


def table(answers: list[dict[str, float]]) -> np.ndarray:
    """Return probabilities by label as an array (N, classes), in the order of the first answer's sorted labels."""
    return np.array([[answer[label] for label in sorted(answers[0])] for answer in answers])


def by_predict(net: nn.Module, images: list[Any]) -> np.ndarray:
    answers = predict(net, images, top_k=net.num_classes)
    return table([{p.label: p.probability for p in found} for found in answers])


def by_timm(net: Callable[[torch.Tensor], torch.Tensor], config: nn.Module, files: list[Path]) -> np.ndarray:
    """Through the README's own lines: timm's transform, then a network, or a runtime that takes what networks take."""
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=config))
    with torch.inference_mode():
        return torch.cat([net(transform(rgb(f))[None]) for f in files]).softmax(1).numpy()


def by_transformers(ask: Any, files: list[Path]) -> np.ndarray:
    return table([{a["label"]: a["score"] for a in ask(str(f), top_k=100)} for f in files])


def by_transformers_js(folder: Path, files: list[Path], dtype: str | None = None) -> np.ndarray:
    return table(javascript.classify(folder.name, files, folder=str(folder.parent), dtype=dtype))


SHARED = ("timm", "torch.hub", "local-dir, timm", "transformers", "onnx", "openvino")
OTHERS = ("file name", "array", "tensor", "local-dir", "onnx, pixels", "transformers.js", "transformers.js, quantized")


@cache
def door(name: str, folder: Path) -> Door:
    """Return the way from files to probabilities (N, classes)."""
    net, place = model(), folder.parent
    if name == "file name":
        return lambda files: by_predict(net, list(files))
    if name == "array":
        return lambda files: by_predict(net, [np.asarray(rgb(f)) for f in files])
    if name == "tensor":
        return lambda files: by_predict(net, [torch.from_numpy(np.array(rgb(f))).permute(2, 0, 1) for f in files])
    if name == "local-dir":
        return lambda files: by_predict(sqzoo.create_model(f"local-dir:{folder}"), [opened(f) for f in files])
    if name == "timm":
        other = timm.create_model(TAG, pretrained=True)
        return partial(by_timm, other, other)
    if name == "torch.hub":
        other = torch.hub.load(str(ROOT), "sq1", source="local", weights=TAG.partition(".")[2])
        return partial(by_timm, other, other)
    if name == "local-dir, timm":
        other = timm.create_model(f"local-dir:{folder}", pretrained=True)
        return partial(by_timm, other, other)
    if name == "transformers":
        return partial(by_transformers, pipeline("image-classification", model=str(folder)))
    if name == "onnx":
        return partial(by_timm, run_onnx(export(net, place / "sq1.onnx").read_bytes()), net)
    if name == "openvino":
        return partial(by_timm, run_openvino(export(net, place / "sq1.xml", "openvino")), net)
    if name == "onnx, pixels":
        run, read = run_onnx(export(net, place / "pixels.onnx", preprocessing=True).read_bytes()), ImageReader.of(net)
        return lambda files: torch.cat([run(torch.from_numpy(read(f)[None].copy())) for f in files]).numpy()
    return partial(by_transformers_js, folder, dtype="q8" if "quantized" in name else None)


def agree(found: np.ndarray, expected: np.ndarray, files: list[Path], tolerance: float) -> None:
    apart = np.abs(found - expected).max(1)
    worst = [f"{files[i].name} {apart[i]:.4f}" for i in apart.argsort()[::-1][:5]]
    assert apart.max() < tolerance, worst
    # A picture between two classes may fall to either side.
    clear = np.diff(np.sort(expected, 1)[:, -2:], axis=1)[:, 0] > 2 * tolerance
    assert (found.argmax(1) == expected.argmax(1))[clear].all()


@pytest.mark.parametrize("name", OTHERS)
def test_a_door_gives_what_predict_gives(name: str, folder: Path, pictures: list[Path], expected: np.ndarray) -> None:
    kept = [i for i, f in enumerate(pictures) if f.name != WITH_COLOUR_PROFILE or "transformers.js" not in name]
    files = [pictures[i] for i in kept]
    agree(door(name, folder)(files), expected[kept], files, QUANTIZED if "quantized" in name else NEAR)


def test_doors_with_timms_preparation_give_the_same(folder: Path, pictures: list[Path], expected: np.ndarray) -> None:
    first = door(SHARED[0], folder)(pictures)
    agree(first, expected, pictures, NEAR)
    for name in SHARED[1:]:
        agree(door(name, folder)(pictures), first, pictures, SAME)


@pytest.fixture(scope="module")
def page() -> Iterator[Callable[[list[Path]], np.ndarray]]:
    """The page of `sqzoo demo` in a real browser: from files to probabilities."""
    try:
        with serving(serve(Page([TAG]), port=0)) as address, chromium() as driver:
            open_page(driver, f"{address}/")
            read = """
                const bars = [...document.querySelectorAll("#bars button")];
                return bars.map((b) => [".name", ".percent"].map((part) => b.querySelector(part).textContent));
            """

            def ask(files: list[Path]) -> np.ndarray:
                answers = []
                for file in files:
                    driver.execute_script('document.getElementById("verdict").textContent = ""')
                    driver.find_element(By.ID, "file").send_keys(str(file))
                    until(driver, lambda d: text_of(d, "verdict"))
                    bars = driver.execute_script(read)
                    answers.append({label: float(percent.removesuffix(" %")) / 100 for label, percent in bars})
                return table(answers)

            yield ask
    except NoBrowser as e:
        pytest.fail(str(e), pytrace=False)


def test_the_page_gives_what_predict_gives(page: Door, pictures: list[Path], expected: np.ndarray) -> None:
    kept = [i for i, f in enumerate(pictures) if f.name != WITH_COLOUR_PROFILE][:PAGE_IMAGES]
    files = [pictures[i] for i in kept]
    agree(page(files), expected[kept], files, NEAR)


def test_transformers_js_in_a_browser(folder: Path, tmp_path: Path) -> None:
    """As a page has it: the package's file for browsers, WebAssembly, the browser's decoders and canvas."""
    files = [f for f in photos() if f.name in ("cat.jpg", "coins.png", "page.png", "retina.jpg")]
    for file in files:
        shutil.copy(file, tmp_path)
    for name, place in {"package": javascript.installed() / "node_modules", "models": folder.parent}.items():
        (tmp_path / name).symlink_to(place)
    (tmp_path / "page.html").write_text("<!DOCTYPE html><title>empty</title>")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    SimpleHTTPRequestHandler.extensions_map |= {".mjs": "text/javascript", ".wasm": "application/wasm"}
    script = """
        const [name, files, done] = arguments;
        (async () => {
            const { env, pipeline } = await import("/package/@huggingface/transformers/dist/transformers.min.js");
            [env.allowRemoteModels, env.allowLocalModels, env.localModelPath] = [false, true, "/models/"];
            env.backends.onnx.wasm.wasmPaths = "/package/onnxruntime-web/dist/";
            const classify = await pipeline("image-classification", name);
            const answers = [];
            for (const file of files) {
                const scores = await classify(file, { top_k: null });
                answers.push(Object.fromEntries(scores.map(({ label, score }) => [label, score])));
            }
            return answers;
        })().then(done, (error) => done(String(error.stack)));
    """
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as address, chromium() as driver:
        driver.get(f"{address}/page.html")
        found = driver.execute_async_script(script, folder.name, [f"/{f.name}" for f in files])
    assert isinstance(found, list), found
    agree(table(found), by_predict(model(), list(files)), files, NEAR)


@pytest.mark.slow
def test_a_model_of_other_classes(tmp_path: Path) -> None:
    """It sees pictures at its trunk's own size, with a margin cut off."""
    torch.manual_seed(0)
    labels = ["one", "two", "three"]  # in the order of the alphabet, as `table` has them, they are 0, 2, 1
    net = sqzoo.create_model("sq1", True, num_classes=3, pretrained_cfg_overlay={"label_names": labels})
    net.pretrained_cfg |= {"input_size": (3, 96, 96), "crop_pct": 0.875}
    with torch.no_grad():
        net.get_classifier().weight.mul_(10)  # or all pictures would be called the same
    folder = export(net, tmp_path / "mine", "transformers-js")
    files = [f for f in photos() if f.name != WITH_COLOUR_PROFILE]
    expected = by_predict(net, list(files))
    assert len({*expected.argmax(1)}) > 1 and np.ptp(expected, axis=0).max() > 0.2
    other = timm.create_model(f"local-dir:{folder}", pretrained=True)
    agree(by_timm(other, other, files)[:, [0, 2, 1]], expected, files, NEAR)
    agree(by_transformers(pipeline("image-classification", model=str(folder)), files), expected, files, NEAR)
    agree(by_transformers_js(folder, files), expected, files, NEAR)


def test_transformers_reads_from_a_folder(folder: Path, tmp_path: Path) -> None:
    """Both what `save_pretrained` writes and what has transformers.js' files, too."""
    plain = tmp_path / "plain"
    hub.save_pretrained(model(), plain)
    assert sorted(f.name for f in plain.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    for saved in (plain, folder):
        found, info = AutoModelForImageClassification.from_pretrained(saved, output_loading_info=True)
        assert not any(info.values()), info
        assert found.config.id2label == dict(enumerate(CIFAR10_CLASSES)) and not found.training
        own = found.timm_model.state_dict()
        assert all(torch.equal(own[k], v) for k, v in model().state_dict().items())
        assert isinstance(AutoImageProcessor.from_pretrained(saved), TimmWrapperImageProcessor)


def test_what_is_no_model_for_transformers_js_is_one_sentence(tmp_path: Path) -> None:
    for changes in ({"in_chans": 1}, {"num_classes": 0}):
        with pytest.raises(ArgumentError, match=r"transformers\.js takes models with 3 input channels and classes"):
            export(sqzoo.create_model("sq1", **changes), tmp_path / "m", "transformers-js")
    with pytest.raises(ArgumentError, match="leave preprocessing out"):
        export(model(), tmp_path / "m", "transformers-js", preprocessing=True)
    assert list(tmp_path.iterdir()) == []

"""The page in real Chromium: what it answers, that it takes any way in, and that nothing leaves it."""

import base64
import copy
import gzip
import hashlib
import http.client
import io
import json
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

import sqzoo
from sqzoo import hub
from sqzoo.demo import Page, engine, serve
from sqzoo.demo.models import WithMaps
from sqzoo.errors import ArgumentError, DataError
from sqzoo.images.reader import ImageReader
from sqzoo.predict import classify, predict
from sqzoo.weights import CIFAR10_CLASSES
from tests.support import CAT
from tests.support.browser import NoBrowser, chromium, open_page, requests, text_of, until
from tests.support.serving import serving

TOLERANCE = 0.01  # of a probability, page against Python: JPEG decoders differ by a level here and there
PAGE_BYTES = 12_000_000


@pytest.fixture(scope="module")
def page() -> Page:
    return Page()


@pytest.fixture(scope="module")
def url(page: Page) -> Iterator[str]:
    with serving(serve(page, port=0)) as address:
        yield f"{address}/"


@pytest.fixture(scope="module")
def driver() -> Iterator[Chrome]:
    try:
        with chromium() as started:
            yield started
    except NoBrowser as e:
        pytest.fail(str(e), pytrace=False)


@pytest.fixture
def opened(driver: Chrome, url: str) -> Chrome:
    open_page(driver, url)
    return driver


def _give(driver: Chrome, file: Path) -> None:
    driver.find_element(By.ID, "file").send_keys(str(file))


def _answer(driver: Chrome) -> dict[str, float]:
    """Probabilities that the page shows, by class."""
    until(driver, lambda d: text_of(d, "verdict"))
    body = """
        const read = (b, part) => b.querySelector(part).textContent;
        return [...document.querySelectorAll("#bars button")].map((b) => [read(b, ".name"), read(b, ".percent")]);
    """
    return {name: float(percent.removesuffix(" %")) / 100 for name, percent in driver.execute_script(body)}


def _forget(driver: Chrome) -> None:
    driver.execute_script("document.getElementById('verdict').textContent = ''")


def _script(driver: Chrome, body: str, *values: object) -> object:
    """Run an async function body in the page and return its value."""
    wrapped = (
        "const done = arguments[arguments.length - 1]; const given = [...arguments];"
        f"(async () => {{ {body} }})().then((v) => done([v, null]), (e) => done([null, String(e)]));"
    )
    value, error = driver.execute_async_script(wrapped, *values)
    assert error is None, error
    return value


def test_the_page_answers_as_python_does_with_every_network(opened: Chrome, page: Page) -> None:
    tags = [option.text for option in opened.find_elements(By.CSS_SELECTOR, "#tag option")]
    assert tags == page.models and len(tags) >= 3
    for tag in tags:
        Select(opened.find_element(By.ID, "tag")).select_by_visible_text(tag)
        _forget(opened)
        _give(opened, CAT)
        found = _answer(opened)
        expected = {p.label: p.probability for p in predict(sqzoo.create_model(tag, True), CAT, top_k=10)[0]}
        assert found.keys() == expected.keys()
        assert max(abs(found[label] - expected[label]) for label in found) < TOLERANCE, (tag, found, expected)
        assert text_of(opened, "verdict").startswith("cat, ")
        assert " ms for the network" in text_of(opened, "time")


def test_an_unsure_network_says_so(driver: Chrome, page: Page) -> None:
    """The same page where the first network's calibration says other things: all pictures lie below its threshold."""
    changed = copy.copy(page)
    changed.assets = dict(page.assets)
    entries = json.loads(page.assets["/models.json"].body)
    entries[0]["threshold"] = 1e9
    body = json.dumps(entries).encode()
    changed.assets["/models.json"] = replace(page.assets["/models.json"], body=body, etag='"other"')
    with serving(serve(changed, port=0)) as address:
        open_page(driver, f"{address}/")
        _give(driver, CAT)
        found = _answer(driver)
    assert text_of(driver, "verdict").startswith("None of the 10 classes, perhaps; most like cat, ")
    model = sqzoo.create_model("sq1", pretrained=True)
    model.ood_threshold = 1e9
    [answer] = classify(model, CAT, top_k=10)
    assert answer.abstain
    assert max(abs(found[p.label] - p.probability) for p in answer.predictions) < TOLERANCE


def test_nothing_is_asked_of_another_host_and_it_all_weighs_little(driver: Chrome, url: str, page: Page) -> None:
    driver.execute_cdp_cmd("Network.clearBrowserCache", {})
    requests(driver)
    open_page(driver, url)
    _give(driver, CAT)
    _answer(driver)
    first = requests(driver)
    assert 3_000_000 < sum(size for _, size in first) < PAGE_BYTES
    networks = {f"/{i}.onnx.gz" for i in range(len(page.models))}
    assert networks & {urlsplit(u).path for u, _ in first} == {"/0.onnx.gz"}  # the others only when they are chosen
    for tag in page.models[1:]:
        Select(driver.find_element(By.ID, "tag")).select_by_visible_text(tag)
        until(driver, lambda d, tag=tag: text_of(d, "state").startswith(f"{tag} is ready"))
    seen = first + requests(driver)
    assert {urlsplit(u).netloc for u, _ in seen} == {urlsplit(url).netloc}
    assert {urlsplit(u).path for u, _ in seen} >= {"/", "/ort-wasm-simd-threaded.wasm.gz"} | networks
    assert [e for e in driver.get_log("browser") if e["level"] == "SEVERE"] == []


def test_the_browser_refuses_to_send_anything_elsewhere(opened: Chrome) -> None:
    asked: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.send_header("Cross-Origin-Resource-Policy", "cross-origin")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)) as address:
        body = """
            const tried = [];
            await fetch(given[0], { method: "POST", body: "picture" }).catch(() => tried.push("fetch"));
            await new Promise((done) => { const i = new Image(); i.onerror = () => { tried.push("image"); done(); };
                                          i.onload = done; i.src = given[0]; });
            await new Promise((done) => { const s = document.createElement("script"); s.onload = done;
                s.onerror = () => { tried.push("script"); done(); }; s.src = given[0]; document.head.append(s); });
            try { new WebSocket(given[0].replace("http", "ws")); } catch { tried.push("socket"); }
            navigator.sendBeacon(given[0], "picture");
            return tried;
        """
        refused = _script(opened, body, f"{address}/")
    assert asked == []
    assert {"fetch", "image", "script"} <= set(refused)  # type: ignore[call-overload]
    opened.get_log("browser")  # it complains of each


def test_the_server_takes_nothing_in(url: str) -> None:
    for method in ("POST", "PUT", "DELETE"):
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        connection.request(method, "/", b"picture")
        assert connection.getresponse().status == 501
        connection.close()


def test_files_are_what_they_are_called_and_nothing_else_is_served(url: str, page: Page) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc)

    def ask(path: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        connection.request("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer, answer.read()

    answer, body = ask("/ort-wasm-simd-threaded.wasm.gz")
    assert hashlib.sha256(gzip.decompress(body)).hexdigest() == engine.FILES["ort-wasm-simd-threaded.wasm"]
    assert answer.headers["Content-Type"] == "application/gzip" and not answer.headers["Content-Encoding"]
    answer, body = ask("/ort-wasm-simd-threaded.wasm.gz", If_None_Match=answer.headers["ETag"])
    assert answer.status == 304 and body == b""
    for path in ("/../page.py", "/%2e%2e/page.py", "/static/app.js", "//etc/passwd", "/page.py"):
        assert ask(path)[0].status == 404
    for path in page.assets:
        policy = ask(path)[0].headers["Content-Security-Policy"]
        assert (
            policy.startswith("default-src 'none'") and "connect-src 'self'" in policy and "unsafe-inline" not in policy
        )
    connection.close()


def test_wrong_files_get_one_clear_sentence_and_the_page_goes_on(opened: Chrome, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a picture", encoding="utf-8")
    (tmp_path / "cut.jpg").write_bytes(CAT.read_bytes()[:200])
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("notes.txt", "cut.jpg", "empty.png"):
        _give(opened, tmp_path / name)
        until(opened, lambda d, name=name: text_of(d, "problem").startswith(name))
        sentence = text_of(opened, "problem")
        assert sentence == f"{name} is no picture that this browser can read; choose a JPEG, PNG or WebP file."
        assert not opened.find_element(By.ID, "answer").is_displayed()
    _give(opened, CAT)
    assert _answer(opened)["cat"] > 0.5
    assert text_of(opened, "problem") == ""


def test_odd_pictures_are_seen_as_python_sees_them(opened: Chrome, tmp_path: Path) -> None:
    cat = Image.open(CAT)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    cat.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    cat.resize((20, 20)).save(tmp_path / "tiny.png")
    cat.convert("L").save(tmp_path / "grey.png")
    cat.resize((3000, 2000), Image.Resampling.BICUBIC).save(tmp_path / "big.png")
    cat.quantize(64).save(tmp_path / "palette.gif")
    model = sqzoo.create_model("sq1", pretrained=True)
    for name, tolerance in {
        "turned.jpg": 0.01,
        "tiny.png": 0.01,
        "grey.png": 0.01,
        "big.png": 0.02,
        "palette.gif": 0.01,
    }.items():
        _forget(opened)
        _give(opened, tmp_path / name)
        found = _answer(opened)
        expected = {p.label: p.probability for p in predict(model, tmp_path / name, top_k=10)[0]}
        assert max(abs(found[k] - expected[k]) for k in found) < tolerance, (name, found, expected)


@pytest.mark.parametrize(
    ("width", "height", "side", "crop_pct"),
    [(32, 32, 32, 1), (33, 33, 32, 1), (300, 300, 32, 1), (7, 7, 32, 1), (301, 200, 32, 1), (211, 97, 48, 0.875)],
)
def test_the_page_prepares_as_timm_does(opened: Chrome, width: int, height: int, side: int, crop_pct: float) -> None:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 4), dtype=np.uint8)
    body = """
        const { resized } = await import("/picture.js");
        return [...resized(Uint8ClampedArray.from(given[0]), ...given.slice(1, 5))];
    """
    given = [pixels.ravel().tolist(), width, height, int(side / crop_pct), side]
    found = np.array(_script(opened, body, *given)).reshape(side, side, 3)
    expected = ImageReader(side, crop_pct)(pixels[..., :3].copy()).astype(int)
    assert np.abs(found - expected).max() <= 1  # Pillow's weights are fixed-point numbers
    assert (found != expected).mean() < 0.03


def test_drop_paste_and_camera(opened: Chrome) -> None:
    body = """
        const data = new DataTransfer();
        const bytes = Uint8Array.from(atob(given[0]), (c) => c.charCodeAt(0));
        data.items.add(new File([bytes], "dropped.jpg", { type: "image/jpeg" }));
        const text = new DataTransfer();
        text.setData("text/uri-list", "https://example.org/cat.jpg");
        const kinds = { drop: new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }),
                        link: new DragEvent("drop", { dataTransfer: text, bubbles: true, cancelable: true }),
                        paste: new ClipboardEvent("paste", { clipboardData: data, bubbles: true }) };
        document.body.dispatchEvent(kinds[given[1]]);
        return kinds[given[1]].defaultPrevented;
    """
    prevented = _script(opened, body, _base64_cat(), "drop")
    assert prevented  # or the browser would leave the page and open the file
    assert _answer(opened)["cat"] > 0.5
    _forget(opened)
    _script(opened, body, _base64_cat(), "paste")
    assert _answer(opened)["cat"] > 0.5
    _script(opened, body, _base64_cat(), "link")
    assert text_of(opened, "problem").startswith("That was a link")
    _forget(opened)
    camera = opened.find_element(By.ID, "camera")
    camera.click()
    assert len(_answer(opened)) == 10
    assert camera.get_attribute("aria-pressed") == "true" and camera.text == "Stop the camera"
    camera.click()
    assert camera.get_attribute("aria-pressed") == "false"


def _base64_cat() -> str:

    return base64.b64encode(CAT.read_bytes()).decode()


def test_samples_are_a_click_away_and_their_answers_stay(opened: Chrome) -> None:
    samples = opened.find_elements(By.CSS_SELECTOR, "#samples button")
    verdicts = []
    for button in samples:
        _forget(opened)
        button.click()
        _answer(opened)
        verdicts.append(text_of(opened, "verdict"))
    assert [v.startswith("None of the 10") for v in verdicts] == [False, True, True] and verdicts[0].startswith("cat")
    kept = opened.find_elements(By.CSS_SELECTOR, "#answers button")
    assert [button.text for button in kept] == ["cat", "none?", "none?"]
    kept[0].click()
    assert text_of(opened, "verdict") == verdicts[0] and kept[0].get_attribute("aria-pressed") == "true"
    assert text_of(opened, "known") == f"{', '.join(CIFAR10_CLASSES)}."


def test_several_files_are_answered_one_after_another(opened: Chrome, tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for i, file in enumerate(files):
        Image.new("RGB", (40, 40), (80 * i, 0, 0)).save(file)
    opened.find_element(By.ID, "file").send_keys("\n".join(map(str, files)))
    until(opened, lambda d: len(d.find_elements(By.CSS_SELECTOR, "#answers button")) == 3)


def test_the_written_page_runs_from_any_static_host(driver: Chrome, page: Page, tmp_path: Path) -> None:
    size = Page(["sq1.tiny_cifar10"]).write(tmp_path / "site")
    assert size < PAGE_BYTES and page.write(tmp_path / "site") < PAGE_BYTES  # the second time over its own files
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "index.html").write_text("mine")
    with pytest.raises(ArgumentError, match=r"index\.html"):
        page.write(tmp_path / "else")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = partial(Quiet, directory=str(tmp_path / "site"))
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as address:
        open_page(driver, f"{address}/")
        driver.find_element(By.CSS_SELECTOR, "#samples button").click()
        _answer(driver)
        assert text_of(driver, "verdict").startswith("cat")
    driver.get_log("browser")


def test_keys_alone_reach_everything_and_focus_is_seen(opened: Chrome) -> None:
    _give(opened, CAT)
    _answer(opened)
    opened.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
    reached = []
    for _ in range(17):
        ActionChains(opened).send_keys(Keys.TAB).perform()
        focused = opened.switch_to.active_element
        value = focused.get_attribute("value") or ""
        reached.append(focused.get_attribute("id") or (value if ".jpg" in value else focused.text.split("\n")[0]))
        ring = focused if focused.get_attribute("id") != "file" else opened.find_element(By.ID, "drop")
        assert ring.value_of_css_property("outline-style") == "solid"
        assert ring.value_of_css_property("outline-width") == "3px"
    assert reached[:7] == ["file", "cat.jpg", "rocket.jpg", "astronaut.jpg", "camera", "tag", "show-heat"]
    assert set(reached[7:]) == set(CIFAR10_CLASSES)
    ActionChains(opened).send_keys(Keys.ENTER).perform()  # on the last class
    pressed = opened.find_elements(By.CSS_SELECTOR, "#bars button[aria-pressed='true']")
    assert [b.text.split("\n")[0] for b in pressed] == [reached[-1]] == [text_of(opened, "heat-class")]


def test_a_screen_reader_has_names_roles_and_live_answers(opened: Chrome) -> None:
    _give(opened, CAT)
    _answer(opened)
    tree = opened.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    nodes = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in tree if not n.get("ignored")]
    for role in ("button", "combobox", "checkbox", "image", "heading"):
        named = [name for kind, name in nodes if kind == role]
        assert named and all(named), (role, named)
    assert ("combobox", "Network") in nodes
    assert any(kind == "button" and name.startswith("cat") and name.endswith("%") for kind, name in nodes)
    assert opened.find_element(By.ID, "spoken").get_attribute("role") == "status"
    assert text_of(opened, "spoken") == text_of(opened, "verdict") != ""
    assert opened.find_element(By.ID, "problem").get_attribute("role") == "alert"
    assert opened.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(opened: Chrome, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    _give(opened, CAT)
    _answer(opened)
    ground = _colour(opened, "body", "background-color")
    panel = _colour(opened, "#answer", "background-color")
    assert (ground.mean() > 0.5) == (scheme == "light")
    for element in ("h1", "header p", "#drop strong", "#verdict", "#time", "#bars .percent", "#camera", "#state"):
        behind = ground if "h" in element[:2] else panel
        assert _contrast(_colour(opened, element, "color"), behind) >= 4.5, element  # WCAG 2.2, 1.4.3
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def _colour(driver: Chrome, selector: str, kind: str) -> np.ndarray:
    value = driver.find_element(By.CSS_SELECTOR, selector).value_of_css_property(kind)
    return np.array([float(v) for v in value.partition("(")[2].rstrip(")").split(",")[:3]]) / 255


def _contrast(a: np.ndarray, b: np.ndarray) -> float:
    def luminance(c: np.ndarray) -> float:
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_a_phone_shows_all_of_it_without_scrolling_sideways(opened: Chrome) -> None:
    phone = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        _give(opened, CAT)
        _answer(opened)
        assert opened.execute_script("return document.documentElement.scrollWidth") <= 360
        small = "return [...document.querySelectorAll('button, select, #drop')].map((e) => e.offsetHeight)"
        assert min(opened.execute_script(small)) >= 24  # WCAG 2.2, 2.5.8
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_heat_map_lies_where_the_evidence_is(opened: Chrome, tmp_path: Path) -> None:
    """The cat alone in a corner of a grey square: the map's weight is in that corner, and the checkbox hides it."""
    corner = Image.new("RGB", (400, 400), (128, 128, 128))
    corner.paste(Image.open(CAT).crop((75, 0, 375, 300)).resize((200, 200)), (200, 200))
    corner.save(tmp_path / "corner.png")
    _give(opened, tmp_path / "corner.png")
    _answer(opened)
    body = """
        [...document.querySelectorAll("#bars button")].find((b) => b.textContent.startsWith("cat")).click();
        const heat = document.getElementById("heat");
        const alpha = heat.getContext("2d").getImageData(0, 0, 448, 448).data.filter((_, i) => i % 4 === 3);
        let [inside, all] = [0, 0];
        alpha.forEach((a, i) => { all += a; if (i % 448 >= 224 && i >= 224 * 448) inside += a; });
        return [inside, all];
    """
    inside, all_of_it = _script(opened, body)  # type: ignore[misc]
    assert all_of_it > 0 and inside / all_of_it > 0.5
    opened.find_element(By.ID, "show-heat").click()
    assert not opened.find_element(By.ID, "heat").is_displayed()


@pytest.mark.parametrize("name", ["sq1", "squeezenet_cifar", "fire_next"])
def test_maps_average_to_the_logits(name: str) -> None:
    net = sqzoo.create_model(name, pretrained=True)
    picture = torch.from_numpy(np.array(Image.open(CAT).resize((32, 32), Image.Resampling.BILINEAR)))[None]
    graph = WithMaps(net).eval()
    with torch.inference_mode():
        found, maps = graph(picture)
        logits = net(graph.pixels.prepare(picture))
    assert maps.shape == (1, 10, 9, 9)
    assert torch.allclose(maps.mean((2, 3)), logits, atol=1e-4)
    assert torch.allclose(found, logits, atol=1e-5)


def test_the_engine_is_fetched_once_and_again_only_where_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = _pin_a_small_package(tmp_path, monkeypatch)
    with _Registry(_package(files)) as registry:
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", registry.url)
        for _ in range(2):
            assert {n: gzip.decompress(p) for n, p in engine.runtime_files().items()} == files
        assert registry.asked == [f"/onnxruntime-web/-/onnxruntime-web-{engine.VERSION}.tgz"]
        file = next((tmp_path / "demo").glob("*.wasm.gz"))
        for damage in (gzip.compress(b"something else"), b"", file.read_bytes()[:-3]):
            file.write_bytes(damage)
            assert {n: gzip.decompress(p) for n, p in engine.runtime_files().items()} == files
        assert len(registry.asked) == 4
    engine.runtime_files()  # the registry is gone


@pytest.mark.parametrize("fault", ["changed", "cut", "longer", "absent"])
def test_a_bad_download_keeps_nothing(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = _package(_pin_a_small_package(tmp_path, monkeypatch))
    sent = {"changed": package[:-1] + b"?", "cut": package[:-9], "longer": package + b"?", "absent": None}[fault]
    with _Registry(sent) as registry:
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", registry.url)
        with pytest.raises(DataError, match="npm" if fault == "absent" else "integrity") as error:
            engine.runtime_files()
    assert registry.url in str(error.value) and str(error.value).count(". ") == 0
    assert list(tmp_path.rglob("*.gz")) == []


class _Registry:
    """An npm registry on loopback that has one package, or none."""

    def __init__(self, package: bytes | None) -> None:
        asked = self.asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(200 if package is not None else 404)
                self.send_header("Content-Length", str(len(package or b"")))
                self.end_headers()
                self.wfile.write(package or b"")

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._serving = serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler))

    def __enter__(self) -> "_Registry":
        self.url = self._serving.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._serving.__exit__(*error)  # type: ignore[arg-type]


def _package(files: dict[str, bytes]) -> bytes:

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def _pin_a_small_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    files = {name: name.encode() * 1000 for name in engine.FILES}
    package = _package(files)
    monkeypatch.setattr(engine, "FILES", {name: hashlib.sha256(whole).hexdigest() for name, whole in files.items()})
    monkeypatch.setattr(engine, "SIZE", len(package))
    digest = base64.b64encode(hashlib.sha512(package).digest()).decode()
    monkeypatch.setattr(engine, "INTEGRITY", f"sha512-{digest}")
    monkeypatch.setenv("SQZOO_CACHE", str(folder))
    return files


def test_a_port_in_use_and_a_model_without_maps_are_one_sentence(url: str, page: Page) -> None:
    with pytest.raises(ArgumentError, match="choose another with --port"):
        serve(page, port=urlsplit(url).port or 0)
    with pytest.raises(ArgumentError, match="--port"):
        serve(page, port=70000)


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("SQZOO_CACHE", str(tmp_path / "file"))
    with pytest.raises(ArgumentError, match="SQZOO_CACHE"):
        engine.runtime_files()


def test_a_model_of_ones_own_with_other_classes(tmp_path: Path) -> None:
    net = sqzoo.create_model("sq1", init="random", num_classes=3)
    hub.save_pretrained(net, tmp_path / "mine")
    entries = json.loads(Page([f"local-dir:{tmp_path / 'mine'}"]).assets["/models.json"].body)
    assert entries[0]["tag"] == "mine"  # without the path: the page may be published
    assert entries[0]["labels"] == ["0", "1", "2"]
    # No CIFAR-10 classes, so the picture is not shrunk to 32 pixels.
    assert (entries[0]["resize"], entries[0]["pixels"]) == (256, 224)


def test_the_command_serves_the_page_until_it_is_stopped() -> None:
    words = [sys.executable, "-m", "sqzoo", "demo", "sq1", "--port", "0"]
    # What runs in a shell's background ignores Ctrl-C, and so would what it starts.
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeds
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            found = re.search(r"http://(127\.0\.0\.1:\d+)/ with sq1\.ft_cifar10;", line)
            assert found, line
            connection = http.client.HTTPConnection(found[1])
            connection.request("GET", "/")
            assert b"What is in the picture?" in connection.getresponse().read()
            connection.close()
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            finally:
                process.kill()  # or leaving the block would wait for it for ever
        assert process.returncode == 0

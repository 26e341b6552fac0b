"""A real Chromium without a window, for the page's tests, its benchmark and the documentation's screenshots."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.support.ui import WebDriverWait


class NoBrowser(RuntimeError):
    """Chromium or its driver is not installed."""


@contextmanager
def chromium(width: int = 1200, height: int = 1000) -> Iterator[Chrome]:
    """Start Chromium with a fake camera and a record of its requests; end it on leaving."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    for name, found in programs.items():
        if found is None:
            raise NoBrowser(f"{name} is not installed; run: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = str(programs["chromium"])
    words = [
        "--headless=new",
        f"--window-size={width},{height}",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
    ]
    words += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--force-color-profile=srgb"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        words.append("--no-sandbox")  # Chromium's sandbox refuses to be root's
    for word in words:
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = Chrome(options, ChromeService(str(programs["chromedriver"])))
    try:
        driver.set_script_timeout(60)
        yield driver
    finally:
        driver.quit()


def text_of(driver: Chrome, element: str) -> str:
    """Return an element's text by its id, also where it is scrolled away."""
    return str(driver.execute_script("return document.getElementById(arguments[0]).textContent", element))


def until(driver: Chrome, condition: Any, seconds: float = 60) -> Any:
    """Wait for a condition, a function of the driver, and return what it gave; raises a timeout after `seconds`."""
    return WebDriverWait(driver, seconds, poll_frequency=0.05).until(condition)


def open_page(driver: Chrome, url: str) -> None:
    """Open the page and wait until its network is ready."""
    driver.get(url)
    until(driver, lambda d: "is ready" in text_of(d, "state") or text_of(d, "problem"))
    assert "is ready" in text_of(driver, "state"), text_of(driver, "problem")


def requests(driver: Chrome) -> list[tuple[str, float]]:
    """Return what went over the wire since the last call: (URL, bytes received, packed as they were sent)."""
    urls: dict[str, str] = {}
    found = []
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        about = message["params"]
        if message["method"] == "Network.requestWillBeSent":
            urls[about["requestId"]] = about["request"]["url"]
        if message["method"] == "Network.loadingFinished" and about["requestId"] in urls:
            found.append((urls.pop(about["requestId"]), about["encodedDataLength"]))
    found += [(url, 0.0) for url in urls.values()]
    return [(url, size) for url, size in found if urlsplit(url).scheme not in ("blob", "data")]


def milliseconds(driver: Chrome) -> dict[str, list[float]]:
    """Return the page's own measures (performance.measure): "decode", "network", and "answer", all after decoding."""
    body = "return performance.getEntriesByType('measure').map((e) => [e.name, e.duration])"
    found: dict[str, list[float]] = {}
    for name, duration in driver.execute_script(body):
        found.setdefault(name, []).append(duration)
    return found

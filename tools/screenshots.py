"""The pictures in docs/images: the page in headless Chromium, the terminal by Rich.

    python tools/screenshots.py [--terminals]

Needs Chromium (apt-get install chromium chromium-driver), but for --terminals, which makes those pictures alone.
"""

import base64
import os
import re
import subprocess
import sys
import threading
from typing import Any

from rich.console import Console
from rich.text import Text

from benchmarks import ROOT

CAT = ROOT / "examples" / "cat.jpg"
IMAGES = ROOT / "docs" / "images"
# file: (width, height, colours)
PAGES = {"page-light": (1100, 840, "light"), "page-dark": (1100, 840, "dark"), "page-phone": (390, 1250, "light")}
# file: the words after `sqzoo`, in the repository's root
TERMINALS = {
    "predict": ["predict", "examples/cat.jpg"],
    "list": ["list"],
    "help": ["--help"],
}


def pages() -> None:
    """Write the pictures of the page."""
    from sqzoo.demo import Page, serve
    from tests.support.browser import chromium

    with serve(Page(), port=0) as server, chromium() as driver:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, (width, height, colours) in PAGES.items():
            (IMAGES / f"{name}.webp").write_bytes(_page(driver, server.server_port, width, height, colours))
        server.shutdown()


def terminals() -> None:
    """Write the pictures of the terminal."""
    for name, words in TERMINALS.items():
        (IMAGES / f"{name}.svg").write_text(_terminal(words), encoding="utf-8")


def _page(driver: Any, port: int, width: int, height: int, colours: str) -> bytes:
    from selenium.webdriver.common.by import By

    from tests.support.browser import open_page, text_of, until

    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": colours}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    open_page(driver, f"http://127.0.0.1:{port}/")
    driver.find_element(By.ID, "file").send_keys(str(CAT))
    until(driver, lambda d: text_of(d, "verdict").startswith("cat"))
    return base64.b64decode(driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "webp", "quality": 85})["data"])


def _terminal(words: list[str]) -> str:
    environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": "90", "TERM": "xterm-256color"}
    done = subprocess.run(
        [sys.executable, "-m", "sqzoo", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    line = f"sqzoo {' '.join(words)}"
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=90, file=nowhere, force_terminal=True)
        console.print(Text(f"$ {line}", style="bold"))
        console.print(Text.from_ansi(done.stdout))
        # Rich names fonts of another host; the reader's own will do.
        return re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title=line), flags=re.DOTALL)


if __name__ == "__main__":
    terminals()
    if "--terminals" not in sys.argv:
        pages()

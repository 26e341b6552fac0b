"""The page of `sqzoo demo` in headless Chromium: milliseconds a photo, and bytes over the wire.

    python benchmarks/speed/page.py [--runs 200]

Classifies examples/cat.jpg again and again, by each network that the page offers; `answer` is from the decoded picture
to the drawn page, `network` the network alone. The bytes are counted as they were sent, packed, with their headers.
Writes results/speed/page.json. Needs Chromium: apt-get install chromium chromium-driver.
"""

import argparse
import threading
import time
from statistics import quantiles
from typing import Any
from urllib.parse import urlsplit

from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from benchmarks import RESULTS, ROOT
from benchmarks.record import write_record
from sqzoo.demo import Page, engine, serve
from sqzoo.environment import environment

RESULT = RESULTS / "speed" / "page.json"

from tests.support.browser import chromium, milliseconds, open_page, requests, until  # noqa: E402


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="photos for each network (default: 200)")
    runs = parser.parse_args().runs
    page = Page()
    with serve(page, port=0) as server, chromium() as driver:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        began = time.perf_counter()
        open_page(driver, f"http://127.0.0.1:{server.server_port}/")
        ready = time.perf_counter() - began
        loaded = requests(driver)
        tags = {tag: _photos(driver, tag, runs) for tag in page.models}
        version = driver.capabilities["browserVersion"]
        server.shutdown()
        rest = requests(driver)
    record = {
        "environment": environment() | {"chromium": version, "onnxruntime-web": engine.VERSION, "page_threads": 1},
        "photo": "examples/cat.jpg",
        "runs": runs,
        "seconds_to_ready": round(ready, 3),
        "bytes_to_first_answer": int(sum(size for _, size in loaded)),
        "bytes_with_all_networks": int(sum(size for _, size in loaded + rest)),
        "bytes": {urlsplit(url).path: int(size) for url, size in loaded + rest},
        "milliseconds": tags,
    }
    write_record(RESULT, record, tags)
    print(render(record))


def _photos(driver: Any, tag: str, runs: int) -> dict[str, dict[str, float]]:
    Select(driver.find_element(By.ID, "tag")).select_by_visible_text(tag)
    until(driver, lambda d: d.find_element(By.ID, "state").text.startswith(f"{tag} is ready"))
    driver.execute_script("performance.clearMeasures()")
    for i in range(runs + 1):  # the first is not counted: code is compiled as it first runs
        driver.find_element(By.ID, "file").send_keys(str(ROOT / "examples" / "cat.jpg"))
        until(driver, lambda d, i=i: len(milliseconds(d).get("answer", ())) > i)
    found = milliseconds(driver)
    return {name: _spread(found[name][1 : runs + 1]) for name in ("decode", "network", "answer")}


def _spread(values: list[float]) -> dict[str, float]:
    parts = quantiles(values, n=100, method="inclusive")
    return {"p50": round(parts[49], 2), "p90": round(parts[89], 2), "p99": round(parts[98], 2)}


def render(record: dict[str, Any]) -> str:
    """Return the record as a Markdown table."""
    lines = [
        "| network | answer, ms: p50 · p90 · p99 | network alone, p50 | reading the file, p50 |",
        "|---|---|---|---|",
    ]
    for tag, found in record["milliseconds"].items():
        answer = found["answer"]
        spread = f"**{answer['p50']:.1f}** · {answer['p90']:.1f} · {answer['p99']:.1f}"
        lines.append(f"| `{tag}` | {spread} | {found['network']['p50']:.1f} | {found['decode']['p50']:.1f} |")
    first, all_of_it = record["bytes_to_first_answer"] / 1e6, record["bytes_with_all_networks"] / 1e6
    about = record["environment"]
    lines.append("")
    lines.append(
        f"Over the wire: {first:.2f} MB to the first answer, {all_of_it:.2f} MB with all networks; ready in "
        f"{record['seconds_to_ready']:.1f} s. Chromium {about['chromium']}, one thread, {about['cpu']}, "
        f"{record['runs']} photos each."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

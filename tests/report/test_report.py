"""The HTML report: its figures are the logits', nothing outside it is needed, and names cannot break out of it."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from sqzoo.errors import ArgumentError
from sqzoo.report.page import calibration, confusion, report

CLASSES = ["ant", "<script>alert(1)</script>", "cow & calf"]
LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 2, 2])
PROBABILITIES = torch.tensor(
    [
        [0.8, 0.1, 0.1],
        [0.7, 0.2, 0.1],
        [0.2, 0.7, 0.1],
        [0.9, 0.05, 0.05],
        [0.1, 0.1, 0.8],
        [0.0, 0.4, 0.6],
        [0.1, 0.6, 0.3],
        [0.2, 0.2, 0.6],
    ]
)
LOG = [
    {"epoch": 1, "side": 64, "train_loss": 0.9, "held_out": {"loss": 0.8, "top1": 70.0, "images": 8}, "time": "now"},
    {"epoch": 2, "side": 64, "train_loss": 0.5, "held_out": {"loss": 0.6, "top1": 80.0, "images": 8}, "time": "now"},
]


class Page(HTMLParser):
    """Collects tags, their addresses and the text by tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("br", "img", "meta"):  # those have no end
            self.open.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "data", "action")]

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, text: str) -> None:
        self.text.setdefault(self.open[-1] if self.open else "", []).append(text)


def picture(i: int) -> Image.Image:
    return Image.new("RGB", (32, 24), (10 * i, 0, 255))


def test_the_page_says_what_the_logits_say() -> None:
    names = [f"a/{i}.png" for i in range(8)]
    text = report("mine", CLASSES, LABELS, PROBABILITIES.log(), image=picture, names=names, log=LOG, facts={"k": "v<"})
    page = Page(text)
    assert page.text["strong"][0] == "75.00 %"
    cells = [c.strip() for c in page.text["td"]]
    assert cells[:6] == ["v<", "ant", "2", "100.0", "66.7", "<script>alert(1)</script>"]
    # 3 and 6 are wrong, the surer first; "learning curves" hold both losses and the accuracy.
    assert [t for t in page.text["li"] if t.startswith("a/")] == ["a/3.png", "a/6.png"]
    thumbnails = [Image.open(io.BytesIO(base64.b64decode(a.partition(",")[2]))) for a in page.addresses]
    assert [(t.size, t.getpixel((5, 5))) for t in thumbnails] == [((32, 24), (10 * i, 0, 255)) for i in (3, 6)]
    assert page.tags.count("svg") == 3
    assert {"train", "held out"} <= set(page.text["text"])


def test_nothing_outside_is_needed_and_names_stay_text() -> None:
    page = Page(report("<b>t</b>", CLASSES, LABELS, PROBABILITIES.log(), image=picture))
    assert not {"script", "link", "iframe", "b"} & set(page.tags)
    assert all(a.startswith("data:image/") for a in page.addresses)
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", report("t", CLASSES, LABELS, PROBABILITIES.log()))


def test_many_classes_one_epoch_and_no_mistake() -> None:
    for classes in (1, 2, 40, 150):
        labels = torch.arange(classes)
        text = report("t", [f"class {i}" for i in range(classes)], labels, 9.0 * torch.eye(classes), log=LOG[:1])
        assert "None." in text
        assert Page(text).text["strong"][0] == "100.00 %"


def test_calibration_and_confusion_are_counts_of_the_images() -> None:
    logits = PROBABILITIES.double().log()
    assert confusion(logits, LABELS) == [[2, 0, 0], [1, 1, 0], [0, 1, 3]]
    found = calibration(logits, LABELS, bins=1)
    assert found["bins"] == [[8, pytest.approx(71.25, abs=1e-3), 75.0]]
    assert found["error"] == pytest.approx(3.75, abs=1e-3)


def test_shapes_that_do_not_fit_are_refused() -> None:
    for labels, logits in (
        (LABELS, torch.zeros(8, 4)),
        (LABELS[:3], torch.zeros(8, 3)),
        (LABELS[:0], torch.zeros(0, 3)),
    ):
        with pytest.raises(ArgumentError, match=r"logits of shape \(images, classes\)"):
            report("t", CLASSES, labels, logits)

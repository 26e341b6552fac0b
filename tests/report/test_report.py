"""The HTML report: its figures are the logits', nothing outside it is needed, and names cannot break out of it."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from sqzoo.errors import ArgumentError
from sqzoo.report.page import calibration, confusion, report
from sqzoo.report.plots import confusion_and_calibration, curves

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
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", report("t", CLASSES, LABELS, PROBABILITIES.log()))


def test_many_classes_one_epoch_and_no_mistake() -> None:
    for classes in (1, 2, 40, 150):
        labels = torch.arange(classes)
        text = report("t", [f"class {i}" for i in range(classes)], labels, 9.0 * torch.eye(classes), log=LOG[:1])
        assert "None." in text
        assert Page(text).text["strong"][0] == "100.00 %"


def texts(svg: str) -> dict[str, tuple[float, float]]:
    """Return where the texts of a plot stand; of those that stand in it twice, the last."""
    found = re.findall(r'<text [^>]*x="([-\d.]+)" y="([-\d.]+)"[^>]*>([^<]+)</text>', svg)
    return {text: (float(x), float(y)) for x, y, text in found}


def test_the_titles_of_a_matrix_of_two_classes_do_not_overlap() -> None:
    bins = {"error": 12.3, "bins": [[1, 55.0, 0.0], [3, 90.0, 100.0]]}
    svg = confusion_and_calibration([[1, 0], [1, 2]], bins, ["$a", "b$"])
    placed = texts(svg)
    left, right = "Images by class and prediction", "Calibration error: 12.3 points"
    # Both are centred at their place, and a character at 10 points is at most 7 points wide on average.
    assert placed[right][0] - placed[left][0] > 7 * (len(left) + len(right)) / 2
    assert {"$a", "b$", "0", "25", "50", "75", "100"} <= placed.keys()  # names are no formulas


def test_ticks_are_whole_epochs_and_differ() -> None:
    for values in ([100.0, 100.0, 100.0], [99.9, 100.0, 100.0], [70.0]):
        svg = curves("top-1 (%)", {"validation": list(enumerate(values, 1))}, 100)
        ticks = re.findall(r">([\d.]+)</text>", svg)
        epochs, top1 = ticks[: len(values)], ticks[len(values) :]
        assert epochs == [str(epoch) for epoch in range(1, len(values) + 1)]
        assert len(set(top1)) == len(top1) > 2 and max(map(float, top1)) <= 100


def test_the_same_figures_are_the_same_plot_whatever_the_users_settings(tmp_path: Path) -> None:
    import matplotlib

    series = {"train": [(1, 0.5), (2, 0.25)]}
    (tmp_path / "matplotlibrc").write_text("font.size: 30\naxes.grid: True\ntext.usetex: True\n")
    before = curves("loss", series)
    with matplotlib.rc_context(fname=tmp_path / "matplotlibrc"):
        assert curves("loss", series) == before
        assert matplotlib.rcParams["font.size"] == 30  # the user's settings stay


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

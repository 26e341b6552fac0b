"""Plots of a report as SVG, by matplotlib: confusion matrix, calibration, learning curves.

The same figures give the same bytes with one version of matplotlib, whatever the user's matplotlibrc says.
"""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from sqzoo.environment import require
from sqzoo.errors import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito's, told apart by colour-blind eyes
_BLUE, _ORANGE = (0, 114, 178), (213, 94, 0)
_LEGIBLE = 16  # a matrix of more classes has cells too small for their counts
_STYLE = {
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"],  # matplotlib's own, by which it measures; then the reader's
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "sqzoo",  # element ids are random without it
    "text.parse_math": False,  # class names may hold dollar signs
}


def confusion_and_calibration(
    counts: list[list[int]], calibration: dict[str, Any], classes: Sequence[str], data: str = "CIFAR-10 test"
) -> str:
    """Draw the confusion matrix (rows: the true class) and the reliability diagram side by side.

    Args:
        counts: images by class and predicted class.
        calibration: as `sqzoo.report.page.calibration` returns it.
        classes: names, in the order of `counts`.
        data: what was evaluated, for the title that screen readers read.

    Returns:
        An <svg> element.
    """
    side = min(7.0, max(3.2, 0.34 * len(classes)))  # inches
    with _figure((side + 5.4, side + 1.6), f"Confusion matrix and calibration on {data}") as (figure, svg):
        matrix, diagram = figure.subplots(1, 2, width_ratios=(side, 3.2))
        _draw_confusion(matrix, np.array(counts), [printable(name, 14) for name in classes], 60 * side / len(classes))
        count, confidence, top1 = np.array(calibration["bins"]).T
        diagram.plot([0, 100], [0, 100], linestyle="--", color="#999999", linewidth=1)
        diagram.scatter(confidence, top1, (4 + 11 * (count / count.max()) ** 0.5) ** 2, _COLOURS[0], alpha=0.7)
        diagram.set(
            title=f"Calibration error: {calibration['error']:.1f} points",
            xlabel="confidence, % (area: images)",
            ylabel="accuracy, %",
            xlim=(-4, 104),
            ylim=(-4, 104),
            xticks=range(0, 101, 25),
            yticks=range(0, 101, 25),
            box_aspect=1,
        )
    return svg.getvalue()


def _draw_confusion(axes: "Axes", counts: np.ndarray, classes: list[str], points: float) -> None:
    """Draw the matrix: correct answers in blue, mistakes, which are few, in orange and five times as strong."""
    share = counts / np.maximum(1, counts.sum(1, keepdims=True))
    right = np.eye(len(counts), dtype=bool)
    strength = np.where(right, share, np.minimum(1, 5 * share))[..., None]
    colour = np.where(right[..., None], _BLUE, _ORANGE)
    axes.imshow(np.rint(255 + (colour - 255) * strength).astype(np.uint8), interpolation="none")
    axes.set(title="Images by class and prediction", xlabel="prediction", ylabel="class")
    places, size = range(len(classes)), min(9.0, points)
    axes.set_xticks(places, classes, rotation=60, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(places, classes, fontsize=size)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for row, column in np.argwhere(counts) if len(counts) <= _LEGIBLE else ():
        text = "white" if strength[row, column] > 0.55 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=text, fontsize=8)


def curves(title: str, series: Mapping[str, Sequence[tuple[float, float]]], highest: float = float("inf")) -> str:
    """Draw lines through points (epoch, value), with a name each.

    Args:
        title: of the plot, with the unit.
        series: points by name.
        highest: what no value can exceed, such as 100 %.

    Returns:
        An <svg> element.
    """
    with _figure((5.4, 2.9), title) as (figure, svg):
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        for (name, line), colour in zip(series.items(), _COLOURS * len(series), strict=False):
            axes.plot(*zip(*line, strict=True), marker="o", markersize=3, label=printable(name), color=colour)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.005 * highest))
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return svg.getvalue()


@contextmanager
def _figure(inches: tuple[float, float], title: str) -> "Iterator[tuple[Figure, io.StringIO]]":
    """Yield a figure and the stream that it is written to, as an <svg> element, when the block ends."""
    require("matplotlib", "train", "A plot")
    from matplotlib import style
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    element, svg = io.StringIO(), io.StringIO()
    with style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")  # the reader's fonts are used, not matplotlib's
        figure = Figure(inches, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
        yield figure, element
        about = {"Title": printable(title, 300), **dict.fromkeys(("Creator", "Date", "Format", "Type"))}
        figure.savefig(svg, format="svg", metadata=about)
    # Without the XML prolog it can stand in a web page, too.
    element.write(svg.getvalue()[svg.getvalue().index("<svg ") :].replace("<svg ", '<svg role="img" ', 1))

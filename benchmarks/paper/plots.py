"""The sweeps' figures, in one style: PNG, SVG and a table (CSV) of each."""

import csv
import io
import statistics
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.paper.experiments import Experiment
from benchmarks.paper.records import PROTOCOLS, Outcome

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours, which the colour-blind tell apart.
BLUE, ORANGE, GREEN, PURPLE, SKY, RED, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000",
)  # fmt: skip
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, BLACK)
SAID = {"paper": "best epoch on test (paper's way)", "held_out": "epoch chosen on held-out images"}
LOOK = {"paper": (ORANGE, "s"), "held_out": (BLUE, "o")}
AXES = {"top1": "test top-1, %", "loss": "test loss"}
NAMES = {
    "lr": "learning rate", "drop_rate": "p1: dropout behind the mid layer",
    "logit_drop_rate": "p2: dropout on the logits",
    "width": "output size of the block", "mid": "mid-layer size",
    "pool2": "Pooling_2", "pool3": "Pooling_3", "global_pool": "final pooling", "case": "",
}  # fmt: skip
GRID_POINTS = 3.0  # of top-1, the least that a colour scale spans: ten times the deviation between seeds
CURVE_POINTS = 18.0  # of top-1 below the median of the curves' second halves: where the axis begins
STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "sqzoo",
}


def draw(experiment: Experiment, found: dict[Any, Outcome], epochs: int, seeds: int, folder: Path) -> list[Path]:
    """Write an experiment's figure and table into a folder and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / f"{experiment.name}.csv"
    table.write_text(csv_text(found, epochs, seeds), encoding="utf-8")
    if experiment.draw == "table":
        return [table]
    with plt.rc_context(STYLE):
        figure = {"lines": _lines, "grid": _grid, "cases": _cases, "curves": _curves}[experiment.draw](
            experiment, found
        )
        bars = {"curves": "band", "grid": "±"}.get(experiment.draw, "bars")
        said = f"mean of {seeds} seeds, {bars}: standard deviation between them" if seeds > 1 else "one seed"
        figure.suptitle(f"{experiment.title}\n{epochs} epochs; {said}", fontsize=10)
        files = [folder / f"{experiment.name}.{kind}" for kind in ("png", "svg")]
        for file in files:  # without dates, so that the same records give the same bytes
            figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else {"Software": None})
        plt.close(figure)
    return [table, *files]


def csv_text(found: dict[Any, Outcome], epochs: int, seeds: int) -> str:
    """Return the table: a row a setting, mean and standard deviation over the seeds in both protocols."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    variables = [name for name, _ in next(iter(found))]
    measures = [(p, m) for p in PROTOCOLS for m in ("top1", "loss")]
    heads = [f"{p}_{m}_{s}" for p, m in measures for s in ("mean", "sd")]
    writer.writerow([*variables, *heads, "params", "seeds", "epochs"])
    for label, outcome in found.items():
        values = [f"{f(m, p):.4f}" for p, m in measures for f in (outcome.mean, outcome.deviation)]
        writer.writerow([*(v for _, v in label), *values, outcome.params, seeds, epochs])
    return out.getvalue()


def _lines(experiment: Experiment, found: dict[Any, Outcome]) -> Any:
    """A measure against one varied number."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6))
    (variable, _), *_ = next(iter(found))
    xs = [label[0][1] for label in found]
    for panel, measure in zip(panels, ("top1", "loss"), strict=True):
        for protocol in PROTOCOLS:
            colour, marker = LOOK[protocol]
            ys = [o.mean(measure, protocol) for o in found.values()]
            bars = [o.deviation(measure, protocol) for o in found.values()]
            panel.errorbar(xs, ys, bars, color=colour, marker=marker, capsize=3, ms=5, label=SAID[protocol])
        _papers(panel, [(changes[variable], value) for changes, value in experiment.paper.get(measure, [])])
        panel.set(xlabel=NAMES[variable], ylabel=AXES[measure], xscale="log" if max(xs) > 4 * min(xs) else "linear")
        if panel.get_xscale() == "log" and isinstance(xs[0], int):
            panel.set_xticks(xs, [str(x) for x in xs])
            panel.minorticks_off()
    panels[0].legend(fontsize=8)
    return figure


def _grid(experiment: Experiment, found: dict[Any, Outcome]) -> Any:
    """Two varied numbers against each other."""
    figure, panels = plt.subplots(1, 2, figsize=(9.5, 4.4))
    (down, _), (across, _) = next(iter(found))
    rows, columns = (sorted({label[i][1] for label in found}) for i in (0, 1))
    said = {tuple(c[v] for v in (down, across)): value for c, value in experiment.paper.get("top1", [])}
    every = {p: {tuple(v for _, v in label): o.mean("top1", p) for label, o in found.items()} for p in PROTOCOLS}
    low, high = (edge(v for means in every.values() for v in means.values()) for edge in (min, max))
    spread = max(GRID_POINTS - (high - low), 0) / 2  # or noise of tenths of a point would fill the whole scale
    for panel, protocol in zip(panels, PROTOCOLS, strict=True):
        means = every[protocol]
        image = [[means.get((r, c), float("nan")) for c in columns] for r in rows]
        shown = panel.imshow(image, cmap="Blues", origin="lower", vmin=low - spread, vmax=high + spread)
        dark = low - spread + 0.65 * (high - low + 2 * spread)  # from there on it is dark
        for label, outcome in found.items():
            (_, r), (_, c) = label
            mean = outcome.mean("top1", protocol)
            text = f"{mean:.2f}\n±{outcome.deviation('top1', protocol):.2f}"
            if (r, c) in said:
                text += f"\npaper {said[r, c]:.1f}"
            colour = "white" if mean > dark else "black"
            panel.text(columns.index(c), rows.index(r), text, ha="center", va="center", fontsize=7, color=colour)
        panel.set_xticks(range(len(columns)), [str(c) for c in columns])
        panel.set_yticks(range(len(rows)), [str(r) for r in rows])
        panel.set(xlabel=NAMES[across], ylabel=NAMES[down])
        panel.set_title(f"test top-1, %: {SAID[protocol]}", fontsize=8)
        panel.grid(False)
    figure.colorbar(shown, ax=panels, shrink=0.7, label=AXES["top1"])
    return figure


def _cases(experiment: Experiment, found: dict[Any, Outcome]) -> Any:
    """Named settings side by side."""
    figure, panels = plt.subplots(1, 2, figsize=(9.5, 0.5 * len(found) + 1.6), sharey=True)
    names = [", ".join(f"{NAMES[k]} {v}".strip() for k, v in label) for label in found]
    said = {measure: _papers_by_row(experiment, found, measure) for measure in AXES}
    for panel, measure in zip(panels, AXES, strict=True):
        for shift, protocol in zip((0.12, -0.12), PROTOCOLS, strict=True):
            colour, marker = LOOK[protocol]
            xs = [o.mean(measure, protocol) for o in found.values()]
            bars = [o.deviation(measure, protocol) for o in found.values()]
            ys = [i + shift for i in range(len(found))]
            panel.errorbar(xs, ys, xerr=bars, fmt=marker, color=colour, capsize=3, ms=5, label=SAID[protocol])
        if said[measure]:
            panel.plot(
                [v for _, v in said[measure]],
                [i for i, _ in said[measure]],
                "D",
                mfc="none",
                color=BLACK,
                label="paper",
            )
        panel.set_yticks(range(len(found)), names)
        panel.set(xlabel=AXES[measure])
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=3)
    return figure


def _papers_by_row(experiment: Experiment, found: dict[Any, Outcome], measure: str) -> list[tuple[int, float]]:
    rows = {tuple(sorted(label)): i for i, label in enumerate(found)}
    points = [(tuple(sorted(changes.items())), value) for changes, value in experiment.paper.get(measure, [])]
    return [(rows[key], value) for key, value in points if key in rows]


def _curves(experiment: Experiment, found: dict[Any, Outcome]) -> Any:
    """Accuracy by epoch, a curve a setting with its range of one standard deviation."""
    figure, panel = plt.subplots(figsize=(8.2, 4.2))
    for colour, (label, outcome) in zip(COLOURS, found.items(), strict=False):
        columns = list(zip(*outcome.curves, strict=True))
        means = [sum(c) / len(c) for c in columns]
        spread = [
            (sum((v - m) ** 2 for v in c) / max(1, len(c) - 1)) ** 0.5 for c, m in zip(columns, means, strict=True)
        ]
        xs = range(1, len(means) + 1)
        panel.plot(
            xs, means, color=colour, marker="." if len(means) < 20 else None, label=", ".join(str(v) for _, v in label)
        )
        low, high = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
        panel.fill_between(xs, low, high, color=colour, alpha=0.2, lw=0)
    for _, value in experiment.paper.get("top1", []):
        panel.axhline(value, color=BLACK, ls=":", lw=1, label=f"paper's best, {value:.1f}")
    ends = [value for outcome in found.values() for curve in outcome.curves for value in curve[len(curve) // 2 :]]
    low = statistics.median(ends) - CURVE_POINTS
    panel.set(xlabel="epoch", ylabel=AXES["top1"], ylim=(low, max(ends) + 1))  # of a rate that fails, the part in view
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(fontsize=8, title=NAMES[next(iter(found))[0][0]], loc="outside right center")
    return figure


def _papers(panel: Axes, points: list[tuple[float, float]]) -> None:
    if points:
        panel.plot(*zip(*points, strict=True), "D", mfc="none", color=BLACK, ms=7, label="paper")

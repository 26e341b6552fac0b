"""Charts as SVG, written by hand so that the same figures give the same bytes: confusion, calibration, curves."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

LEFT, TOP = 84, 40
STYLE = "text{font:11px sans-serif;fill:#222}.a{text-anchor:middle}.e{text-anchor:end}.w{fill:#fff}.h{font-weight:bold}"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito's, told apart by colour-blind eyes
_LEGIBLE = 16  # a matrix of more classes has cells too small for their counts


def confusion_and_calibration(
    counts: list[list[int]], calibration: dict[str, Any], classes: Sequence[str], data: str = "CIFAR-10 test"
) -> str:
    """Return the confusion matrix (rows: what the image is) and the reliability diagram side by side.

    counts: images by class and answer. calibration: as `sqzoo.report.page.calibration` returns it.
    """
    cell = 30 if len(classes) <= _LEGIBLE else max(4, 480 // len(classes))
    middle = cell // 2
    side = max(cell * len(classes), 240)
    plot = LEFT + cell * len(classes) + 80
    width, height = plot + side + 20, TOP + side + 90
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
        f"<title>Confusion matrix and calibration on {escape(data)}</title><style>{STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        _text(LEFT, TOP - 16, "images by class (row) and answer (column)", "h"),
        _text(plot, TOP - 16, f"accuracy by confidence; error {calibration['error']:.1f} points", "h"),
    ]
    for row, line in enumerate(counts):
        if cell >= 12:
            name = classes[row] if len(classes[row]) <= 12 else f"{classes[row][:11]}…"
            parts.append(_text(LEFT - 6, TOP + cell * row + middle + 4, name, "e"))
            x, y = LEFT + cell * row + middle, TOP + cell * len(classes) + 8
            parts.append(f'<text transform="translate({x + 4} {y}) rotate(-60)" class="e">{escape(name)}</text>')
        for column, count in enumerate(line):
            x, y = LEFT + cell * column, TOP + cell * row
            share = count / max(1, sum(line))
            strength = share if row == column else min(1.0, share * 5)  # mistakes are few: five times as strong
            colour = _mix((0, 114, 178) if row == column else (213, 94, 0), strength)
            parts.append(f'<rect x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" fill="{colour}"/>')
            if count and cell == 30:
                parts.append(_text(x + middle, y + middle + 4, str(count), "a w" if strength > 0.55 else "a"))
    base = TOP + side
    parts.append(f'<path d="M{plot} {base}L{plot + side} {TOP}" stroke="#999" stroke-dasharray="4 3" fill="none"/>')
    parts.append(f'<path d="M{plot} {TOP}V{base}H{plot + side}" stroke="#222" fill="none"/>')
    most = max(count for count, _, _ in calibration["bins"])
    for count, confidence, top1 in calibration["bins"]:
        x, y = plot + side * confidence / 100, base - side * top1 / 100
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3 + 7 * (count / most) ** 0.5:.1f}" fill="#0072B2" opacity=".7"/>'
        )
    for tick in (0, 25, 50, 75, 100):
        parts.append(_text(plot + side * tick / 100, base + 16, str(tick), "a"))
        parts.append(_text(plot - 6, base - side * tick / 100 + 4, str(tick), "e"))
    parts.append(_text(plot + side / 2, base + 36, "confidence, % (area: number of images)", "a"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def curves(title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Return lines through (x, y) points, epochs across, with a name each."""
    left, top, width, height = 56, 40, 360, 220
    points = [p for line in series.values() for p in line]
    (x0, x1), (y0, y1) = ((min(v), max(v)) for v in zip(*points, strict=True))
    x1, y1 = x1 + (x1 == x0), y1 + (y1 == y0)  # a single epoch or a flat line is drawn, too

    def place(x: float, y: float) -> str:
        return f"{left + width * (x - x0) / (x1 - x0):.1f} {top + height * (y1 - y) / (y1 - y0):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 110} {top + height + 50}" '
        f'width="{left + width + 110}" role="img"><title>{escape(title)}</title><style>{STYLE}</style>',
        _text(left, top - 16, title, "h"),
        f'<path d="M{left} {top}V{top + height}H{left + width}" stroke="#222" fill="none"/>',
        _text(left + width / 2, top + height + 36, "epoch", "a"),
    ]
    for part in (0, 0.5, 1):
        parts.append(_text(left - 6, top + height * (1 - part) + 4, f"{y0 + (y1 - y0) * part:.3g}", "e"))
        parts.append(_text(left + width * part, top + height + 16, f"{x0 + (x1 - x0) * part:.3g}", "a"))
    for index, (name, line) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = "L".join(place(x, y) for x, y in line)
        parts.append(f'<path d="M{path}" stroke="{colour}" stroke-width="2" fill="none"/>')
        parts += [f'<circle r="2.5" fill="{colour}" transform="translate({place(x, y)})"/>' for x, y in line]
        parts.append(f'<rect x="{left + width + 12}" y="{top + 18 * index}" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(left + width + 26, top + 18 * index + 9, name, ""))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(text)}</text>'


def _mix(colour: tuple[int, int, int], strength: float) -> str:
    return "#" + "".join(f"{round(255 + (c - 255) * strength):02x}" for c in colour)

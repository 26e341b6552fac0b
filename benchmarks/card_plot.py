"""A card's plot as SVG, written by hand so that the same figures give the same bytes: confusion and calibration."""

from typing import Any

CELL, LEFT, TOP = 30, 84, 40
STYLE = "text{font:11px sans-serif;fill:#222}.a{text-anchor:middle}.e{text-anchor:end}.w{fill:#fff}.h{font-weight:bold}"


def svg(counts: list[list[int]], calibration: dict[str, Any], classes: list[str]) -> str:
    """Return the confusion matrix (rows: what the image is) and the reliability diagram side by side."""
    side = CELL * len(classes)
    plot = LEFT + side + 80
    width, height = plot + side + 20, TOP + side + 90
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
        f"<title>Confusion matrix and calibration on CIFAR-10 test</title><style>{STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        _text(LEFT, TOP - 16, "images by class (row) and answer (column)", "h"),
        _text(plot, TOP - 16, f"accuracy by confidence; error {calibration['error']:.1f} points", "h"),
    ]
    for row, line in enumerate(counts):
        parts.append(_text(LEFT - 6, TOP + CELL * row + 19, classes[row], "e"))
        x, y = LEFT + CELL * row + 15, TOP + side + 8
        parts.append(f'<text transform="translate({x + 4} {y}) rotate(-60)" class="e">{classes[row]}</text>')
        for column, count in enumerate(line):
            x, y = LEFT + CELL * column, TOP + CELL * row
            share = count / max(1, sum(line))
            strength = share if row == column else min(1.0, share * 5)  # mistakes are few: five times as strong
            colour = _mix((0, 114, 178) if row == column else (213, 94, 0), strength)
            parts.append(f'<rect x="{x}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" fill="{colour}"/>')
            if count:
                parts.append(_text(x + 15, y + 19, str(count), "a w" if strength > 0.55 else "a"))
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


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{text}</text>'


def _mix(colour: tuple[int, int, int], strength: float) -> str:
    return "#" + "".join(f"{round(255 + (c - 255) * strength):02x}" for c in colour)

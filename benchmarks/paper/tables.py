"""Table 2 as Markdown: the paper's rows beside ours, every shipped tag, and the verdicts."""

import json
from typing import Any

from benchmarks import RESULTS
from benchmarks.paper import heads
from benchmarks.paper.records import PROTOCOLS
from benchmarks.paper.verdict import PAPER, REPRODUCED, Rows, rows, verdict

MEASURE_ALEXNET = "sqzoo train alexnet_cifar --recipe paper_cifar10"
ALEXNET_FT = "alexnet_cifar.ft_cifar10"


def paper_rows(results: dict[str, Any]) -> str:
    """Return the paper's four rows beside ours, and what the figures are means of.

    results: what table2.json holds.
    """
    measured = rows(results["tags"])
    lines = [
        "| model | paper: loss · top-1 · parameters | ours, paper's protocol | verdict | ours, held-out protocol "
        "| parameters |",
        "|---|---|---|---|---|---|",
    ]
    for name, (title, loss, top1, params) in PAPER.items():
        paper, held_out = (measured.get((name, protocol)) for protocol in PROTOCOLS)
        cells = [
            f"`{name}`: {title}",
            f"{loss:.3f} · {top1:.1f} % · {params}",
            paper.text() if paper else "not measured",
        ]
        cells += [verdict(measured, name, "paper") or "-", held_out.text() if held_out else "not measured"]
        lines.append(f"| {' | '.join(cells)} | {results['params'][name]:,} |")
    return "\n".join([*lines, "", _note(measured)])


def _note(measured: Rows) -> str:
    """Return what the figures are means of."""
    seeds = sorted({len(row.top1) for row in measured.values()})
    if seeds[-1] == 1:
        return "One seed each, which decides nothing."
    count = " or ".join(map(str, seeds))
    return (
        f"Mean ± standard deviation of {count} seeds. *Reproduced*: the mean reaches the paper's figure; *short by*: "
        "lower beyond chance; else *not decided*."
    )


def exact_pixels(tags: dict[str, Any]) -> str:
    """Return what the figures are on the test images whose pixels are the published ones."""
    known = {tag: r for tag, r in tags.items() if "top1_exact_pixels" in r and r["exact_images"] < r["images"]}
    if not known:
        return ""
    images = next(iter(known.values()))
    most = max(abs(r["top1_exact_pixels"] - r["top1"]) for r in known.values())
    each = ", ".join(f"`{tag}` {r['top1_exact_pixels']:.2f} %" for tag, r in known.items())
    return (
        f"On the {images['exact_images']:,} test images with the published pixels (the other "
        f"{images['images'] - images['exact_images']} here are from a JPEG copy), no figure differs by more than "
        f"{most:.2f} points: {each}."
    )


def render(results: dict[str, Any]) -> str:
    """Return Table 2, the fine-tuned and the compressed rows and the verdicts."""
    tags = results["tags"]
    table, note = paper_rows(results).split("\n\n")
    lines = [table]
    if stand_in := linear_layers():
        cells = ["`alexnet_cifar`: frozen convolutions, three linear layers from scratch", "-", stand_in["paper"], "-"]
        lines.append(f"| {' | '.join(cells)} | {stand_in['held_out']} | {stand_in['params']:,} |")
    lines += ["", note, "", "| all layers trained | size | loss · top-1, test | parameters | file | seconds |"]
    lines += ["|---|---|---|---|---|---|"]
    for tag, r in tags.items():
        if r["holds"] == "complete" and "parent" not in r:
            cells = [f"`{tag}`", f"{r['side']} px", f"{r['loss']:.3f} · **{r['top1']:.2f} %**"]
            cells += [f"{r['params']:,}", f"{r['bytes'] / 1e6:.2f} MB", f"{r['seconds']:.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    if ft := _run(ALEXNET_FT):
        cells = ["`alexnet_cifar`", f"{ft.get('size') or ft['side']} px"]
        cells += [f"{ft['test']['loss']:.3f} · **{ft['test']['top1']:.2f} %**", f"{ft['params']:,}", "not shipped", "-"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| compressed | size | loss · top-1, test | parent: top-1, test | parameters | file | seconds |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for tag, r in tags.items():
        if "parent" in r:
            cells = [f"`{tag}`", f"{r['side']} px", f"{r['loss']:.3f} · **{r['top1']:.2f} %**"]
            cells += [f"`{r['parent']}`: {r['parent_top1']:.2f} %", f"{r['params']:,}", f"{r['bytes'] / 1e6:.2f} MB"]
            cells += [f"{r['seconds']:.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", exact_pixels(tags), "", *(f"- {v}" for v in verdicts(results))]
    return "\n".join(lines)


def verdicts(results: dict[str, Any]) -> list[str]:
    """Return a line for each of Table 2's claims that the measurements can judge."""
    params, measured = results["params"], rows(results["tags"])
    lines = []
    for (name, protocol), row in measured.items():
        _, loss, top1, _ = PAPER[name]
        said = "paper's" if protocol == "paper" else "held-out"
        words = [verdict(measured, name, protocol, m) for m in ("top1", "loss")]
        lines.append(
            f"{name}, {said} protocol: paper {top1:.1f} % and {loss:.3f}, ours {row.mean('top1'):.2f} % and "
            f"{row.mean('loss'):.3f} in {len(row.top1)} seed{'s' if len(row.top1) > 1 else ''}: {words[0]}"
            + (
                f", the loss {words[1]}."
                if words[1] != words[0]
                else ", the loss as well."
                if REPRODUCED in words
                else "."
            )
        )
    for name, printed in (("sq1", 71), ("fire_next", 82)):
        ratio = params["alexnet_cifar"] / params[name]
        lines.append(
            f"{name} has x{printed} fewer parameters than AlexNet: {params['alexnet_cifar']:,} / {params[name]:,} = "
            f"x{ratio:.1f}: {'holds' if printed in (int(ratio), round(ratio)) else 'does not hold'}."
        )
    lines.append(
        f"Sq-1 with x71 and 797K: that is the count with Table 1's mid layer of 64, {params['sq1_mid64']:,} "
        f"(x{params['alexnet_cifar'] / params['sq1_mid64']:.1f}); Table 3's own setting, mid 32, has {params['sq1']:,}."
    )
    lines.append(
        f"SqueezeNet with 773K: that is the count with a 100-way last layer, {params['squeezenet_100']:,}; the 10-way "
        f"network has {params['squeezenet_cifar']:,}, the text's 727K."
    )
    if ("alexnet_cifar", "paper") not in measured:
        lines.append(
            "AlexNet's row (last layer retrained) is not measured here, so no gain over it is judged; to measure it: "
            f"{MEASURE_ALEXNET}"
        )
    return lines


def linear_layers() -> dict[str, Any] | None:
    """Return the cells of AlexNet's stand-in by protocol, and its parameters: heads.py's seeds, else the early run."""
    known = {protocol: heads.summary("alexnet_cifar", protocol) for protocol in PROTOCOLS}
    if any(known.values()):
        from benchmarks.paper.verdict import Row

        cells = {p: Row(s["top1"], s["loss"]).text() if s else "-" for p, s in known.items()}
        return cells | {"params": next(s["params"] for s in known.values() if s)}
    if early := _run("alexnet_cifar.fc_cifar10"):
        test = early["test"]
        cell = f"{test['loss']:.3f} · **{test['top1']:.2f} %** (one seed, {len(early['log'])} epochs)"
        return {"paper": cell, "held_out": "-", "params": early["params"]}
    return None


def _run(tag: str) -> dict[str, Any] | None:
    """Return the record of a run whose weights are not shipped (AlexNet's have 228 MB), where there is one."""
    file = RESULTS / "runs" / f"{tag}.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None

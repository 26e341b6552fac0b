"""The paper's sweeps, re-run: Tables 1 and 3, figures 5 to 11.

    python benchmarks/paper/figures.py [--only fig6] [--seeds 3] [--epochs N] [--workers N] [--plan | --draw]

Prints the plan with the time it will take, trains what is not recorded yet, and draws each figure (PNG, SVG) with its
table (CSV) in results/paper/. It may be stopped at any time and started again; `--join` adds another machine's
runs.json to one's own. The experiments are in experiments.yaml.
"""

from pathlib import Path

from benchmarks import RESULTS, run_main
from benchmarks.paper.experiments import Experiment, experiments, runs
from benchmarks.paper.plots import csv_text, draw
from benchmarks.paper.records import join, outcomes, record, recorded
from benchmarks.paper.runner import Run, carry_out, parser
from sqzoo.errors import ArgumentError, did_you_mean

FIGURES = RESULTS / "paper"
RECORDS = FIGURES / "runs.json"


def main() -> int:
    """Plan, train, draw."""
    options = parser(__doc__ or "", "runs/figures")
    options.add_argument("--only", help="experiments, separated by commas: fig5,fig6 (default: all)")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--epochs", type=int, help="at most so many epochs a setting (default: experiments.yaml's)")
    options.add_argument("--draw", action="store_true", help="draw from the records, train nothing")
    options.add_argument("--join", metavar="FILE", help="add the records of another machine, then draw")
    options.add_argument(
        "--bfloat16",
        action="store_true",
        help="train Fire-Next in bfloat16, 1.5 to 3 times as fast where `sqzoo doctor` calls it fast, slower elsewhere",
    )
    arguments = options.parse_args()
    if arguments.seeds < 1 or (arguments.epochs is not None and arguments.epochs < 1):
        raise ArgumentError("--seeds and --epochs must be at least 1; correct the one that is not.")
    known = experiments()
    names = arguments.only.split(",") if arguments.only else list(known)
    for name in names:
        if name not in known:
            raise ArgumentError(
                f"Unknown experiment {name!r}.{did_you_mean(name, known)} There are: {', '.join(known)}."
            )
    chosen = [known[name] for name in names]
    if arguments.join:
        if not Path(arguments.join).is_file():
            raise ArgumentError(f"No file {arguments.join!r} to join; give another machine's figures/runs.json.")
        join(RECORDS, recorded(Path(arguments.join)))
    elif not arguments.draw:
        plan = runs(chosen, arguments.seeds, arguments.epochs, arguments.bfloat16)

        def kept() -> set[str]:
            logs = {name: len(run["log"]) for name, run in recorded(RECORDS)["runs"].items()}
            return {one.name for one in plan if logs.get(key(one), 0) >= one.recipe.epochs}

        if not carry_out(plan, kept, lambda one, result: record(RECORDS, {key(one): result}), arguments):
            return 0
    render(chosen, arguments.seeds)
    return 0


def key(one: Run) -> str:
    """Return a run's name in the records, which hold the longest of it."""
    return one.name.rpartition(",epochs=")[0]


def render(chosen: list[Experiment], seeds: int) -> None:
    """Draw the experiments that are recorded for so many seeds."""
    known = recorded(RECORDS)
    for experiment in chosen:
        found, epochs = outcomes(experiment, known, seeds)
        if not found:
            print(f"{experiment.name}: nothing recorded for {seeds} seeds; train it first.")
            continue
        draw(experiment, found, epochs, seeds, FIGURES)
        print(f"{experiment.title} ({seeds} seeds, {epochs} epochs)\n{csv_text(found, epochs, seeds)}")


if __name__ == "__main__":
    run_main(main)

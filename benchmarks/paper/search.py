"""One factor at a time against a joint search: Sq-1's factors, the same number of training epochs for both.

    python benchmarks/paper/search.py [--budget EPOCHS] [--epochs 8] [--seeds 3] [--compare]

The paper varies one factor at a time and assumes that they are independent. Here Optuna's TPE varies all at once and
drops trials that lag behind the median, until it has spent the epochs that one seed of figures 5, 6, 7 and 10 took.
Held-out images alone choose, in both. Then both winners are trained from fresh seeds and compared on the test images.
May be stopped and started again, and run in several processes with the same --work folder; --compare goes on to the
comparison with the trials there are. Writes results/paper/search.json.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from scipy import stats

from benchmarks import RESULTS
from benchmarks.paper.experiments import Setting, experiments, setting
from benchmarks.paper.records import outcomes, record, recorded
from sqzoo import SqzooError
from sqzoo.data import Dataset, cifar10
from sqzoo.environment import environment
from sqzoo.errors import ArgumentError
from sqzoo.files import write_text
from sqzoo.train import train

RECORDS = RESULTS / "paper" / "runs.json"
FACTORS = ("fig5", "fig6", "fig7", "fig10")
FRESH = 100  # first seed of the comparison: none that chose a setting
TABLE1 = {
    "lr": 0.001,
    "drop_rate": 0.3,
    "logit_drop_rate": 0.1,
    "mid": 64,
    "pool2": "max",
    "pool3": "max",
    "global_pool": "avg",
}
SPENT = (TrialState.COMPLETE, TrialState.PRUNED)


def suggest(trial: optuna.Trial) -> Setting:
    """Return a setting with every factor of the paper's sweeps drawn at once."""
    changes: dict[str, Any] = {"lr": float(f"{trial.suggest_float('lr', 5e-5, 1e-2, log=True):.3g}")}
    changes |= {k: round(trial.suggest_float(k, 0.0, 0.4, step=0.05), 2) for k in ("drop_rate", "logit_drop_rate")}
    changes["mid"] = trial.suggest_categorical("mid", [8, 16, 32, 64, 128, 256])
    changes |= {k: trial.suggest_categorical(k, ["max", "avg"]) for k in ("pool2", "pool3", "global_pool")}
    return setting("sq1", changes)


def search(
    data: tuple[Dataset, Dataset], budget: int, epochs: int, folder: Path, cache: Path, trunk: str | None
) -> optuna.Study:
    """Run trials until the budget is spent, and return the study."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=f"joint-{epochs}",
        storage=f"sqlite:///{folder / 'optuna.db'}",
        sampler=optuna.samplers.TPESampler(multivariate=True, constant_liar=True),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=6),
        direction="maximize",
        load_if_exists=True,
    )

    if not study.get_trials(deepcopy=False):  # from where the paper starts: Table 1
        study.enqueue_trial(TABLE1)

    def objective(trial: optuna.Trial) -> float:
        chosen = suggest(trial)
        trial.set_user_attr("setting", chosen.name)
        best = 0.0

        def report(row: dict[str, Any]) -> None:
            nonlocal best
            best = max(best, row["val"]["top1"])
            if row["epoch"] in (1, 2, 4, epochs):
                trial.report(best, row["epoch"])
                if row["epoch"] < epochs and trial.should_prune():
                    raise optuna.TrialPruned

        run = folder / "runs" / chosen.name
        train(chosen.recipe(0, epochs), *data, run, trunk=trunk, cache=cache, progress=False, on_epoch=report)
        return best

    while (spent := sum(t.last_step or 0 for t in study.get_trials(deepcopy=False) if t.state in SPENT)) < budget:
        study.optimize(objective, n_trials=1)
        last = study.get_trials(deepcopy=False)[-1]
        print(f"{spent} of {budget} epochs; {last.user_attrs.get('setting')}: {last.intermediate_values}", flush=True)
    return study


def one_factor(seeds: int) -> tuple[Setting, int]:
    """Return the setting that the sweeps' held-out accuracy chooses, factor by factor, and the epochs of one seed."""
    known, changes, spent = recorded(RECORDS), {}, 0
    for name in FACTORS:
        experiment = experiments()[name]
        found, epochs = outcomes(experiment, known, seeds)
        if len(found) < len(experiment.settings):
            raise ArgumentError(f"{name} is not recorded for {seeds} seeds; run figures.py beside this.")
        changes |= dict(max(found, key=lambda label: statistics.fmean(found[label].held_out)))
        spent += len(found) * epochs
    return setting("sq1", changes), spent


def compare(
    joint: Setting, single: Setting, seeds: int, epochs: int, data: tuple[Dataset, Dataset], folder: Path, **where: Any
) -> dict[str, Any]:
    """Train both winners from fresh seeds; return their test accuracy, the epoch chosen on held-out images."""
    both = {"joint": joint, "one_factor": single}
    found: dict[str, list[float]] = {name: [] for name in both}
    for seed in range(FRESH, FRESH + seeds):
        for name, chosen in both.items():
            run = folder / "compare" / chosen.run(seed)
            result = train(chosen.recipe(seed, epochs), *data, run, log_test=True, **where)
            record(RECORDS, {run.name: result})
            found[name].append(result["test"]["top1"])
    p = stats.ttest_ind(found["joint"], found["one_factor"], alternative="greater").pvalue
    summary: dict[str, Any] = {
        name: {"setting": both[name].name, "top1": v, "mean": statistics.fmean(v), "sd": statistics.stdev(v)}
        for name, v in found.items()
    }
    return summary | {"p": float(p), "epochs": epochs, "seeds": list(range(FRESH, FRESH + seeds))}


def main() -> int:
    """Search, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=int, help="epochs to spend (default: as many as one seed of the sweeps took)")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of a trial that is not dropped")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--compare", action="store_true", help="search no further, compare")
    parser.add_argument("--work", default="runs/search", help="folder for run folders and the study")
    parser.add_argument("--cache", default="cache", help="folder for trunk features")
    parser.add_argument("--data", help="CIFAR-10 folder (default: $SQZOO_CIFAR10, else the Hub)")
    parser.add_argument("--trunk", help="folder with the ImageNet trunk (default: $SQZOO_TRUNKS, else torchvision's)")
    arguments = parser.parse_args()
    folder, cache = Path(arguments.work), Path(arguments.cache)
    budget = 0 if arguments.compare else arguments.budget or one_factor(arguments.seeds)[1]
    data = (cifar10("train", arguments.data), cifar10("test", arguments.data))
    study = search(data, budget, arguments.epochs, folder, cache, arguments.trunk)
    trials = [t for t in study.get_trials(deepcopy=False) if t.state in SPENT]
    single, swept = one_factor(arguments.seeds)
    best = next(t for t in trials if t.number == study.best_trial.number)
    joint = suggest(optuna.trial.FixedTrial(best.params))  # type: ignore[arg-type]
    where = {"trunk": arguments.trunk, "cache": cache}
    result = {
        "environment": environment(),
        "data": {"train_digest": data[0].digest, "test_digest": data[1].digest},
        "epochs_spent": {"joint": sum(t.last_step or 0 for t in trials), "one_factor_a_seed": swept},
        "trials": [
            {"setting": t.user_attrs["setting"], "epochs": t.last_step, "held_out_top1": t.value, "state": t.state.name}
            for t in sorted(trials, key=lambda t: -(t.value or 0))
        ],
        "comparison": compare(joint, single, arguments.seeds, arguments.epochs, data, folder, **where),
    }
    write_text(RESULTS / "paper" / "search.json", json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["comparison"], indent=1))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SqzooError as e:
        sys.exit(f"search: {e}")

"""The paper's experiments, read from experiments.yaml: their settings, and the runs that train them."""

import itertools
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from benchmarks.paper.runner import Run
from sqzoo.train import Recipe

FILE = Path(__file__).resolve().parent / "experiments.yaml"


@dataclass(frozen=True)
class Setting:
    """A model and how it is trained, seed and epochs apart; `name` spells what differs from the base."""

    model: str
    name: str
    fields: str  # JSON of the recipe's fields, `side` for its `sizes`: text, which hashes

    def recipe(self, seed: int, epochs: int) -> Recipe:
        """Return the recipe for a seed and a number of epochs."""
        fields = json.loads(self.fields)
        return Recipe(self.model, sizes=((fields.pop("side"), epochs),), seed=seed, **fields)

    def precision(self, bfloat16: bool) -> str:
        """Return the precision to train it in: bfloat16 where asked for and a gain."""
        return "bfloat16" if bfloat16 and self.model != "sq1" else "float32"  # Sq-1's head reads non-zeros alone

    def run(self, seed: int) -> str:
        """Return the name of its run with a seed: its run folder, and its key in the records."""
        return f"{self.name},seed={seed}"

    @property
    def pools(self) -> str:
        """Return the backbone's pools where they are not its own, so that its features are those of few runs."""
        arguments = json.loads(self.fields)["model_args"]
        own = [arguments.get(name, "max") for name in ("pool2", "pool3")]
        return "" if own == ["max", "max"] else "-".join(own)


@dataclass(frozen=True)
class Experiment:
    """A table or figure: its settings by label, a label being what is varied: (("lr", 0.001),)."""

    name: str
    title: str
    epochs: int
    draw: str
    settings: dict[tuple[tuple[str, Any], ...], Setting]
    paper: dict[str, list[tuple[dict[str, Any], float]]] = field(default_factory=dict)


def experiments() -> dict[str, Experiment]:
    """Return all experiments by name, in the file's order."""
    found = {}
    for name, entry in _file()["experiments"].items():
        vary = entry.get("vary", {})
        if "cases" in entry:
            cases = {(("case", label),): changes for label, changes in entry["cases"].items()}
        else:
            grid = [dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())]
            cases = {tuple(changes.items()): changes for changes in grid}
        settings = {label: setting(entry["base"], changes) for label, changes in cases.items()}
        found[name] = Experiment(name, entry["title"], entry["epochs"], entry["draw"], settings, entry.get("paper", {}))
    return found


def setting(name: str, changes: dict[str, Any]) -> Setting:
    """Return the base of that name with changes, each of a field of the recipe or of an argument of the model."""
    bases = _file()["base"]
    base = bases["all"] | {"model": name} | bases[name]
    own = {k: v for k, v in changes.items() if k in base}
    arguments = base["model_args"] | {k: v for k, v in changes.items() if k not in base}
    before = base | base["model_args"]
    differing = {k: v for k, v in changes.items() if before.get(k) != v}
    label = ",".join([name, *(f"{k}={v}" for k, v in sorted(differing.items()))])
    fields = base | own | {"model_args": arguments}
    model = fields.pop("model")
    return Setting(model, label, json.dumps(fields, sort_keys=True))


@cache
def _file() -> dict[str, Any]:
    return dict(yaml.safe_load(FILE.read_text(encoding="utf-8")))


def runs(chosen: list[Experiment], seeds: int, most_epochs: int | None = None, bfloat16: bool = False) -> list[Run]:
    """Return the runs that train every setting of the chosen experiments once a seed, as long as the longest asks for.

    Those that share a backbone stand together.
    """
    epochs: dict[Setting, int] = {}
    for experiment in chosen:
        for setting in experiment.settings.values():
            epochs[setting] = max(epochs.get(setting, 0), min(experiment.epochs, most_epochs or experiment.epochs))
    order = sorted(epochs, key=lambda s: (s.model, s.pools))
    return [
        Run(f"{s.run(seed)},epochs={epochs[s]}", s.recipe(seed, epochs[s]), True, True, s.precision(bfloat16), s.pools)
        for s in order
        for seed in range(seeds)
    ]

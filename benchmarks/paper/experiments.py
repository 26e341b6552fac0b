"""The paper's experiments, read from experiments.yaml: their settings, and the passes that train them together."""

import itertools
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sqzoo.train import Recipe

FILE = Path(__file__).resolve().parent / "experiments.yaml"
HEADS = {"sq1": 8, "fire_next": 3}  # trained in one pass: more would save little and make it long
TRUNK = ("pool2", "pool3")  # model arguments that change the frozen trunk, so that its features are others


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
        return "bfloat16" if bfloat16 and self.dense else "float32"

    def run(self, seed: int) -> str:
        """Return the name of its run with a seed: its run folder, and its key in the records."""
        return f"{self.name},seed={seed}"

    @property
    def frozen(self) -> bool:
        """Whether the head alone is trained."""
        return bool(json.loads(self.fields)["layers"] != "all")

    @property
    def dense(self) -> bool:
        """Whether its work is products of all values, and not, as for Sq-1's head, of a map's non-zeros."""
        return self.model != "sq1" or not self.frozen

    @property
    def trunk(self) -> str:
        """Return what settings have in common that train in one pass; a trained trunk is a setting's own."""
        if not self.frozen:
            return self.name
        arguments = json.loads(self.fields)["model_args"]
        return f"{self.model}, {json.dumps({k: arguments.get(k) for k in TRUNK})}"

    @property
    def ordinary_trunk(self) -> bool:
        """Whether the trunk's layers are ImageNet's own, whose features many passes share."""
        arguments = json.loads(self.fields)["model_args"]
        return all(arguments.get(k, "max") == "max" for k in TRUNK)


@dataclass(frozen=True)
class Experiment:
    """A table or figure: its settings by label, a label being what is varied: (("lr", 0.001),)."""

    name: str
    title: str
    epochs: int
    draw: str
    settings: dict[tuple[tuple[str, Any], ...], Setting]
    paper: dict[str, list[tuple[dict[str, Any], float]]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Pass:
    """Settings that train together, each for its epochs, with every seed in turn."""

    name: str
    settings: dict[Setting, int]

    @property
    def any(self) -> Setting:
        """One of its settings, for what they have in common."""
        return next(iter(self.settings))


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


def passes(chosen: list[Experiment], most_epochs: int | None = None) -> list[Pass]:
    """Return the passes that train every setting of the chosen experiments once, as long as the longest asks for."""
    epochs: dict[Setting, int] = {}
    for experiment in chosen:
        for setting in experiment.settings.values():
            epochs[setting] = max(epochs.get(setting, 0), min(experiment.epochs, most_epochs or experiment.epochs))
    groups: dict[str, list[Setting]] = {}
    for setting in sorted(epochs, key=lambda s: -epochs[s]):  # a head that ends early leaves the pass to the others
        groups.setdefault(setting.trunk, []).append(setting)
    found = []
    for trunk, members in groups.items():
        heads = HEADS[members[0].model]
        for low in range(0, len(members), heads):
            part = {s: epochs[s] for s in members[low : low + heads]}
            found.append(Pass(f"{trunk}: {'; '.join(f'{s.name} x {e}' for s, e in part.items())}", part))
    return found

"""The paper's experiments, read from experiments.yaml: their settings, and the passes that train them together."""

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sqzoo.train import Recipe

FILE = Path(__file__).resolve().parent / "experiments.yaml"
HEADS = {"sq1": 8, "fire_next": 3}  # trained in one pass: more save little and make a pass long
TRUNK = ("pool2", "pool3")  # model arguments that change the frozen trunk, so that its features are others


@dataclass(frozen=True)
class Setting:
    """A model and how its head is trained, seed and epochs apart; `name` spells what differs from the base."""

    model: str
    name: str
    lr: float
    batch_size: int
    model_args: str  # JSON, which hashes

    def recipe(self, seed: int, epochs: int) -> Recipe:
        """Return the recipe: 45,000 images, 5,000 held out choose, the test images are logged beside them."""
        return Recipe(
            self.model,
            json.loads(self.model_args),
            sizes=((224, epochs),),
            hold_out=5000,
            select="held_out",
            log_test=True,
            batch_size=self.batch_size,
            lr=self.lr,
            seed=seed,
        )

    @property
    def trunk(self) -> tuple[str, str]:
        """Return what settings that share a pass have in common: the model and its trunk's arguments."""
        arguments = json.loads(self.model_args)
        return self.model, json.dumps({k: arguments[k] for k in TRUNK if k in arguments})

    @property
    def ordinary_trunk(self) -> bool:
        """Whether the trunk is ImageNet's own, whose features many passes share."""
        arguments = json.loads(self.model_args)
        return all(arguments.get(k, "max") == "max" for k in TRUNK)


@dataclass(frozen=True)
class Experiment:
    """A table or figure: its settings by label, a label being what is varied: (("lr", 0.001),)."""

    name: str
    title: str
    model: str
    epochs: int
    settings: dict[tuple[tuple[str, Any], ...], Setting]
    paper: dict[str, list[tuple[dict[str, Any], float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pass:
    """Settings that train together, each for its epochs, with every seed in turn."""

    name: str
    settings: dict[Setting, int]


def experiments() -> dict[str, Experiment]:
    """Return all experiments by name, in the file's order."""
    plan = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    found = {}
    for name, entry in plan["experiments"].items():
        model = entry["model"]
        vary = entry.get("vary", {})
        if "cases" in entry:
            cases = {(("case", label),): changes for label, changes in entry["cases"].items()}
        else:
            grid = [dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())]
            cases = {tuple(changes.items()): changes for changes in grid}
        settings = {label: _setting(model, plan["base"][model], changes) for label, changes in cases.items()}
        found[name] = Experiment(name, entry["title"], model, entry["epochs"], settings, entry.get("paper", {}))
    return found


def _setting(model: str, base: dict[str, Any], changes: dict[str, Any]) -> Setting:
    arguments = base["model_args"] | {k: v for k, v in changes.items() if k != "lr"}
    lr = changes.get("lr", base["lr"])
    original = base["model_args"] | {"lr": base["lr"]}
    differing = {k: v for k, v in changes.items() if original.get(k) != v}
    name = ",".join([model, *(f"{k}={v}" for k, v in sorted(differing.items()))])
    return Setting(model, name, lr, base["batch_size"], json.dumps(arguments, sort_keys=True))


def passes(chosen: list[Experiment], most_epochs: int | None = None) -> list[Pass]:
    """Return the passes that train every setting of the chosen experiments once, as long as the longest asks for."""
    epochs: dict[Setting, int] = {}
    for experiment in chosen:
        for setting in experiment.settings.values():
            epochs[setting] = max(epochs.get(setting, 0), min(experiment.epochs, most_epochs or experiment.epochs))
    groups: dict[tuple[str, str], list[Setting]] = {}
    for setting in sorted(epochs, key=lambda s: -epochs[s]):  # a head that ends early leaves the pass to the others
        groups.setdefault(setting.trunk, []).append(setting)
    found = []
    for (model, trunk), members in groups.items():
        for low in range(0, len(members), HEADS[model]):
            part = {s: epochs[s] for s in members[low : low + HEADS[model]]}
            found.append(Pass(f"{model} {trunk}: {'; '.join(f'{s.name} x {e}' for s, e in part.items())}", part))
    return found

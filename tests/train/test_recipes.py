"""Recipes: what they hold, what they refuse, and that the manifest's tags were made by the recipe of their name."""

import dataclasses
import json
import math
from typing import Any

import pytest

from sqzoo.errors import ArgumentError, UnknownModelError
from sqzoo.train import RECIPES, Recipe, recipe
from sqzoo.weights import get_weights, read_manifest
from tests.support.sentences import assert_one_sentence

MADE = ("name", "commit", "device", "precision", "note")  # what an entry says besides the recipe's fields
# Tags that earlier code made, until they are made anew: the entry's note says how, and its commit can re-run it.
EARLIER = {f"{m}.{n}_cifar10" for m in ("sq1", "squeezenet_cifar", "fire_next") for n in ("ft", "paper", "held_out")}


def test_a_recipe_has_at_most_25_fields() -> None:
    assert len(dataclasses.fields(Recipe)) <= 24


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("model", RECIPES["paper_cifar10"])
def test_named_recipes_are_json(name: str, model: str) -> None:
    plan = recipe(name, model, seed=3)
    back = json.loads(json.dumps(plan.to_json()))
    assert back == plan.to_json() and back["seed"] == 3 and back["model"] == model
    assert Recipe(**back) == plan
    assert plan.select == {"paper_cifar10": "test", "ft_cifar10": "last"}.get(name, "val")
    assert (plan.hold_out > 0) == (name != "paper_cifar10")


@pytest.mark.parametrize("tag", read_manifest())
def test_the_manifest_names_the_recipe_of_each_tag(tag: str) -> None:
    """Field by field, for tags that a recipe of today made."""
    entry = get_weights(tag)
    made = {k: entry.recipe.get(k) for k in MADE}
    if "parent" in entry.recipe:  # compressed
        assert entry.recipe["size"] > 0 and entry.stored == "coded"
        return
    assert made["commit"] and made["device"] and made["precision"] in ("float32", "bfloat16")
    if tag in EARLIER and made["name"] is None:
        assert made["note"]
        return
    assert made["name"] == tag.partition(".")[2]
    fields = {k: v for k, v in entry.recipe.items() if k not in MADE}
    assert fields == recipe(made["name"], entry.architecture, seed=fields["seed"]).to_json()


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"layers": "some"}, "'some'"),
        ({"select": "train"}, "'train'"),
        ({"schedule": "linear"}, "'linear'"),
        ({"normalisation": "mnist"}, "'mnist'"),
        ({"select": "val"}, "hold_out is 0"),
        ({"sizes": ()}, "()"),
        ({"sizes": 64}, "64"),
        ({"sizes": None}, "None"),
        ({"sizes": [[32]]}, "[[32]]"),
        ({"sizes": ((224, 0),)}, "((224, 0),)"),
        ({"sizes": ((16, 1),)}, "((16, 1),)"),
        ({"sizes": ((99_999, 1),)}, "1024"),
        ({"sizes": ((32, 10**12),)}, "9999"),
        ({"sizes": ((32, 1), (64, 1))}, "several sizes"),
        ({"flip": True}, "flip"),
        ({"flip": 1}, "flip"),
        ({"pad": 4}, "pad"),
        ({"cutout": 8}, "cutout"),
        ({"cutout": 33}, "33"),
        ({"muon_lr": 0.1}, "muon_lr"),
        ({"batch_norm": True}, "batch_norm"),
        ({"prune": 1.0}, "1.0"),
        ({"prune": 0.5, "ema": 0.9}, "not both"),
        ({"batch_size": 0}, "0"),
        ({"batch_size": 1.5}, "1.5"),
        ({"batch_size": True}, "True"),
        ({"lr": "fast"}, "'fast'"),
        ({"lr": -1}, "-1"),
        ({"lr": math.nan}, "nan"),
        ({"lr": math.inf}, "inf"),
        ({"seed": -1}, "-1"),
        ({"seed": "x"}, "'x'"),
        ({"start": 5}, "5"),
        ({"model_args": 5}, "5"),
    ],
)
def test_recipes_that_cannot_be_meant_are_refused(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Recipe("sq1", **changes)
    assert_one_sentence(caught.value, part)


def test_unknown_recipe_model_and_field_suggest_the_nearest() -> None:
    with pytest.raises(ArgumentError, match=r"'papr_cifar10'.*Did you mean 'paper_cifar10'"):
        recipe("papr_cifar10", "sq1")
    with pytest.raises(UnknownModelError, match=r"'sq2'.*Did you mean 'sq1'"):
        recipe("paper_cifar10", "sq2")
    with pytest.raises(ArgumentError, match=r"'batchsize'.*Did you mean 'batch_size'"):
        recipe("paper_cifar10", "sq1", batchsize=3)
    with pytest.raises(ArgumentError, match="compressed, not trained"):
        recipe("tiny_cifar10", "sq1")

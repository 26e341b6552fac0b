"""Training: a recipe says what, the loop how; a run folder is what comes out."""

from sqzoo.train.evaluate import Metrics, evaluate, logits, metrics
from sqzoo.train.loop import train, train_together
from sqzoo.train.recipe import Recipe
from sqzoo.train.recipes import RECIPES, recipe

__all__ = ["RECIPES", "Metrics", "Recipe", "evaluate", "logits", "metrics", "recipe", "train", "train_together"]

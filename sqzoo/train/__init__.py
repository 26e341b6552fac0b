"""Training: a recipe says what, the loop how; a run folder is what comes out."""

from sqzoo.train.evaluation import Metrics, evaluate, logits, metrics
from sqzoo.train.loop import train
from sqzoo.train.recipes import RECIPES, Recipe, recipe

__all__ = ["RECIPES", "Metrics", "Recipe", "evaluate", "logits", "metrics", "recipe", "train"]

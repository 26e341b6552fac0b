"""Training by recipes, into a run folder."""

from sqzoo.train.loop import train
from sqzoo.train.recipes import RECIPES, Recipe, recipe

__all__ = ["RECIPES", "Recipe", "recipe", "train"]

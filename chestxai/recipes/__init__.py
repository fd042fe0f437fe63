"""Recipes: how the text is treated during fine-tuning. `recipe` has the settings, `networks` what they do."""
# ruff: noqa: F401, I001 - this file only re-exports

from chestxai.recipes.networks import add_adapters, add_projection, add_tokens, between, cosine_distance, layer_names
from chestxai.recipes.networks import learning_text, merge_adapters, randomise, weight_distance
from chestxai.recipes.recipe import ADAPTED, NO_FINDING, Recipe, Schedule, Settings, attach, split, words

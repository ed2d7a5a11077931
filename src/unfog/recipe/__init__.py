"""Recipes: the typed description of a run."""

"""Recipes: a run described by a small YAML file."""

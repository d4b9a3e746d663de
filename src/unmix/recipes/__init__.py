"""Recipes that ship: YAML files of settings that state only what they change."""

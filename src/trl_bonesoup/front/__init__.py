"""Fronts: what the soups of a grid of preferences reach, measured, summarised and drawn."""

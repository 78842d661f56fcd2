"""Reward functions in TRL's protocol: names, checks, normalisation, and scorers that work offline."""

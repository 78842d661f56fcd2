"""Soups: loading them, steering them by a preference, and writing them out."""

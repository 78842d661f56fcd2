"""Compares a merge with the soup.json beside its backbones: their order, and what they were trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mergekit_bonesoup.coefficients import MergeRefused
from trl_bonesoup.errors import WeightsError
from trl_bonesoup.weights import SIMPLEX_TOLERANCE, FloatArray, check_combination_weights

_FILE = "soup.json"
_MAX_BYTES = 2**20
"""Of a soup.json that is read."""

__all__ = ["check_recorded"]


def check_recorded(models: Sequence[Any], weights: FloatArray | None) -> None:
    """Check that backbones of one soup.json stand in its order, and that B is the one that it records.

    Backbones of no soup.json on this machine, or of several, are taken as they come.

    Args:
        models: references of the backbones, in order; plain paths of files have no soup.json.
        weights: B that is given; None if it differs from tensor to tensor.

    Raises:
        MergeRefused: showing both sides.
    """
    if any(isinstance(model, str) for model in models):
        return
    folders = [Path((model.lora or model.model).path).resolve() for model in models]
    if len({folder.parent for folder in folders}) != 1:
        return
    file = folders[0].parent / _FILE
    recorded = _read(file)
    if recorded is None:
        return
    names, trained = recorded
    places = [(file.parent / name).resolve() for name in names]
    if not all(folder in places for folder in folders):
        return
    if folders != places:
        raise MergeRefused(
            f"{file} has the backbones {names}, which belong to the columns of B in this order, but the models are "
            f"{[folder.name for folder in folders]}. List all of them in that order."
        )
    if weights is not None and not np.allclose(weights, trained, rtol=0, atol=SIMPLEX_TOLERANCE):
        raise MergeRefused(
            f"these backbones were trained on other combination weights: {file} has {trained.tolist()}, and "
            f"{weights.round(6).tolist()} are given."
        )


def _read(file: Path) -> tuple[list[str], FloatArray] | None:
    try:
        if file.stat().st_size > _MAX_BYTES:
            return None
        record = json.loads(file.read_text(encoding="utf-8"))
        names = [str(backbone["path"]) for backbone in record["backbones"]]
        return names, check_combination_weights(record["combination_weights"])
    except (OSError, ValueError, KeyError, TypeError, WeightsError):
        return None

"""The coefficients of one merge, from the parameters that mergekit resolved for it; refuses what has none."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from typing import Any

import click
import numpy as np

from trl_bonesoup.errors import ConfigurationError, WeightsError
from trl_bonesoup.weights import (
    SIMPLEX_TOLERANCE,
    FloatArray,
    base_share,
    check_combination_weights,
    circulant_weights,
    merging_coefficients,
)

_PERCENT = 2.0
"""A preference above it is taken for a percentage, one below for a preference against another objective."""

__all__ = ["MergeParameters", "MergeRefused", "combination_weights", "soup_coefficients"]


class MergeRefused(click.ClickException, ConfigurationError):
    """A configuration that `bone_soup` does not merge; mergekit's commands show it as one line."""

    def __init__(self, message: str):
        super().__init__(f"bone_soup: {message}")


@dataclass(frozen=True)
class MergeParameters:
    """What mergekit resolved for one tensor; the per-model tuples are in the order of the objectives."""

    models: tuple[str, ...]
    """References of the N backbones, for messages."""
    preference: tuple[float, ...]
    extrapolation: tuple[float, ...]
    beta: float | None = None
    combination_weights: str = ""
    allow_negative_preference: bool = False
    has_base: bool = False


@functools.lru_cache(maxsize=4096)
def soup_coefficients(parameters: MergeParameters) -> tuple[tuple[float, ...], float]:
    """Return the merging coefficients λ of the N backbones and the coefficient of the base model.

    The latter is 1 - Σλ with extrapolation, and exactly 0 without or where only rounding is left.

    Raises:
        MergeRefused: naming the model and the key that mergekit read the value from.
    """
    n = len(parameters.models)
    if n < 2:
        raise MergeRefused(f"needs at least 2 models besides base_model, one for each objective; got {n}.")
    _check_preference(parameters)
    _check_extrapolation(parameters)
    weights = combination_weights(parameters)
    coefficients = merging_coefficients(
        weights,
        parameters.preference,
        parameters.extrapolation,
        allow_negative=parameters.allow_negative_preference,
    )
    share = base_share(coefficients) if any(parameters.extrapolation) else 0.0
    return tuple(coefficients.tolist()), share


def _check_preference(parameters: MergeParameters) -> None:
    for model, value in zip(parameters.models, parameters.preference, strict=True):
        if not math.isfinite(value):
            raise MergeRefused(f"the preference of {model} must be finite; got {value}.")
        if not parameters.allow_negative_preference and not 0.0 <= value <= 1.0:
            raise MergeRefused(
                f"the preference of {model} must be in [0, 1]; got {value}. "
                + (
                    f"For {value:g} % write {value / 100:g}."
                    if value > _PERCENT
                    else "For a preference against an objective set allow_negative_preference: true under parameters."
                )
            )
    total = float(np.sum(parameters.preference))
    if abs(total - 1.0) > SIMPLEX_TOLERANCE:
        given = ", ".join(
            f"{model}: {value}" for model, value in zip(parameters.models, parameters.preference, strict=True)
        )
        raise MergeRefused(f"the preference of all models must sum to 1; got {given}, which sum to {total:.8g}.")


def _check_extrapolation(parameters: MergeParameters) -> None:
    for model, value in zip(parameters.models, parameters.extrapolation, strict=True):
        if not 0.0 <= value < 1.0:
            raise MergeRefused(f"the extrapolation of {model} must be in [0, 1); got {value}.")
    if any(parameters.extrapolation) and not parameters.has_base:
        raise MergeRefused("extrapolation leads away from base_model, and there is none: give base_model.")


def combination_weights(parameters: MergeParameters) -> FloatArray:
    """Return B, shape (N, N), as it is given in either way.

    Raises:
        MergeRefused: if it is given in both ways or none, or is no B of N models.
    """
    n = len(parameters.models)
    given = (parameters.beta is not None) + (parameters.combination_weights != "")
    if given != 1:
        raise MergeRefused(
            "needs exactly one of beta and combination_weights under parameters: "
            f"what the backbones were trained with; got {'both' if given else 'neither'}."
        )
    if parameters.beta is not None:
        try:
            return circulant_weights(n, parameters.beta)
        except WeightsError as error:
            raise MergeRefused(str(error)) from error
    try:
        values = json.loads(parameters.combination_weights)
    except (ValueError, RecursionError) as error:
        raise MergeRefused(
            'combination_weights must be the matrix B as JSON text, such as "[[0.7, 0.3], [0.3, 0.7]]" (one row '
            f"for each objective, one column for each model); got {parameters.combination_weights!r:.200}: {error}"
        ) from error
    try:
        weights = check_combination_weights(values)
    except WeightsError as error:
        hint = (
            " Its rows sum to 1: it may be transposed; column j belongs to model j." if _is_transposed(values) else ""
        )
        raise MergeRefused(f"combination_weights: {error}{hint}") from error
    if len(weights) != n:
        raise MergeRefused(f"combination_weights is for {len(weights)} models; {n} are merged.")
    return weights


def _is_transposed(values: Any) -> bool:
    """Return whether what is no B would be one with its rows as columns."""
    try:
        check_combination_weights(np.asarray(values).T)
    except (TypeError, ValueError, OverflowError):
        return False
    return True

"""Checks of the trainer's inputs, made before a model is loaded."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.training.config import MultiRewardPPOConfig
from trl_bonesoup.weights import FloatArray, check_column, check_combination_weights


def training_column(combination_weights: ArrayLike | None, backbone: int | None, n: int) -> FloatArray:
    """Return the column of B, shape (n,), that one backbone is trained on.

    Args:
        combination_weights: B (n, n), one column (n,), or `None` for equal weights.
        backbone: index of the column of B; `None` with a column.
        n: number of objectives.

    Raises:
        ConfigurationError, WeightsError: if they do not fit together.
    """
    if combination_weights is None:
        if backbone is not None:
            raise ConfigurationError(f"backbone={backbone} needs combination_weights, whose column it names.")
        combination_weights = [1.0 / n] * n
    ndim = np.ndim(combination_weights)
    if ndim != 2:
        if backbone is not None:
            raise ConfigurationError(
                f"combination_weights is one column already; backbone={backbone} needs the whole matrix."
            )
        return check_column(combination_weights, n)
    matrix = check_combination_weights(combination_weights)
    if len(matrix) != n:
        raise ConfigurationError(f"combination_weights has {len(matrix)} rows for {n} reward functions.")
    if isinstance(backbone, bool) or not isinstance(backbone, int) or not 0 <= backbone < n:
        raise ConfigurationError(
            f"backbone must say which column of the combination weights to train on, 0 to {n - 1}; got {backbone!r}."
        )
    return matrix[:, backbone]


def check_normalization(args: MultiRewardPPOConfig, n: int) -> None:
    """Raise `ConfigurationError` unless fixed score statistics are usable for n objectives."""
    for setting in ("score_mean", "score_std"):
        values = getattr(args, setting)
        if values is not None and len(values) != n:
            raise ConfigurationError(f"{setting} needs one number for each of the {n} objectives; got {values}.")
    if args.score_std is not None and min(args.score_std) <= 0:
        raise ConfigurationError(f"Every score_std must be above 0; got {args.score_std}.")


def check_dataset(dataset: Any, args: MultiRewardPPOConfig) -> None:
    """Raise `ConfigurationError` for a data set without prompts, or with too few for a single rollout batch."""
    if not hasattr(dataset, "column_names") or not hasattr(dataset, "__len__"):
        return  # missing, iterable, or not a dataset: GRPOTrainer says so
    if "prompt" not in dataset.column_names:
        raise ConfigurationError(f"train_dataset needs a column 'prompt'; it has {dataset.column_names}.")
    needed = args.generation_batch_size // args.num_generations
    if len(dataset) < needed:
        raise ConfigurationError(
            f"train_dataset has {len(dataset)} prompts, fewer than the {needed} of one rollout batch, so that no step "
            "would be trained. Use more prompts, or lower per_device_train_batch_size or gradient_accumulation_steps."
        )

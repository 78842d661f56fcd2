"""What selections and comparisons check before they train anything, and how they write what they were asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from trl_bonesoup.errors import ConfigurationError, FrontError
from trl_bonesoup.front.metrics import finite_array
from trl_bonesoup.weights import FloatArray

if TYPE_CHECKING:
    from trl_bonesoup.training.config import MultiRewardPPOConfig

__all__ = [
    "check_functions",
    "check_one_process",
    "check_reference",
    "check_same_request",
    "check_seeds",
    "write_json",
]


def check_functions(reward_funcs: Sequence[Any]) -> None:
    """Raise `ConfigurationError` for rewards that only a trainer can call."""
    for func in reward_funcs:
        if isinstance(func, str) or hasattr(func, "parameters") or not callable(func):
            raise ConfigurationError(
                "Here rewards are measured after training, too, so each objective needs a function "
                f"func(prompts=…, completions=…); got {func!r:.100}. Wrap a reward model in a ClassifierReward."
            )


def check_one_process(args: MultiRewardPPOConfig) -> None:
    """Raise `ConfigurationError` if several processes train together: one alone can measure."""
    if args.distributed_state.num_processes > 1:
        raise ConfigurationError(
            "Measuring goes on in one process. With several, train with `seek` (its stop_after pauses at a step), and "
            "measure with `evaluate_front`."
        )


def check_seeds(seeds: Sequence[int]) -> list[int]:
    """Return training seeds after checking that they are different whole numbers, at least one."""
    chosen = list(seeds)
    if not chosen or len(set(chosen)) != len(chosen) or not all(isinstance(seed, int) and seed >= 0 for seed in chosen):
        raise ConfigurationError(f"seeds must be different whole numbers from 0, at least one; got {chosen}.")
    return chosen


def check_reference(reference: ArrayLike, n: int) -> FloatArray:
    """Return a reference point as an array of shape (n,), or raise `FrontError`."""
    reference_N = finite_array(reference, "reference point")
    if reference_N.shape != (n,):
        raise FrontError(f"The reference point needs one number for each of the {n} objectives; got {reference!r}.")
    return reference_N


def check_same_request(file: Path, request: Mapping[str, Any]) -> None:
    """Check that a folder is new, or was asked for the same.

    Args:
        file: where `write_json` has put the request, if it was there.
        request: of now.

    Raises:
        ConfigurationError: naming what differs.
    """
    from trl_bonesoup.training.run import differences

    if not file.is_file():
        return
    try:
        saved = dict(json.loads(file.read_text(encoding="utf-8"))["request"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{file} cannot be read ({error}); choose another folder.") from error
    if found := differences(saved, dict(request)):
        raise ConfigurationError(
            f"{file.parent} was begun with other settings ({'; '.join(found)}). Choose another output_dir, or repeat "
            "the settings to continue it."
        )


def write_json(file: Path, record: Mapping[str, Any]) -> Path:
    """Write a record completely or not at all, and return its path."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    beside.write_text(text + "\n", encoding="utf-8")
    return beside.replace(file)

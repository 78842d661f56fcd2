"""The settings of an evaluation, which everything that is compared has to share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trl_bonesoup.errors import ConfigurationError

__all__ = ["EvaluationSettings", "recorded_decoding"]


@dataclass(frozen=True)
class EvaluationSettings:
    """How prompts are answered.

    Args:
        samples_per_prompt: answers per prompt and model.
        max_new_tokens: longest answer.
        temperature: 0 is greedy.
        batch_size: answers generated at a time. Answers do not depend on it.
        seed: of the random numbers.

    Raises:
        ConfigurationError: for a setting out of range.
    """

    samples_per_prompt: int = 1
    max_new_tokens: int = 128
    temperature: float = 1.0
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("samples_per_prompt", 1), ("max_new_tokens", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigurationError(f"{name} must be a whole number, at least {least}; got {value!r}.")
        if not 0.0 <= self.temperature < float("inf"):
            raise ConfigurationError(
                f"temperature must be a finite number, at least 0 (0 is greedy); got {self.temperature!r}."
            )

    @classmethod
    def of_training(cls, training: Mapping[str, Any], **given: Any) -> EvaluationSettings:
        """Return settings that answer as in training, where that is recorded.

        Args:
            training: its settings, as soup.json records them.
            given: settings that are known; None counts as not given.

        Raises:
            ConfigurationError: for a setting out of range.
        """
        known = {name: value for name, value in given.items() if value is not None}
        return cls(**{**recorded_decoding(training), **known})


def recorded_decoding(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return `max_new_tokens` and `temperature` of a training, as far as its settings in soup.json say them."""
    length, temperature = training.get("max_completion_length"), training.get("temperature")
    found: dict[str, Any] = {}
    if isinstance(length, int) and not isinstance(length, bool) and length >= 1:
        found["max_new_tokens"] = length
    if isinstance(temperature, (int, float)) and not isinstance(temperature, bool) and 0.0 <= temperature < math.inf:
        found["temperature"] = float(temperature)
    return found

"""The settings of an evaluation, which everything that is compared has to share."""

from __future__ import annotations

from dataclasses import dataclass

from trl_bonesoup.errors import ConfigurationError

__all__ = ["EvaluationSettings"]


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

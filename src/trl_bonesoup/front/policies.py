"""Policies: what a front can be measured on, which is anything that answers prompts differently for each preference.

Letters: K preferences, M ≥ K models (those of the preferences, then markers), N objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from trl_bonesoup.errors import ConfigurationError, WeightsError
from trl_bonesoup.front.metrics import check_preferences
from trl_bonesoup.front.prompts import EncodedPrompts, Prompts
from trl_bonesoup.front.settings import EvaluationSettings
from trl_bonesoup.weights import FloatArray, check_preference

if TYPE_CHECKING:
    from transformers import LogitsProcessor

__all__ = ["Answer", "Answering", "Policies", "Row", "answer_with", "preferences_of_models", "read_preferences"]


@dataclass(frozen=True)
class Row:
    """One answer to be given: by which of the M models, to which prompt, and which sample of it."""

    model: int
    prompt: int
    sample: int


@dataclass(frozen=True)
class Answer:
    """One answer: its text, and its tokens without the end of text where they are known."""

    text: str
    token_ids: list[int] | None


class Answering(Protocol):
    """Policies while they answer the prompts of one evaluation.

    Attributes:
        groups: the M models, split into those whose rows may share a batch; groups are answered in this order.
        order: the prompts, in the order that pads batches least.
        texts: what each prompt was to the models.
    """

    groups: Sequence[Sequence[int]]
    order: Sequence[int]
    texts: Sequence[str]

    def __call__(self, batch: Sequence[Row], seeds: Sequence[int]) -> list[Answer]:
        """Answer a batch of rows of one group. Each row's seed is shared by all models, and by no other prompt."""
        ...


class Policies(Protocol):
    """M models that answer prompts, one for each of K preferences and others to compare them with.

    Attributes:
        objectives: names of the N objectives, in order.
        preferences_KN: what the first K models are for.
        coefficients_KN: their merging coefficients λ; None where nothing is merged.
        markers: labels of the other M - K models.
    """

    objectives: tuple[str, ...]
    preferences_KN: FloatArray
    coefficients_KN: FloatArray | None
    markers: tuple[str, ...]

    def answering(self, prompts: Prompts, settings: EvaluationSettings) -> AbstractContextManager[Answering]:
        """Check that these prompts can be answered, and get ready; at the end, leave everything as it was."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Return all that the answers depend on besides prompts and settings, in what JSON can hold.

        front.json records it, and an evaluation is only continued if it is the same.
        """
        ...


def read_preferences(preferences: Any, read: Callable[[Any], FloatArray]) -> FloatArray:
    """Return K different preferences, shape (K, N), each read by `read`.

    Raises:
        ConfigurationError: if they are no list.
        WeightsError: for an invalid one.
        FrontError: if two are equal.
    """
    if isinstance(preferences, (str, Mapping)) or not len(preferences):
        raise ConfigurationError(f"preferences must be a list of at least one preference; got {preferences!r}.")
    preferences_KN = np.stack([read(preference) for preference in preferences])
    return check_preferences(preferences_KN, np.zeros_like(preferences_KN))


def preferences_of_models(models: Sequence[Any], preferences: Any, objectives: Sequence[str]) -> FloatArray:
    """Return the preferences (K, N) of K models, as numbers in the order of the objectives or by name.

    By name, what is left out is 0; the name of an objective alone puts all weight on it.

    Raises:
        ConfigurationError: if there is not one preference for each model.
        WeightsError: for an unknown name or a preference off the simplex.
        FrontError: if two are equal.
    """
    preferences_KN = read_preferences(preferences, lambda preference: _preference_by_name(preference, objectives))
    if len(models) != len(preferences_KN):
        raise ConfigurationError(
            f"Each model needs the preference that it is for; got {len(models)} models and {len(preferences_KN)} "
            "preferences."
        )
    return preferences_KN


def _preference_by_name(preference: Any, objectives: Sequence[str]) -> FloatArray:
    if isinstance(preference, str):
        preference = {preference: 1.0}
    if isinstance(preference, Mapping):
        if unknown := sorted(set(preference) - set(objectives)):
            raise WeightsError(f"Unknown objective(s) {unknown} in the preference; there are {list(objectives)}.")
        preference = [preference.get(name, 0.0) for name in objectives]
    return check_preference(preference, len(objectives))


def answer_with(
    model: Any,
    prompts: EncodedPrompts,
    batch: Sequence[Row],
    seeds: Sequence[int],
    settings: EvaluationSettings,
    processors: Sequence[LogitsProcessor] = (),
) -> list[Answer]:
    """Answer a batch with a language model that is ready for its rows, sampling from the processed logits."""
    from trl_bonesoup.front.sampling import generate

    token_ids = generate(
        model,
        prompts.tokenizer,
        [prompts.token_ids[row.prompt] for row in batch],
        seeds,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        processors=processors,
    )
    return [Answer(text, ids) for text, ids in zip(prompts.decode(token_ids), token_ids, strict=True)]

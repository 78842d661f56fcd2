"""Models that an OpenAI-compatible endpoint serves as policies, such as vLLM with one adapter for each preference."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import ArrayLike

from trl_bonesoup.endpoint import Connection, Endpoint, chat_text, completion_text
from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.front.policies import Answer, Row, preferences_of_models
from trl_bonesoup.front.prompts import Prompts
from trl_bonesoup.front.settings import EvaluationSettings
from trl_bonesoup.rewards.texts import conversation
from trl_bonesoup.weights import FloatArray

TIMEOUT = 600.0
"""Seconds for one answer, if nothing else is said."""

_SEEDS = 2**31
"""Servers differ in how many bits a seed may have; all take this many."""

__all__ = ["TIMEOUT", "ServedPolicies"]


class ServedPolicies:
    """One served model for each of K preferences.

    Conversations go to chat/completions and texts to completions, each with its seed. Whether a seed
    gives the same random numbers to all models is up to the server. Nothing is known of the answers'
    tokens, so reward functions get no completion_ids.

    Args:
        endpoint: where to ask, or its address, which is asked without a key.
        models: what the endpoint calls the K models.
        preferences: shape (K, N), or K preferences by objective name: what each model is for.
        objectives: names of the N objectives.
        markers: more models, by label.
        extra_body: what else the requests say, such as {"top_k": -1}.

    Raises:
        ConfigurationError: if there is not one preference for each model.
        WeightsError: for an invalid preference.
        FrontError: if preferences repeat.
    """

    coefficients_KN: FloatArray | None = None

    def __init__(
        self,
        endpoint: Endpoint | str,
        models: Sequence[str],
        preferences: ArrayLike | Sequence[Mapping[str, float]],
        objectives: Sequence[str],
        *,
        markers: Mapping[str, str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        self.endpoint = Endpoint(endpoint, timeout=TIMEOUT) if isinstance(endpoint, str) else endpoint
        self.objectives: tuple[str, ...] = tuple(objectives)
        self.preferences_KN: FloatArray = preferences_of_models(models, preferences, self.objectives)
        self.markers: tuple[str, ...] = tuple(markers or ())
        self.models = [*models, *(markers or {}).values()]
        self.extra_body = dict(extra_body or {})

    @contextlib.contextmanager
    def answering(self, prompts: Prompts, settings: EvaluationSettings) -> Iterator[_ServedAnswering]:
        """Check the prompts and that the key is there."""
        self.endpoint.key()
        for index, prompt in enumerate(prompts.given):
            if not prompt:
                raise ConfigurationError(f"Prompt {index} is empty.")
            if prompts.conversational and prompt[-1]["role"] == "assistant" and not self._continues():
                raise ConfigurationError(
                    f"Prompt {index} ends with a message of the assistant, and OpenAI's protocol cannot ask to "
                    "continue one. If the server can, say how in extra_body; for vLLM, "
                    '{"continue_final_message": true, "add_generation_prompt": false}.'
                )
        yield _ServedAnswering(self, prompts, settings)

    def provenance(self) -> dict[str, Any]:
        """Return where the models were asked; what they are, only the server knows."""
        return {
            "method": "endpoint",
            "base_url": self.endpoint.base_url,
            "models": list(self.models),
            "extra_body": self.extra_body,
        }

    def _continues(self) -> bool:
        return bool(self.extra_body.get("continue_final_message"))


class _ServedAnswering:
    def __init__(self, policies: ServedPolicies, prompts: Prompts, settings: EvaluationSettings) -> None:
        self._policies, self._prompts, self._settings = policies, prompts, settings
        self.groups: Sequence[Sequence[int]] = [range(len(policies.models))]
        self.order: Sequence[int] = range(len(prompts))
        self.texts: Sequence[str] = [conversation(prompt) for prompt in prompts.given]

    def __call__(self, batch: Sequence[Row], seeds: Sequence[int]) -> list[Answer]:
        asks = [functools.partial(self._ask, row, seed) for row, seed in zip(batch, seeds, strict=True)]
        texts = asyncio.run(self._policies.endpoint.converse(asks))
        # A reply may hold half of a surrogate pair, which no file can.
        return [Answer(text.encode(errors="replace").decode(), None) for text in texts]

    async def _ask(self, row: Row, seed: int, connection: Connection) -> str:
        given = self._prompts.given[row.prompt]
        body = {
            "model": self._policies.models[row.model],
            "max_tokens": self._settings.max_new_tokens,
            "temperature": float(self._settings.temperature),
            "top_p": 1.0,
            "seed": seed % _SEEDS,
            **self._policies.extra_body,
        }
        if self._prompts.conversational:
            return await connection.post("chat/completions", {"messages": given, **body}, chat_text)
        return await connection.post("completions", {"prompt": given, **body}, completion_text)

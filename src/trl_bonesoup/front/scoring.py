"""The reward functions of an evaluation: one for each objective, called as TRL's trainers call them."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.front.policies import Answer, Row
from trl_bonesoup.front.prompts import Prompts
from trl_bonesoup.rewards.protocol import call_reward
from trl_bonesoup.rewards.spec import reward_spec

RewardFunctions = Sequence[Callable[..., Any]] | Mapping[str, Callable[..., Any]]

__all__ = ["RewardFunctions", "Scorer", "reward_functions"]


class Scorer:
    """The scores of answers to some prompts by one reward function.

    Args:
        name: of the objective.
        function: in TRL's protocol.
        prompts: what was asked, with the data set's other columns.

    Attributes:
        fingerprint: all that scores depend on besides the answers, as far as it can be told: the
            function's settings and source, and the columns.
    """

    def __init__(self, name: str, function: Callable[..., Any], prompts: Prompts) -> None:
        self.name, self._function, self._prompts = name, function, prompts
        self.fingerprint = self._fingerprint()

    def __call__(self, batch: Sequence[Row], answers: Sequence[Answer]) -> list[float | None]:
        """Return one score or None for each answer.

        Raises:
            RewardError: if the function raises, or does not return one finite score (or None) per answer.
        """
        prompts = self._prompts
        inputs = {
            **{name: [column[row.prompt] for row in batch] for name, column in prompts.columns.items()},
            "prompts": [prompts.given[row.prompt] for row in batch],
            "completions": [prompts.completion(answer.text) for answer in answers],
        }
        if all(answer.token_ids is not None for answer in answers):
            inputs["completion_ids"] = [answer.token_ids for answer in answers]
        return call_reward(self._function, self.name, **inputs)

    def _fingerprint(self) -> str:
        told = [reward_spec(self._function), _source(self._function), self._prompts.columns]
        text = json.dumps(told, ensure_ascii=False, default=str)
        return f"{self.name} {hashlib.sha256(text.encode(errors='replace')).hexdigest()}"


def reward_functions(
    given: RewardFunctions, objectives: tuple[str, ...], names: Sequence[str] | None
) -> dict[str, Callable[..., Any]]:
    """Return the reward functions by the front's names of the objectives, in the order of the policies.

    Args:
        given: in that order, or by the policies' names.
        objectives: the policies' names.
        names: other names for the front.

    Raises:
        ConfigurationError: if there is not one callable for each objective.
    """
    if isinstance(given, Mapping):
        if set(given) != set(objectives):
            raise ConfigurationError(
                f"reward_funcs must have the objectives {list(objectives)} as keys; got {list(given)}."
            )
        functions = [given[name] for name in objectives]
    else:
        functions = list(given)
    shown = tuple(names) if names is not None else objectives
    if not len(functions) == len(shown) == len(objectives) or len(set(shown)) != len(shown):
        raise ConfigurationError(
            f"The objectives are {list(objectives)}, and each needs one reward function, in that order, "
            f"under different names; got {len(functions)} functions and the names {list(shown)}."
        )
    if set(shown) == set(objectives) and shown != objectives:
        raise ConfigurationError(
            f"objective_names {list(shown)} are those of the soup or policies in another order; preferences and "
            f"reward functions go by the order {list(objectives)}."
        )
    for name, function in zip(shown, functions, strict=True):
        if not callable(function):
            raise ConfigurationError(
                f"The reward function of '{name}' must be callable as func(prompts=…, completions=…); got {function!r}."
            )
    return dict(zip(shown, functions, strict=True))


def _source(function: Any) -> list[str]:
    """Return the source of a function or of an instance's class, and what plain values a closure holds."""
    while isinstance(function, functools.partial):
        function = function.func
    held = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    try:
        source = inspect.getsource(function if inspect.isroutine(function) else type(function))
    except (OSError, TypeError):
        source = ""
    return [source, *(repr(value) for value in held if isinstance(value, (str, int, float, bool, tuple)))]

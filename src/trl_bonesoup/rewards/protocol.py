"""TRL's reward-function protocol: names of objectives, text of completions, and the checks on every score.

A reward function is called with `prompts`, `completions` and the data set's other columns, all of
them lists, and returns one number per completion, or `None` where it does not apply. Completions
are strings, or for conversational prompts lists of messages.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from trl_bonesoup.errors import ConfigurationError, RewardError


class RewardFunction(Protocol):
    """One objective: `func(prompts=…, completions=…, **columns)` returns one score per completion."""

    def __call__(self, *, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        """Score each completion."""
        ...


def completion_texts(completions: Sequence[Any]) -> list[str]:
    """Return the text of each completion, whether it is a string or a list of messages.

    >>> completion_texts(["plain", [{"role": "assistant", "content": "chat"}]])
    ['plain', 'chat']
    """
    return [
        completion if isinstance(completion, str) else "".join(str(message["content"]) for message in completion)
        for completion in completions
    ]


def reward_name(reward_func: Any) -> str:
    """Return the name TRL would log: the function's name, or the last part of a model's id."""
    if isinstance(reward_func, str):
        return reward_func.rstrip("/").split("/")[-1]
    model_id: str | None = getattr(getattr(reward_func, "config", None), "_name_or_path", None)
    if model_id:
        return model_id.rstrip("/").split("/")[-1]
    func = _unwrapped(reward_func)
    name: str | None = getattr(func, "__name__", None)
    return name or type(func).__name__


def objective_names(reward_funcs: Sequence[Any], names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return one distinct name per objective: `names` if given, else those of the reward functions.

    Raises:
        ConfigurationError: if there are none, the counts differ, or two names are equal.
    """
    if not reward_funcs:
        raise ConfigurationError("No reward function was given; pass at least one in reward_funcs.")
    if names is not None and len(names) != len(reward_funcs):
        raise ConfigurationError(f"{len(names)} objective names were given for {len(reward_funcs)} reward functions.")
    chosen = tuple(names) if names is not None else tuple(reward_name(func) for func in reward_funcs)
    if len(set(chosen)) != len(chosen):
        raise ConfigurationError(
            f"Objectives need distinct names, since preferences and metrics go by them; got {list(chosen)}. "
            "Pass objective_names=[…]."
        )
    return chosen


def check_scores(scores: Any, count: int, name: str) -> list[float | None]:
    """Return the scores as finite floats (or `None`), one for each of `count` completions.

    Raises:
        RewardError: naming the objective, the sample and what was returned instead.
    """
    if isinstance(scores, (str, bytes, dict)) or not hasattr(scores, "__iter__"):
        raise RewardError(
            f"Reward '{name}' must return a list with one score per completion; got {type(scores).__name__}."
        )
    values = scores.tolist() if hasattr(scores, "tolist") else list(scores)
    if len(values) != count:
        raise RewardError(f"Reward '{name}' returned {len(values)} scores for {count} completions.")
    checked: list[float | None] = []
    for index, value in enumerate(values):
        if value is None:
            checked.append(None)
            continue
        if isinstance(value, (str, bytes)):
            raise RewardError(
                f"Reward '{name}' returned the text {value!r} for completion {index}; a number is needed."
            )
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise RewardError(
                f"Reward '{name}' returned {type(value).__name__} for completion {index}; a number is needed."
            ) from error
        if not math.isfinite(number):
            raise RewardError(
                f"Reward '{name}' returned {number} for completion {index}; scores must be finite. "
                "Return None where the objective does not apply."
            )
        checked.append(number)
    return checked


def checked_reward(reward_func: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Wrap a callable so that whatever goes wrong in it stops the run with its name, and nothing becomes a number.

    The wrapper is called `name`, so that TRL logs the objective under it, and is a coroutine
    function if `reward_func` is one.
    """

    def describe(error: Exception) -> RewardError:
        return RewardError(f"Reward '{name}' raised {type(error).__name__}: {error}")

    if _is_async(reward_func):

        async def score_async(*, completions: list, **columns: Any) -> list[float | None]:
            try:
                scores = await reward_func(completions=completions, **columns)
            except Exception as error:
                raise describe(error) from error
            return check_scores(scores, len(completions), name)

        score_async.__name__ = name
        return score_async

    def score(*, completions: list, **columns: Any) -> list[float | None]:
        try:
            scores = reward_func(completions=completions, **columns)
        except Exception as error:
            raise describe(error) from error
        return check_scores(scores, len(completions), name)

    score.__name__ = name
    return score


def call_reward(reward_func: Callable[..., Any], name: str, **columns: Any) -> list[float | None]:
    """Call one reward function outside of a trainer, with the same checks; coroutines are awaited."""
    checked = checked_reward(reward_func, name)
    if _is_async(reward_func):
        return asyncio.run(checked(**columns))
    return checked(**columns)


def _is_async(reward_func: Any) -> bool:
    func = _unwrapped(reward_func)
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(type(func).__call__)


def _unwrapped(func: Any) -> Any:
    while isinstance(func, functools.partial):
        func = func.func
    return func

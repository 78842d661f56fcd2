"""TRL's reward-function protocol: names of objectives, text of completions, and the checks on every score.

A reward function is called with `prompts`, `completions` and the data set's other columns, all of
them lists, and returns one number per completion, or `None` where it does not apply. Completions
are strings, or for conversational prompts lists of messages.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

from trl_bonesoup.errors import ConfigurationError, RewardError
from trl_bonesoup.rewards.deadline import OutOfTime, call_within, named_when_slow
from trl_bonesoup.rewards.dense import DenseScore

_SEARCH_SECONDS = 10.0
"""How long to look for the one completion on which a reward function raises."""

_LARGEST = 3.4028234663852886e38
"""Of a number in float32, in which trainers keep scores; a larger one would become infinite there."""


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


def check_scores(scores: Any, completions: Sequence[Any], name: str) -> list[float | None]:
    """Return the scores as finite floats (a `DenseScore` stays one) or `None`, one for each completion.

    Raises:
        RewardError: naming the objective, the sample and what was returned instead.
    """
    unordered = isinstance(scores, (str, bytes, dict, set, frozenset))
    if unordered or not hasattr(scores, "__iter__") or getattr(scores, "shape", None) == ():
        raise RewardError(
            f"Reward '{name}' must return a list with one score per completion; got {type(scores).__name__}."
        )
    try:
        values = scores.tolist() if hasattr(scores, "tolist") else list(scores)
    except Exception as error:  # of a generator's own code, or of a tensor without data
        raise RewardError(
            f"Reward '{name}' raised {type(error).__name__} while its scores were read: {error}"
        ) from error
    if len(values) != len(completions):
        raise RewardError(f"Reward '{name}' returned {len(values)} scores for {len(completions)} completions.")
    return [_check_score(value, index, completions, name) for index, value in enumerate(values)]


def _check_score(value: Any, index: int, completions: Sequence[Any], name: str) -> float | None:
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= _LARGEST:
        returned = repr(value)[:60] if isinstance(value, (float, str, bytes)) else type(value).__name__
        raise RewardError(
            f"Reward '{name}' returned {returned} for {_sample(index, completions)}; a score must be a finite number "
            f"of at most {_LARGEST:.1e}, or None where the objective does not apply."
        )
    return value if isinstance(value, DenseScore) else number


def checked_reward(
    reward_func: Callable[..., Any],
    name: str,
    receive: Callable[[list[float | None]], None] | None = None,
    timeout: float | None = None,
) -> Callable[..., Any]:
    """Wrap a callable so that whatever goes wrong in it stops the run with its name, and nothing becomes a number.

    The wrapper is called `name`, so that TRL logs the objective under it, and is a coroutine
    function if `reward_func` is one. A call that takes long is named in the log.

    Args:
        reward_func: in TRL's protocol.
        name: of the objective.
        receive: is given the checked scores of every call.
        timeout: seconds that one call may take; `None` for no limit. With a limit, functions run in a
            thread of their own, which is left behind when they do not return.
    """

    def checked(scores: Any, completions: list) -> list[float | None]:
        result = check_scores(scores, completions, name)
        if receive is not None:
            receive(result)
        return result

    def slow(completions: list) -> AbstractContextManager[None]:
        advice = "If it hangs, set reward_timeout to the seconds that a call may take."
        return named_when_slow(f"Reward '{name}', called with {len(completions)} completions,", advice)

    def out_of_time(completions: list) -> RewardError:
        return RewardError(
            f"Reward '{name}' gave no scores for {len(completions)} completions within reward_timeout={timeout:g} s. "
            "See whether what it waits for still answers, or raise reward_timeout."
        )

    if _is_async(reward_func):

        async def score_async(*, completions: list, **columns: Any) -> list[float | None]:
            limit = asyncio.timeout(timeout)
            try:
                with slow(completions):
                    async with limit:
                        scores = await reward_func(completions=completions, **columns)
            except Exception as error:
                if limit.expired():
                    raise out_of_time(completions) from error
                raise RewardError(f"Reward '{name}' raised {type(error).__name__}: {error}") from error
            return checked(scores, completions)

        score_async.__name__ = name
        return score_async

    def score(*, completions: list, **columns: Any) -> list[float | None]:
        try:
            with slow(completions):
                scores = call_within(timeout, partial(_scores, reward_func, completions, columns))
        except OutOfTime:
            raise out_of_time(completions) from None
        except Exception as error:
            where = _culprit(reward_func, error, completions, columns, timeout)
            raise RewardError(f"Reward '{name}' raised {type(error).__name__}: {error} {where}") from error
        return checked(scores, completions)

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


def _scores(reward_func: Callable[..., Any], completions: list, columns: dict[str, Any]) -> Any:
    """Call the function and run a generator to its end, so that both count as the call."""
    scores = reward_func(completions=completions, **columns)
    return list(scores) if inspect.isgenerator(scores) else scores


def _unwrapped(func: Any) -> Any:
    while isinstance(func, partial):
        func = func.func
    return func


def _culprit(
    reward_func: Callable[..., Any],
    error: Exception,
    completions: list,
    columns: dict[str, Any],
    timeout: float | None,
) -> str:
    """Say on which completion a reward function raised, found by scoring them one at a time."""
    deadline = time.monotonic() + _SEARCH_SECONDS
    for index in range(len(completions)):
        if time.monotonic() > deadline:
            break
        one = {key: _only(value, index, len(completions)) for key, value in columns.items()}
        try:
            call_within(timeout, partial(_scores, reward_func, completions[index : index + 1], one))
        except OutOfTime:
            break
        except Exception as again:
            if type(again) is type(error):
                return f"(on {_sample(index, completions)})"
    return f"(on a batch of {len(completions)} completions)"


def _only(value: Any, index: int, count: int) -> Any:
    return value[index : index + 1] if isinstance(value, list) and len(value) == count else value


def _sample(index: int, completions: Sequence[Any]) -> str:
    (text,) = completion_texts(completions[index : index + 1])
    return f"completion {index}, {text if len(text) <= 60 else text[:59] + '…'!r}"

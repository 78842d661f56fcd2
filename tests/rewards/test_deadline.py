"""A reward function that does not return stops the run by name; one that is slow is named while it runs."""

import asyncio
import logging
import threading
import time
from typing import Any

import pytest

from trl_bonesoup.errors import RewardError
from trl_bonesoup.rewards import deadline
from trl_bonesoup.rewards.protocol import call_reward, checked_reward

LIMIT = 0.2


def scores_of(reward: Any, completions: list, timeout: float) -> list[float | None]:
    result = checked_reward(reward, "judge", timeout=timeout)(completions=completions)
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


def hang(completions: list, **columns: Any) -> list[float]:
    threading.Event().wait(30)
    return [0.0] * len(completions)


def hang_in_a_generator(completions: list, **columns: Any) -> Any:
    yield 0.0
    threading.Event().wait(30)


async def hang_async(completions: list, **columns: Any) -> list[float]:
    await asyncio.sleep(30)
    return [0.0] * len(completions)


@pytest.mark.parametrize("reward", [hang, hang_in_a_generator, hang_async])
def test_a_reward_that_hangs_is_given_up_with_its_name_and_the_limit(reward: Any) -> None:
    begin = time.monotonic()
    with pytest.raises(RewardError, match=r"'judge' gave no scores for 2 completions within reward_timeout=0\.2 s"):
        scores_of(reward, ["a", "b"], LIMIT)
    assert LIMIT <= time.monotonic() - begin < 10


async def answer_async(completions: list, **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize("reward", [lambda completions, **_: [float(len(text)) for text in completions], answer_async])
def test_a_limit_changes_nothing_else(reward: Any) -> None:
    assert scores_of(reward, ["a", "bcd"], 60.0) == [1.0, 3.0]


def test_a_timeout_of_the_rewards_own_is_its_error_and_not_the_limit() -> None:
    def asks(completions: list, **columns: Any) -> list[float]:
        raise TimeoutError("the service is away")

    async def asks_async(completions: list, **columns: Any) -> list[float]:
        raise TimeoutError("the service is away")

    for reward in (asks, asks_async):
        with pytest.raises(RewardError, match="'judge' raised TimeoutError: the service is away"):
            scores_of(reward, ["a"], 60.0)


def test_the_search_for_the_completion_ends_at_the_limit_too() -> None:
    def raises_then_hangs(completions: list, **columns: Any) -> list[float]:
        if len(completions) > 1:
            raise ValueError("too many")
        return hang(completions)

    begin = time.monotonic()
    with pytest.raises(RewardError, match=r"raised ValueError: too many \(on a batch of 2 completions\)"):
        checked_reward(raises_then_hangs, "judge", timeout=LIMIT)(completions=["a", "b"])
    assert time.monotonic() - begin < 10


def test_without_a_limit_a_reward_runs_in_the_callers_thread() -> None:
    seen = []
    call_reward(lambda completions, **_: seen.append(threading.get_ident()) or [0.0], "r", completions=["a"])
    checked_reward(lambda completions, **_: seen.append(threading.get_ident()) or [0.0], "r", timeout=60.0)(
        completions=["a"]
    )
    assert seen[0] == threading.get_ident() != seen[1]


def test_a_slow_reward_is_named_while_it_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deadline, "SLOW_SECONDS", 0.05)

    def wait_for_the_word(completions: list, **columns: Any) -> list[float]:
        end = time.monotonic() + 10
        while not caplog.records and time.monotonic() < end:
            time.sleep(0.01)
        return [0.0] * len(completions)

    with caplog.at_level(logging.WARNING, logger="trl_bonesoup"):
        call_reward(wait_for_the_word, "judge", completions=["a", "b", "c"])
    (record,) = caplog.records
    assert "Reward 'judge', called with 3 completions, has not returned after 0.05 s" in record.message
    assert "set reward_timeout" in record.message


def test_a_quick_reward_is_not_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(deadline, "SLOW_SECONDS", 0.05)
    call_reward(lambda completions, **_: [0.0], "judge", completions=["a"])
    time.sleep(0.15)
    assert not caplog.records

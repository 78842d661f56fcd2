"""Names, checks and specs of reward functions."""

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch

from trl_bonesoup.errors import ConfigurationError, RewardError
from trl_bonesoup.rewards.dense import DenseScore
from trl_bonesoup.rewards.offline import brevity, positivity
from trl_bonesoup.rewards.protocol import (
    call_reward,
    check_scores,
    checked_reward,
    completion_texts,
    objective_names,
    reward_name,
)
from trl_bonesoup.rewards.spec import load_reward, reward_spec


def test_texts_of_plain_and_conversational_completions() -> None:
    chat = [{"role": "assistant", "content": "two"}, {"role": "assistant", "content": " parts"}]
    assert completion_texts(["one", chat]) == ["one", "two parts"]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1, 2.5, None], [1.0, 2.5, None]),
        (torch.tensor([1.0, -2.0, 3.0]), [1.0, -2.0, 3.0]),
        (np.array([1, 2, 3]), [1.0, 2.0, 3.0]),
        ((torch.tensor(0.5), np.float32(2), True), [0.5, 2.0, 1.0]),
    ],
)
def test_scores_become_floats(scores: Any, expected: list[float | None]) -> None:
    assert check_scores(scores, ["a", "b", "c"], "r") == expected


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (3.0, "must return a list with one score per completion; got float"),
        ("abc", "got str"),
        ({"a": 1.0}, "got dict"),
        ([1.0, 2.0], "'r' returned 2 scores for 3 completions"),
        ([1.0, math.nan, 2.0], "returned nan for completion 1, 'second'"),
        ([1.0, 2.0, -math.inf], "returned -inf for completion 2"),
        (["1", 2, 3], "returned '1' for completion 0"),
        ([[1.0], 2.0, 3.0], "returned list for completion 0"),
        (torch.tensor([1.0, math.nan, 0.0]), "returned nan for completion 1"),
        (torch.tensor(1.0), "must return a list with one score per completion; got Tensor"),
        (torch.zeros(3, device="meta"), "'r' raised NotImplementedError while its scores were read"),
        ({1.0, 2.0, 3.0}, "got set"),
        ([1.0, 10**400, 2.0], "returned int for completion 1"),
        ([1.0, -1e39, 2.0], r"returned -1e\+39 for completion 1, 'second'; .* of at most 3\.4e\+38"),
        ([1.0, 1j, 2.0], "returned complex for completion 1"),
    ],
)
def test_anything_else_is_refused(scores: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        check_scores(scores, ["first", "second", "third"], "r")


def test_a_generator_is_read_once() -> None:
    assert check_scores((float(i) for i in range(3)), ["a", "b", "c"], "r") == [0.0, 1.0, 2.0]


def test_a_generator_that_raises_is_the_reward_that_raises() -> None:
    def lazily(completions: list, **columns: Any) -> Any:
        for text in completions:
            if text == "bad":
                raise KeyError("grade")
            yield 1.0

    with pytest.raises(RewardError, match=r"'lazily' raised KeyError: 'grade' \(on completion 1, 'bad'\)"):
        call_reward(lazily, "lazily", completions=["fine", "bad", "fine"])


def test_the_wrapper_carries_the_objectives_name() -> None:
    wrapped = checked_reward(brevity, "short")
    assert wrapped.__name__ == "short"
    assert wrapped(prompts=[""], completions=["a b c d"], completion_ids=[[1]]) == [-0.1]


def test_coroutines_are_awaited_and_checked() -> None:
    async def half(completions: list, **columns: Any) -> list[float]:
        return [0.5] * len(completions)

    assert call_reward(half, "half", prompts=["", ""], completions=["a", "b"]) == [0.5, 0.5]

    class Judge:
        async def __call__(self, completions: list, **columns: Any) -> list[float]:
            raise TimeoutError("no answer")

    with pytest.raises(RewardError, match="'judge' raised TimeoutError: no answer"):
        call_reward(Judge(), "judge", prompts=[""], completions=["a"])


@pytest.mark.parametrize(
    ("completions", "where"),
    [
        (["fine", "bad", "fine"], "on completion 1, 'bad'"),
        (["fine", "bad" * 30, "fine"], f"on completion 1, '{('bad' * 30)[:59]}…'"),
        (["fine", [{"role": "assistant", "content": "bad"}]], "on completion 1, 'bad'"),
    ],
)
def test_an_exception_names_the_completion_that_caused_it(completions: list, where: str) -> None:
    def strict(completions: list, grade: list[int], weight: float, **columns: Any) -> list[float]:
        assert weight == 0.5
        for text, g in zip(completion_texts(completions), grade, strict=True):
            if text.startswith("bad"):
                raise KeyError(g)
        return [0.0] * len(completions)

    with pytest.raises(RewardError) as caught:
        call_reward(strict, "strict", completions=completions, grade=[7, 8, 9][: len(completions)], weight=0.5)
    assert str(caught.value) == f"Reward 'strict' raised KeyError: 8 ({where})"


def test_an_exception_of_the_batch_as_a_whole_says_so() -> None:
    def crowded(completions: list, **columns: Any) -> list[float]:
        if len(completions) > 1:
            raise MemoryError("too many")
        return [0.0]

    with pytest.raises(RewardError, match=r"raised MemoryError: too many \(on a batch of 2 completions\)"):
        call_reward(crowded, "crowded", completions=["a", "b"])


def test_a_dense_score_passes_as_it_is() -> None:
    dense = DenseScore([(2, 0.5), (5, -1.0)])
    received: list = []
    wrapped = checked_reward(lambda completions, **_: [dense, 1], "parts", received.extend)
    assert wrapped(completions=["hello", "you"]) == [-0.5, 1.0]
    assert received[0] is dense
    with pytest.raises(RewardError, match="returned nan for completion 0"):
        check_scores([DenseScore([(1, math.nan)])], ["a"], "r")


def test_names() -> None:
    assert reward_name("org/some-model") == "some-model"
    assert reward_name(functools.partial(brevity, max_words=3)) == "brevity"
    assert objective_names([positivity, brevity]) == ("positivity", "brevity")
    assert objective_names([brevity, brevity], ["a", "b"]) == ("a", "b")
    with pytest.raises(ConfigurationError, match=r"distinct names.*\['brevity', 'brevity'\]"):
        objective_names([brevity, functools.partial(brevity, max_words=3)])
    with pytest.raises(ConfigurationError, match="1 objective names were given for 2"):
        objective_names([positivity, brevity], ["a"])
    with pytest.raises(ConfigurationError, match="at least one"):
        objective_names([])


def test_specs_name_functions_both_ways() -> None:
    assert load_reward("brevity") is brevity
    assert load_reward("trl_bonesoup.rewards.offline:brevity") is brevity
    assert reward_spec(brevity) == "brevity"
    assert reward_spec(functools.partial(brevity, max_words=3)) == "brevity(max_words=3)"
    assert reward_spec(math.sqrt) == "math:sqrt"
    assert reward_spec("org/model") == "org/model"
    assert reward_spec(lambda completions: []) == "<lambda>"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("honesty", "one of positivity, neutrality, plainness, brevity, or module:attribute"),
        ("no_such_module:x", "cannot be imported"),
        ("math:no_such_name", "not a callable"),
        ("math:pi", "not a callable"),
        (":x", "module:attribute"),
    ],
)
def test_specs_that_name_nothing(spec: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_reward(spec)

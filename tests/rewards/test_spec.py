"""Reward functions as text, and back."""

import functools
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from trl_bonesoup.cli.text_forms import parse_rewards
from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.rewards.classifier import ClassifierReward
from trl_bonesoup.rewards.judge import ScalarJudge
from trl_bonesoup.rewards.segments import SegmentedReward, SegmentReward, split_subsentences
from trl_bonesoup.rewards.spec import load_reward, reward_spec


def lengths(prompt: str, segments: list[str]) -> list[float]:
    return [float(len(segment)) for segment in segments]


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("own_rewards")
    module.kind = ClassifierReward("org/rm", logit=1)
    module.number = 3.0
    monkeypatch.setitem(sys.modules, "own_rewards", module)
    return module


def test_a_command_takes_an_instance_of_a_module(own_module: ModuleType) -> None:
    functions, names = parse_rewards(["own_rewards:kind", "funny=humor", "brevity"])
    assert functions[0] is own_module.kind
    assert names == ["rm", "funny", "brevity"]
    assert [reward_spec(function) for function in functions] == [
        "org/rm(logit=1)",
        "trl_bonesoup.rewards.public:humor",
        "brevity",
    ]
    with pytest.raises(ConfigurationError, match="not a callable in module own_rewards"):
        load_reward("own_rewards:number")


def test_a_model_id_alone_says_how_to_name_a_model() -> None:
    with pytest.raises(ConfigurationError, match=r"humor.*got 'org/rm'. To score.*ClassifierReward"):
        load_reward("org/rm")


def test_a_function_of_a_script_is_not_recorded_as_a_public_model() -> None:
    def helpful(completions: list) -> list:
        return [0.0 for _ in completions]

    helpful.__module__, helpful.__qualname__ = "__main__", "helpful"
    recorded = reward_spec(helpful)
    assert recorded == "helpful" != reward_spec(load_reward("helpful"))


def test_instances_say_what_changes_their_scores() -> None:
    segmented = SegmentedReward(lengths, split=split_subsentences)
    assert reward_spec(segmented) == "segments:lengths(split=split_subsentences)"
    judge = ScalarJudge("org/judge", "http://127.0.0.1:1/v1", api_key="sk-secret", high=5)
    assert reward_spec(judge) == "ScalarJudge(model='org/judge', base_url='http://127.0.0.1:1/v1', high=5)"
    token = SegmentReward("org/nli", {0: -1.0, 1: 1.0})
    assert reward_spec(token) == "org/nli(values={0: -1.0, 1: 1.0})"
    assert reward_spec(functools.partial(segmented, extra=1)).endswith("(extra=1)")


def test_the_blocks_of_the_page_on_rewards_run() -> None:
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 6
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert [reward.__name__ for reward in names["objectives"]] == ["relevance", "factuality", "completeness"]


@pytest.mark.parametrize("name", ["brevity", "helpful"])
def test_a_scripts_own_function_is_not_taken_for_ours(name: str) -> None:
    def own(completions: list, **columns: object) -> list[float]:
        return [0.0] * len(completions)

    own.__name__ = own.__qualname__ = name
    own.__module__ = "__main__"
    assert reward_spec(own) == ("__main__:brevity" if name == "brevity" else "helpful")

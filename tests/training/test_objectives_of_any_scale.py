"""What an objective's unit, a constant objective, and a reward that hangs do to training."""

import threading
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny import count_word

from trl_bonesoup import MultiRewardPPOTrainer
from trl_bonesoup.errors import RewardError


def trained(base: str, prompts: Dataset, args: Any, rewards: list, column: list[float]) -> dict[str, torch.Tensor]:
    trainer = MultiRewardPPOTrainer(
        base, rewards, column, args=args, train_dataset=prompts, objective_names=["first", "second"][: len(rewards)]
    )
    trainer.train()
    return {name: value.detach() for name, value in trainer.model.named_parameters()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("unit", [1e6, 1e-6])
def test_an_objective_in_another_unit_trains_the_same(base: str, prompts: Dataset, settings: Any, unit: float) -> None:
    """Its share in the mixture is B's, and not a million times that. (With SGD: Adam blows rounding up.)"""
    sgd = settings(optim="sgd", learning_rate=0.3)
    first, second = count_word("w5"), count_word("w7")

    def scaled(completions: list[str], **columns: Any) -> list[float]:
        return [unit * score for score in second(completions)]

    plain = trained(base, prompts, sgd, [first, second], [0.5, 0.5])
    assert_same(plain, trained(base, prompts, sgd, [first, scaled], [0.5, 0.5]))
    alone = trained(base, prompts, sgd, [first], [1.0])
    assert any(not torch.allclose(alone[name], value, atol=1e-3) for name, value in plain.items())


def test_a_constant_objective_adds_nothing(base: str, prompts: Dataset, settings: Any) -> None:
    """Its scores are their own mean, so that .7 of the other one is left: as weight 1 and a scale divided by .7."""
    first = count_word("w5")
    sgd = {"optim": "sgd", "learning_rate": 0.3}
    fixed = {"score_normalization": "fixed", "score_mean": [0.5], "score_std": [0.2 / 0.7]}
    both = {"score_normalization": "fixed", "score_mean": [0.5, -4e5], "score_std": [0.2, 1.0]}

    def constant(completions: list[str], **columns: Any) -> list[float]:
        return [-4e5] * len(completions)

    assert_same(
        trained(base, prompts, settings(**sgd, **fixed), [first], [1.0]),
        trained(base, prompts, settings(**sgd, **both), [first, constant], [0.7, 0.3]),
    )


def test_a_reward_that_hangs_stops_the_training(base: str, prompts: Dataset, settings: Any) -> None:
    def hangs(completions: list[str], **columns: Any) -> list[float]:
        threading.Event().wait(30)
        return [0.0] * len(completions)

    args = settings(reward_timeout=0.1)
    with pytest.raises(RewardError, match=r"'first' gave no scores for 8 completions within reward_timeout=0\.1 s"):
        trained(base, prompts, args, [hangs], [1.0])

"""The settings refuse what would silently do nothing or something else."""

from typing import Any

import pytest

from trl_bonesoup.errors import ConfigurationError


def test_ppo_needs_no_groups(settings: Any) -> None:
    config = settings()
    assert config.num_generations == 1
    assert type(config.num_generations) is int


def test_mini_batches_divide_the_rollout_batch(settings: Any) -> None:
    config = settings(num_mini_batches=4, gradient_accumulation_steps=2, num_iterations=3)
    assert config.steps_per_generation == 8
    assert config.generation_batch_size == 64
    assert config.steps_per_rollout == 12


def test_trl_beta_is_refused_with_the_name_to_use(settings: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"pass kl_coef=0.1 instead.*circulant_weights"):
        settings(beta=0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_type": "dr_grpo"},
        {"importance_sampling_level": "sequence"},
        {"reward_weights": [1.0, 2.0]},
        {"top_entropy_quantile": 0.5},
        {"use_adaptive_entropy": True},
    ],
)
def test_settings_of_another_loss_are_refused(settings: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="has no effect in PPO"):
        settings(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kl_coef": -0.1}, "kl_coef must not be negative; got -0.1"),
        ({"kl_coef": 0.0, "kl_target": 3.0}, "must start above 0"),
        ({"gamma": 1.5}, r"gamma must be in \[0, 1\]; got 1.5"),
        ({"lam": -0.1}, r"lam must be in \[0, 1\]"),
        ({"cliprange_value": 0.0}, "cliprange_value must be above 0 or None"),
        ({"num_generations": 0}, "num_generations must be at least 1"),
        ({"target_kl": 0.0}, "target_kl must be above 0"),
        ({"target_kl": 0.1, "fp16": True}, "use bf16"),
        ({"score_clip": -1.0}, "score_clip must be above 0"),
        ({"critic_warmup_steps": -1}, "critic_warmup_steps must not be negative"),
        ({"max_prompt_length": 0}, "max_prompt_length must be at least 1"),
        ({"reward_timeout": 0}, "reward_timeout must be above 0 seconds or None; got 0"),
        ({"score_normalization": "fixed"}, "needs both"),
        ({"score_mean": [0.0]}, "needs both"),
        ({"score_normalization": "batch"}, "'running', 'fixed' or 'none'; got 'batch'"),
        ({"num_mini_batches": 2, "generation_batch_size": 16}, "do not pass generation_batch_size"),
    ],
)
def test_out_of_range(settings: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        settings(**changes)

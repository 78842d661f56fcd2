"""The trainer on a tiny model: it is PPO, it learns, and it weighs what it was told to weigh."""

import asyncio
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from tiny import count_word, tiny_tokenizer
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from trl_bonesoup import MultiRewardPPOTrainer, circulant_weights
from trl_bonesoup.errors import ConfigurationError, RewardError, WeightsError

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


def history(trainer: MultiRewardPPOTrainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("peft_config", [LORA, None], ids=["lora", "full"])
def test_ppo_learns(base: str, prompts: Dataset, settings: Any, peft_config: LoraConfig | None) -> None:
    trainer = MultiRewardPPOTrainer(
        base,
        [count_word("w5"), count_word("w7")],
        [1.0, 0.0],
        args=settings(max_steps=60, per_device_train_batch_size=16),
        train_dataset=prompts,
        peft_config=peft_config,
    )
    trainer.train()
    chosen, other = history(trainer, "rewards/says_w5/mean"), history(trainer, "rewards/says_w7/mean")
    assert np.mean(chosen[-5:]) > 4 * np.mean(chosen[:5]) + 0.2
    assert np.mean(other[-5:]) < np.mean(other[:5]) + 0.3


def test_one_step_is_reinforce_without_critic_and_kl(base: str, prompts: Dataset, settings: Any) -> None:
    """∇ of the mean over tokens of -score · log π, from plain softmax over plain logits."""
    seen: dict[str, Any] = {}

    def reward(prompts: list, completions: list, completion_ids: list, **columns: Any) -> list[float]:
        seen.update(prompts=prompts, ids=completion_ids)
        return [float(i) - 2.5 for i in range(len(completions))]

    args = settings(
        max_steps=1,
        num_iterations=1,
        kl_coef=0.0,
        vf_coef=0.0,
        lam=1.0,
        whiten_advantages=False,
        score_normalization="none",
        optim="sgd",
        learning_rate=0.5,
        lr_scheduler_type="constant",
        max_grad_norm=1e9,
        temperature=0.7,
    )
    trainer = MultiRewardPPOTrainer(base, reward, [1.0], args=args, train_dataset=prompts)
    trainer.train()

    model = AutoModelForCausalLM.from_pretrained(base)
    total, tokens = torch.zeros(()), 0
    for i, (prompt, completion) in enumerate(zip(seen["prompts"], seen["ids"], strict=True)):
        prompt_ids = trainer.processing_class(prompt)["input_ids"]
        logits = model(torch.tensor([prompt_ids + completion])).logits[0, len(prompt_ids) - 1 : -1]
        logps = (logits / 0.7).log_softmax(-1)[range(len(completion)), completion]
        total = total - (float(i) - 2.5) * logps.sum()
        tokens += len(completion)
    (total / tokens).backward()
    for (name, parameter), trained in zip(model.named_parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(
            trained.detach(), (parameter - 0.5 * parameter.grad).detach(), atol=1e-5, rtol=1e-5, msg=name
        )


def test_the_kl_penalty_is_measured_from_the_base(base: str, prompts: Dataset, settings: Any) -> None:
    """At the first rollout the policy is the base, so its KL is 0; after training it is not."""
    trainer = MultiRewardPPOTrainer(
        base, count_word("w5"), [1.0], args=settings(max_steps=40), train_dataset=prompts, peft_config=LORA
    )
    trainer.train()
    kl = history(trainer, "kl")
    assert kl[0] == pytest.approx(0.0, abs=1e-6)
    assert np.mean(kl[-5:]) > 0.05


def test_a_strong_kl_penalty_keeps_the_policy_near_the_base(base: str, prompts: Dataset, settings: Any) -> None:
    def final_kl(kl_coef: float) -> float:
        trainer = MultiRewardPPOTrainer(
            base, count_word("w5"), [1.0], args=settings(max_steps=60, kl_coef=kl_coef), train_dataset=prompts
        )
        trainer.train()
        return float(np.mean(history(trainer, "kl")[-5:]))

    assert final_kl(1.0) < 0.3 * final_kl(0.0001)


def test_the_full_model_has_a_frozen_reference(base: str, prompts: Dataset, settings: Any) -> None:
    trainer = MultiRewardPPOTrainer(base, count_word("w5"), [1.0], args=settings(), train_dataset=prompts)
    before = weights_of(trainer.model)
    trainer.train()
    assert any(not torch.equal(before[name], value) for name, value in weights_of(trainer.model).items())
    original = AutoModelForCausalLM.from_pretrained(base)
    for expected, value in zip(original.parameters(), trainer.ref_model.parameters(), strict=True):
        assert torch.equal(expected, value)


def run_weights(base: str, prompts: Dataset, args: Any, rewards: list, weights: Any, **kwargs: Any) -> Any:
    trainer = MultiRewardPPOTrainer(base, rewards, weights, args=args, train_dataset=prompts, **kwargs)
    trainer.train()
    return weights_of(trainer.model)


def test_a_weighted_run_equals_a_run_on_the_weighted_sum(base: str, prompts: Dataset, settings: Any) -> None:
    first, second = count_word("w5"), count_word("w7")

    def mixture(completions: list[str], **columns: Any) -> list[float]:
        scores = zip(first(completions), second(completions), strict=True)
        return [0.7 * (a - 0.5) / 0.2 + 0.3 * (b - 0.1) / 0.4 for a, b in scores]

    fixed = {"score_normalization": "fixed", "score_mean": [0.5, 0.1], "score_std": [0.2, 0.4]}
    by_column = run_weights(base, prompts, settings(**fixed), [first, second], [0.7, 0.3])
    by_matrix = run_weights(base, prompts, settings(**fixed), [first, second], circulant_weights(2, 0.7), backbone=0)
    by_hand = run_weights(base, prompts, settings(score_normalization="none"), [mixture], [1.0])
    swapped = run_weights(base, prompts, settings(**fixed), [first, second], [0.3, 0.7])
    for name, value in by_hand.items():
        torch.testing.assert_close(by_column[name], value, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(by_matrix[name], value, atol=1e-5, rtol=1e-4)
    assert any(not torch.allclose(swapped[name], value, atol=1e-3) for name, value in by_hand.items())


def test_a_unit_vector_equals_a_single_reward(base: str, prompts: Dataset, settings: Any) -> None:
    both = run_weights(base, prompts, settings(), [count_word("w5"), count_word("w7")], [0.0, 1.0])
    single = run_weights(base, prompts, settings(), [count_word("w7")], [1.0])
    for name, value in single.items():
        assert torch.equal(both[name], value), name


def test_gradient_accumulation_gives_the_same_update(base: str, prompts: Dataset, settings: Any) -> None:
    def run(size: int, accumulation: int) -> dict[str, torch.Tensor]:
        args = settings(
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=0.1,
            max_steps=2,
        )
        return run_weights(base, prompts, args, [count_word("w5")], [1.0])

    whole, parts = run(8, 1), run(2, 4)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=1e-5, rtol=1e-4)


def test_metrics_keep_raw_and_weighted_scores_apart(base: str, prompts: Dataset, settings: Any) -> None:
    args = settings(score_normalization="fixed", score_mean=[1.0, 0.0], score_std=[2.0, 1.0], max_steps=1)
    trainer = MultiRewardPPOTrainer(
        base, [count_word("w5"), count_word("w7")], [0.7, 0.3], args=args, train_dataset=prompts
    )
    trainer.train()
    (log,) = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert log["objective/says_w5"] == pytest.approx((log["rewards/says_w5/mean"] - 1.0) / 2.0)
    assert log["objective/says_w7"] == pytest.approx(log["rewards/says_w7/mean"])
    assert log["reward"] == pytest.approx(0.7 * log["objective/says_w5"] + 0.3 * log["objective/says_w7"])
    assert {"kl", "kl/coef", "kl/update", "entropy", "policy_loss", "value/loss", "value/explained_variance"} <= set(
        log
    )
    assert "frac_reward_zero_std" not in log


def test_a_saved_backbone_is_a_plain_adapter(base: str, prompts: Dataset, settings: Any, tmp_path: Path) -> None:
    trainer = MultiRewardPPOTrainer(
        base, count_word("w5"), [1.0], args=settings(), train_dataset=prompts, peft_config=LORA
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        assert all(".lora_A." in key or ".lora_B." in key for key in file.keys())  # noqa: SIM118
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*keys.*")
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    ids = torch.arange(3, 9).unsqueeze(0)
    torch.testing.assert_close(loaded(ids).logits, trainer.model(ids).logits)


def test_the_critic_learns_the_mean_score(base: str, prompts: Dataset, settings: Any) -> None:
    """With a constant score and a detached head, SGD moves the values towards it by the closed form."""
    args = settings(
        max_steps=2,
        num_iterations=1,
        kl_coef=0.0,
        lam=1.0,
        vf_coef=1.0,
        cliprange_value=None,
        detach_critic=True,
        score_normalization="none",
        optim="sgd",
        learning_rate=0.0,
        critic_learning_rate=0.1,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1e9,
    )

    def constant(completions: list, **columns: Any) -> list[float]:
        return [2.0] * len(completions)

    trainer = MultiRewardPPOTrainer(base, constant, [1.0], args=args, train_dataset=prompts)
    trainer.train()
    losses, values = history(trainer, "value/loss"), history(trainer, "value/mean")
    assert losses[0] == pytest.approx(0.5 * 2.0**2)
    assert values[0] == 0.0
    assert values[1] > 0.2  # the bias alone moves by .1 · 2
    assert all(parameter.grad is None for parameter in trainer.critic.parameters())


def test_the_callers_list_is_left_alone(base: str, prompts: Dataset, settings: Any) -> None:
    rewards = [count_word("w5"), count_word("w7")]
    MultiRewardPPOTrainer(base, rewards, [0.5, 0.5], args=settings(), train_dataset=prompts)
    assert [reward.__name__ for reward in rewards] == ["says_w5", "says_w7"]


def test_conversational_prompts_and_async_rewards(base: str, settings: Any) -> None:
    chats = Dataset.from_dict({"prompt": [[{"role": "user", "content": f"w{i}"}] for i in range(8)], "label": [7] * 8})

    async def reward(completions: list, label: list[int], **columns: Any) -> list[float]:
        await asyncio.sleep(0)
        return [float(len(messages[0]["content"])) + n for messages, n in zip(completions, label, strict=True)]

    trainer = MultiRewardPPOTrainer(base, reward, args=settings(max_steps=2), train_dataset=chats)
    trainer.train()
    assert history(trainer, "rewards/reward/mean")[0] >= 7.0


def bad(value: Any) -> Any:
    def reward(completions: list, **columns: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value if not isinstance(value, float) else [value] * len(completions)

    return reward


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (KeyError("answer"), "'reward' raised KeyError"),
        (float("nan"), "'reward' returned nan for completion 0"),
        (float("inf"), "'reward' returned inf for completion 0"),
        ([0.0], "'reward' returned 1 scores for 8 completions"),
        (["high"] * 8, "'reward' returned 'high' for completion 0"),
        (0.5j, "must return a list"),
    ],
)
def test_a_broken_reward_stops_the_run_with_its_name(
    base: str, prompts: Dataset, settings: Any, value: Any, message: str
) -> None:
    trainer = MultiRewardPPOTrainer(base, bad(value), args=settings(), train_dataset=prompts)
    with pytest.raises(RewardError, match=message):
        trainer.train()


def test_a_missing_score_is_left_out_and_logged(base: str, prompts: Dataset, settings: Any) -> None:
    def sometimes(completions: list, **columns: Any) -> list[float | None]:
        return [1.0 if i % 2 else None for i in range(len(completions))]

    args = settings(max_steps=1, score_normalization="none")
    trainer = MultiRewardPPOTrainer(
        base, [sometimes, lambda completions, **_: [3.0] * len(completions)], [0.5, 0.5], args=args,
        train_dataset=prompts, objective_names=["sometimes", "always"],
    )  # fmt: skip
    trainer.train()
    (log,) = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert log["objective/sometimes/missing"] == 0.5
    assert log["reward"] == pytest.approx(0.5 * 3.0 + 0.5 * 2.0)  # half the rows: 3 alone; half: (1 + 3) / 2


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"combination_weights": [0.5, 0.4]}, WeightsError, "must sum to 1"),
        ({"combination_weights": [1.0]}, WeightsError, "each of the 2 objectives"),
        ({"combination_weights": circulant_weights(2, 0.7)}, ConfigurationError, "0 to 1; got None"),
        ({"combination_weights": circulant_weights(2, 0.7), "backbone": 2}, ConfigurationError, "0 to 1; got 2"),
        ({"combination_weights": [0.5, 0.5], "backbone": 0}, ConfigurationError, "one column already"),
        ({"combination_weights": circulant_weights(3, 0.7), "backbone": 0}, ConfigurationError, "3 rows for 2"),
        ({"objective_names": ["same", "same"]}, ConfigurationError, "distinct names"),
        ({"train_dataset": Dataset.from_dict({"text": ["a"] * 16})}, ConfigurationError, "a column 'prompt'"),
        ({"train_dataset": Dataset.from_dict({"prompt": ["w1"] * 3})}, ConfigurationError, "3 prompts, fewer than"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_a_model_is_loaded(
    prompts: Dataset, settings: Any, kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    rewards = [count_word("w5"), count_word("w7")]
    with pytest.raises(error, match=message):
        MultiRewardPPOTrainer("no/such-model", rewards, **{"args": settings(), "train_dataset": prompts, **kwargs})


def test_a_mixture_of_experts_trains_with_its_balancing_loss(prompts: Dataset, settings: Any, tmp_path: Path) -> None:
    config = MixtralConfig(
        router_aux_loss_coef=0.01, output_router_logits=True,
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, num_experts_per_tok=1, max_position_embeddings=64,
        pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path / "moe")
    tiny_tokenizer().save_pretrained(tmp_path / "moe")
    args = settings(max_steps=2, kl_coef=0.0)
    trainer = MultiRewardPPOTrainer(str(tmp_path / "moe"), count_word("w5"), [1.0], args=args, train_dataset=prompts)
    assert trainer.aux_loss_enabled
    trainer.train()
    assert np.isfinite(history(trainer, "loss")).all()


def test_training_does_not_repeat_what_upstream_says_to_upstream(base: str, prompts: Dataset, settings: Any) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = MultiRewardPPOTrainer(
            base, [count_word("w5")], [1.0], args=settings(max_steps=4), train_dataset=prompts, peft_config=LORA
        )
        trainer.measure_scores(2)
        trainer.train()
    assert not [str(each.message) for each in caught if "is_gradient_checkpointing" in str(each.message)]

"""What single PPO settings do: early stopping, dense scores, clipped scores, prompts that must fit."""

from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny import count_word, tiny_tokenizer
from transformers import AutoModelForCausalLM

from trl_bonesoup import MultiRewardPPOTrainer
from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.rewards.dense import DenseScore

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


def history(trainer: MultiRewardPPOTrainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def trained(base: Any, prompts: Dataset, args: Any, reward: Any = None, **kwargs: Any) -> MultiRewardPPOTrainer:
    trainer = MultiRewardPPOTrainer(base, reward or count_word("w5"), [1.0], args=args, train_dataset=prompts, **kwargs)
    trainer.train()
    return trainer


def test_target_kl_leaves_out_the_rest_of_the_epochs(base: str, prompts: Dataset, settings: Any) -> None:
    """The first step is made at the old policy, the second is seen to be past the target: 5 epochs do what 2 do."""
    common = {"per_device_train_batch_size": 16, "lr_scheduler_type": "constant"}
    stopped = trained(base, prompts, settings(max_steps=5, num_iterations=5, target_kl=1e-6, **common))
    two = trained(base, prompts, settings(max_steps=2, num_iterations=2, **common))
    for name, value in weights_of(two.model).items():
        assert torch.equal(weights_of(stopped.model)[name], value), name
    assert history(stopped, "kl/stopped") == [0.0, 1.0, 1.0, 1.0]
    assert stopped.state.global_step == 5


def test_target_kl_starts_anew_with_each_rollout(base: str, prompts: Dataset, settings: Any) -> None:
    trainer = trained(base, prompts, settings(max_steps=8, num_iterations=4, target_kl=1e-6))
    assert len(history(trainer, "reward")) == 2
    assert history(trainer, "kl/stopped") == [0.0, 1.0, 1.0] * 2


def test_target_kl_is_compared_with_the_latest_step_alone(base: str, prompts: Dataset, settings: Any) -> None:
    """At a slowly growing KL with a target between the second and the third step's, the third still is made."""
    free = trained(base, prompts, settings(max_steps=8, num_iterations=4, learning_rate=1e-3))
    kl = history(free, "kl/update")
    assert kl[0] == kl[4] == pytest.approx(0.0, abs=1e-7)
    assert kl[0] < kl[1] < kl[2] < kl[3]
    target = (kl[1] + kl[2]) / 2
    bound = trained(base, prompts, settings(max_steps=4, num_iterations=4, learning_rate=1e-3, target_kl=target))
    assert history(bound, "kl/stopped") == [0.0, 0.0, 1.0]


def test_target_kl_counts_whole_optimizer_steps(base: str, prompts: Dataset, settings: Any) -> None:
    args = {"max_steps": 4, "num_iterations": 4, "target_kl": 1e-6, "optim": "sgd", "learning_rate": 0.5}
    whole = trained(base, prompts, settings(**args))
    parts = trained(base, prompts, settings(per_device_train_batch_size=2, gradient_accumulation_steps=4, **args))
    for name, value in weights_of(whole.model).items():
        torch.testing.assert_close(weights_of(parts.model)[name], value, atol=1e-5, rtol=1e-4)


def test_a_generous_target_kl_changes_nothing(base: str, prompts: Dataset, settings: Any) -> None:
    free = trained(base, prompts, settings())
    bound = trained(base, prompts, settings(target_kl=1e6))
    for name, value in weights_of(free.model).items():
        assert torch.equal(weights_of(bound.model)[name], value), name


def spying(trainer: MultiRewardPPOTrainer) -> list[dict[str, Any]]:
    batches: list[dict[str, Any]] = []
    original = trainer._generate_and_score_completions

    def generate(inputs: Any) -> Any:
        batches.append(original(inputs))
        return batches[-1]

    trainer._generate_and_score_completions = generate
    return batches


def test_dense_scores_are_paid_at_the_ends_of_their_segments(base: str, prompts: Dataset, settings: Any) -> None:
    """A word is a token here: with values 0, λ = γ = 1, no KL and no whitening, advantages are rewards to come."""

    def reward(completions: list[str], **columns: Any) -> list[float]:
        scores = []
        for text in completions:
            words = text.split()
            ends = [len(" ".join(words[: i + 1])) for i in range(len(words))]
            scores.append(DenseScore([(end, float(i + 1)) for i, end in enumerate(ends[:2])]))
        return scores

    args = settings(
        max_steps=1, num_iterations=1, lam=1.0, gamma=1.0, kl_coef=0.0, whiten_advantages=False,
        score_normalization="fixed", score_mean=[1.0], score_std=[2.0],
    )  # fmt: skip
    trainer = MultiRewardPPOTrainer(base, reward, [1.0], args=args, train_dataset=prompts)
    batches = spying(trainer)
    trainer.train()
    (batch,) = batches
    checked = 0
    for ids, mask, advantages in zip(
        batch["completion_ids"], batch["completion_mask"], batch["advantages"], strict=True
    ):
        tokens = ids[mask.bool()].tolist()
        words = [token for token in tokens if token > 2]
        if len(words) < 3 or words != tokens[: len(words)]:
            continue
        checked += 1
        # (1 + 2 - 1) / 2 in all: .5 after the first word, 1 after the second, and the mean's -.5 at the end
        expected = [1.0, 0.5] + [-0.5] * (len(tokens) - 2)
        assert advantages[: len(tokens)].tolist() == pytest.approx(expected)
    assert checked >= 3


def test_dense_scores_sum_to_what_a_single_number_would_be(base: str, prompts: Dataset, settings: Any) -> None:
    """At the first token, the reward to come is the whole score, whenever it is paid."""

    def first_advantages(dense: bool) -> torch.Tensor:
        def reward(completions: list[str], **columns: Any) -> list[float]:
            parts = [[(1, 0.5), (max(len(text), 1), float(len(text)))] for text in completions]
            return [DenseScore(part) if dense else sum(score for _, score in part) for part in parts]

        args = settings(max_steps=1, num_iterations=1, lam=1.0, kl_coef=0.0, whiten_advantages=False, score_clip=1.0)
        trainer = MultiRewardPPOTrainer(base, [reward, count_word("w7")], [0.6, 0.4], args=args, train_dataset=prompts)
        batches = spying(trainer)
        trainer.train()
        return batches[0]["advantages"][:, 0]

    torch.testing.assert_close(first_advantages(True), first_advantages(False))


def test_whitened_rewards_have_variance_one(base: str, prompts: Dataset, settings: Any) -> None:
    args = settings(
        max_steps=1, num_iterations=1, lam=0.0, gamma=0.0, kl_coef=0.0, whiten_advantages=False, whiten_rewards=True,
        score_normalization="none",
    )  # fmt: skip
    trainer = MultiRewardPPOTrainer(base, lambda completions, **_: [7.0] * len(completions), [1.0], args=args,
                                    train_dataset=prompts, objective_names=["seven"])  # fmt: skip
    batches = spying(trainer)
    trainer.train()
    rewards = batches[0]["advantages"][batches[0]["generated_tokens"].bool()]  # λ = γ = 0 and values 0
    assert rewards.var(unbiased=False).item() == pytest.approx(1.0, rel=1e-4)
    assert rewards.mean().item() == pytest.approx(7.0 * 8 / len(rewards), rel=1e-4)


def test_prompts_must_fit_the_context(base: str, settings: Any) -> None:
    def make(prompts: list, **changes: Any) -> MultiRewardPPOTrainer:
        return MultiRewardPPOTrainer(
            base,
            count_word("w5"),
            [1.0],
            args=settings(**changes),
            train_dataset=Dataset.from_dict({"prompt": prompts}),
        )

    long = " ".join(["w1"] * 59)  # the context has 64 tokens, a completion 6
    with pytest.raises(ConfigurationError, match=r"row 15: Prompt 0 has 59 tokens, and a completion may have 6: .* 64"):
        make(["w1"] * 15 + [long])
    make(["w1"] * 15 + [long.removesuffix(" w1")])
    chat = [[{"role": "user", "content": text}] for text in ["w1"] * 15 + [long]]
    with pytest.raises(ConfigurationError, match="row 15: Prompt 0 has 60 tokens"):
        make(chat)
    with pytest.raises(ConfigurationError, match="row 3: Prompt 0 is empty"):
        make(["w1", "w1", "w1", ""] * 4)
    with pytest.raises(ConfigurationError, match="context of 64 tokens has no room for max_prompt_length=60"):
        make(["w1"] * 16, max_prompt_length=60)
    with pytest.raises(ConfigurationError, match="has no room"):
        make(["w1"] * 16, max_completion_length=64)


def test_long_prompts_can_be_cut_to_their_end(base: str, settings: Any) -> None:
    prompts = Dataset.from_dict({"prompt": [" ".join(f"w{i % 29}" for i in range(100))] * 16})
    trainer = MultiRewardPPOTrainer(
        base, count_word("w5"), [1.0], args=settings(max_prompt_length=5, max_steps=1), train_dataset=prompts
    )
    batches = spying(trainer)
    trainer.train()
    expected = tiny_tokenizer()(" ".join(f"w{i % 29}" for i in range(95, 100)))["input_ids"]
    assert batches[0]["prompt_ids"].tolist() == [expected] * 8


def test_pad_may_be_eos_and_completions_may_be_empty(base: str, prompts: Dataset, settings: Any) -> None:
    """A policy that stops at once: one token, EOS, is all it generates, and all that is learned from."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "<eos>"
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.weight[1] = 50.0 * model.model.norm.weight.sign()
    seen: list[str] = []

    def reward(completions: list[str], **columns: Any) -> list[float]:
        seen.extend(completions)
        return [float(i) for i in range(len(completions))]

    args = settings(max_steps=1, missing_eos_penalty=5.0, score_normalization="none")
    trainer = MultiRewardPPOTrainer(model, reward, [1.0], args=args, train_dataset=prompts, processing_class=tokenizer)
    batches = spying(trainer)
    trainer.train()
    empty = [i for i, ids in enumerate(batches[0]["completion_ids"]) if ids[0] == tokenizer.eos_token_id]
    assert empty
    for i in empty:
        assert seen[i] == ""
        assert batches[0]["generated_tokens"][i].sum() == 1
    cut = trainer._cut_off(batches[0])
    assert [int(cut[i]) for i in empty] == [0] * len(empty)


def test_an_adapter_can_be_trained_further(base: str, prompts: Dataset, settings: Any) -> None:
    """The KL is measured from the adapter as it was given, not from the base below it."""
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LORA)
    with torch.no_grad():
        for name, value in policy.named_parameters():
            if "lora_B" in name:
                value.normal_(0.0, 0.3)
    given = weights_of(policy)
    trainer = trained(policy, prompts, settings(max_steps=4))
    assert history(trainer, "kl")[0] == pytest.approx(0.0, abs=1e-6)
    trained_weights = weights_of(trainer.model)
    assert any(not torch.equal(given[name], value) for name, value in trained_weights.items())


def test_the_example_of_grpo_trainer_runs_with_the_class_name_replaced(base: str, prompts: Dataset) -> None:
    """The one argument besides is the number of steps."""
    from trl_bonesoup import MultiRewardPPOConfig as GRPOConfig
    from trl_bonesoup import MultiRewardPPOTrainer as GRPOTrainer

    def reward_num_unique_letters(completions: list, **kwargs: Any) -> list[float]:
        """Reward function that rewards completions with more unique letters."""
        return [float(len(set(content))) for content in completions]

    trainer = GRPOTrainer(
        model=base,
        reward_funcs=reward_num_unique_letters,
        train_dataset=prompts,
        args=GRPOConfig(max_steps=1, max_completion_length=8, save_strategy="no", report_to="none"),
    )
    trainer.train()
    assert history(trainer, "rewards/reward_num_unique_letters/mean")[0] > 0

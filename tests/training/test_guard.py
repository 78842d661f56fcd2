"""A run that has gone wrong stops at that step, says what is still good and what to change, and saves nothing bad."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from tiny import count_word, save_tiny, tiny_llama

from trl_bonesoup import MultiRewardPPOTrainer, circulant_weights, seek
from trl_bonesoup.errors import ConfigurationError, TrainingError
from trl_bonesoup.training.finite import first_not_finite

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
REWARDS = [count_word("w5"), count_word("w7")]


def make(base: Any, prompts: Dataset, args: Any, **kwargs: Any) -> MultiRewardPPOTrainer:
    return MultiRewardPPOTrainer(base, REWARDS, [0.7, 0.3], args=args, train_dataset=prompts, **kwargs)


def spoil_step(trainer: MultiRewardPPOTrainer, step: int, spoil: Any) -> None:
    """Change what the given optimizer step finds, just before its gradient is looked at."""
    clip = trainer._clip_grad_norm

    def clipped(model: torch.nn.Module) -> Any:
        if trainer.state.global_step + 1 == step:
            spoil(trainer)
        return clip(model)

    trainer._clip_grad_norm = clipped  # type: ignore[method-assign]


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def bad_policy(trainer: MultiRewardPPOTrainer) -> None:
    next(p for p in trainer.model.parameters() if p.grad is not None).grad.view(-1)[3] = torch.nan


def bad_critic(trainer: MultiRewardPPOTrainer) -> None:
    trainer.critic.linear.bias.grad.fill_(torch.inf)


@pytest.mark.parametrize(
    ("spoil", "sign"), [(bad_policy, r"norm nan, the critic's "), (bad_critic, r"the critic's (inf|nan)")]
)
def test_a_gradient_that_is_not_finite_stops_the_run_with_its_step_and_the_checkpoint_before(
    base: str, prompts: Dataset, settings: Any, spoil: Any, sign: str
) -> None:
    args = settings(max_steps=8, save_strategy="steps", save_steps=2)
    trainer = make(base, prompts, args, peft_config=LORA)
    spoil_step(trainer, 5, spoil)
    good = Path(args.output_dir) / "checkpoint-4"
    with pytest.raises(TrainingError, match=rf"gradient of optimizer step 5 is not finite.*{sign}") as caught:
        trainer.train()
    assert f"The last good checkpoint is {good}." in str(caught.value)
    assert "Lower learning_rate=0.01" in str(caught.value)
    saved = load_file(good / "adapter_model.safetensors")
    for name, value in weights_of(trainer.model).items():  # the step was not taken
        assert torch.equal(saved[name.replace(".default", "")], value), name
    assert trainer.state.global_step == 4


def test_before_the_first_checkpoint_the_message_says_that_there_is_none(
    base: str, prompts: Dataset, settings: Any
) -> None:
    trainer = make(base, prompts, settings())
    spoil_step(trainer, 1, bad_policy)
    with pytest.raises(TrainingError, match=r"optimizer step 1 .*There is no checkpoint in .*run yet"):
        trainer.train()


@pytest.mark.parametrize(
    ("changes", "owner"),
    [
        ({"learning_rate": 1e38, "vf_coef": 0.0, "whiten_advantages": False}, "policy"),
        ({"learning_rate": 1e-3, "critic_learning_rate": 1e38, "vf_coef": 1e3, "detach_critic": True}, "critic"),
    ],
)
def test_weights_that_a_step_made_infinite_are_never_saved(
    base: str, prompts: Dataset, settings: Any, changes: dict[str, Any], owner: str
) -> None:
    args = settings(
        max_steps=4, save_strategy="steps", save_steps=2, num_iterations=1, optim="sgd", max_grad_norm=0.0,
        lr_scheduler_type="constant", score_normalization="none", weight_decay=0.0, **changes,
    )  # fmt: skip
    with pytest.raises(TrainingError, match=rf"Optimizer step \d left weights of the {owner} that are not finite \("):
        seek(base, [loud, REWARDS[1]], circulant_weights(2, 0.7), args, prompts, peft_config=None)
    folder = Path(args.output_dir)
    for file in folder.rglob("*.safetensors"):
        assert first_not_finite(load_file(file).items()) is None, file
    assert not (folder / "loud").exists()
    assert not (folder / "soup.json").exists()


def loud(completions: list[str], **columns: Any) -> list[float]:
    return [1e3 * i for i in range(len(completions))]


def test_the_critics_gradient_is_clipped_and_its_norm_is_logged(base: str, prompts: Dataset, settings: Any) -> None:
    """An SGD step of rate 1 moves the head by the norm of its gradient, and by no more than max_grad_norm."""
    moved = {}
    for bound in (1e9, 0.25):
        args = settings(
            max_steps=1, num_iterations=1, optim="sgd", learning_rate=0.0, critic_learning_rate=1.0,
            max_grad_norm=bound, lr_scheduler_type="constant", vf_coef=1.0,
            score_normalization="none", cliprange_value=None,
        )  # fmt: skip
        trainer = make(base, prompts, args, peft_config=LORA)
        before = torch.cat([p.detach().flatten().clone() for p in trainer.critic.parameters()])
        trainer.train()
        after = torch.cat([p.detach().flatten() for p in trainer.critic.parameters()])
        (norm,) = [entry["value/grad_norm"] for entry in trainer.state.log_history if "value/grad_norm" in entry]
        moved[bound] = float((after - before).norm()), norm
    assert moved[1e9][0] == pytest.approx(moved[1e9][1], rel=1e-4)
    assert moved[1e9][1] == moved[0.25][1] > 0.25
    assert moved[0.25][0] == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize(
    ("error", "changes", "advice"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), {},
         "per_device_train_batch_size=8 .*gradient_accumulation_steps=1 .*max_completion_length=6, set activation_"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes."),
         {"num_generations": 4, "activation_checkpointing": True}, r"num_generations=4 or train an adapter"),
        (MemoryError(), {}, "Not enough memory at optimizer step 3: MemoryError"),
    ],
)  # fmt: skip
def test_out_of_memory_says_what_to_lower(
    base: str, prompts: Dataset, settings: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, changes: dict,
    advice: str,
) -> None:  # fmt: skip
    args = settings(max_steps=4, save_strategy="steps", save_steps=2, **changes)
    trainer = make(base, prompts, args)
    compute = trainer._compute_loss

    def full(model: Any, inputs: Any) -> Any:
        if trainer.state.global_step == 2:
            raise error
        return compute(model, inputs)

    monkeypatch.setattr(trainer, "_compute_loss", full)
    with pytest.raises(TrainingError, match=advice) as caught:
        trainer.train()
    assert "Not enough memory at optimizer step 3: " in str(caught.value)
    assert str(error).splitlines()[0:1] == [] or str(error) in str(caught.value)
    assert f"The last good checkpoint is {Path(args.output_dir) / 'checkpoint-2'}." in str(caught.value)


def test_other_errors_stay_what_they_are(
    base: str, prompts: Dataset, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(base, prompts, settings())

    def wrong(model: Any, inputs: Any) -> Any:
        raise RuntimeError("The size of tensor a must match")

    monkeypatch.setattr(trainer, "_compute_loss", wrong)
    with pytest.raises(RuntimeError, match="The size of tensor a must match") as caught:
        trainer.train()
    assert type(caught.value) is RuntimeError


def test_logits_that_overflow_are_named(base: str, prompts: Dataset, settings: Any) -> None:
    """Weights that are finite and so large that the hidden states are not."""
    model = tiny_llama()
    with torch.no_grad():
        model.model.norm.weight.fill_(1e38)
        model.lm_head.weight.mul_(1e3)
    model.config._name_or_path = base
    with pytest.raises(TrainingError, match="logits are not finite at optimizer step 1"):
        make(model, prompts, settings()).train()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_base_that_is_not_finite_is_refused_with_the_tensor(
    prompts: Dataset, settings: Any, tmp_path: Path, value: float
) -> None:
    folder = save_tiny(tmp_path / "bad")
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[2, 3] = value
    model.save_pretrained(folder)
    with pytest.raises(ConfigurationError, match=r"NaN or infinity in .*layers\.1\.mlp\.up_proj.*weight"):
        make(str(folder), prompts, settings())


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(
    prompts: Dataset, settings: Any, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "short", vocab_size=30)
    message = re.escape("tokens up to number 31 and the model 30 embeddings")
    with pytest.raises(ConfigurationError, match=message + r".*resize_token_embeddings\(32\)"):
        make(str(folder), prompts, settings())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_first_tensor_that_is_not_finite(dtype: torch.dtype) -> None:
    large = torch.full((4096,), torch.finfo(dtype).max, dtype=dtype)  # their sum overflows, and they are finite
    fine = [("large", large), ("whole", torch.arange(3)), ("empty", torch.empty(0, dtype=dtype))]
    assert first_not_finite(fine) is None
    assert first_not_finite([]) is None
    cancels = torch.tensor([torch.inf, -torch.inf, 1.0], dtype=dtype)
    assert first_not_finite([*fine, ("second", cancels), ("third", cancels * 0)]) == "second"

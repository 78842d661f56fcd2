"""How often the model is run, and that a pass which is used again gives what a new one would."""

from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny import count_word

from trl_bonesoup import MultiRewardPPOTrainer
from trl_bonesoup.training import forward

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


def make(base: str, prompts: Dataset, args: Any) -> MultiRewardPPOTrainer:
    torch.manual_seed(0)
    trainer = MultiRewardPPOTrainer(base, count_word("w5"), [1.0], args=args, train_dataset=prompts, peft_config=LORA)
    torch.manual_seed(1)
    return trainer


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, 1 + 1 + 2),  # rollout, reference, and the second and third epoch
        ({"kl_coef": 0.0}, 1 + 2),
        ({"num_mini_batches": 2}, 2 + 2 + 2 * 3),  # in halves: rollout, reference, and three epochs
        ({"activation_checkpointing": True}, 1 + 1 + 3),
    ],
    ids=["usual", "no reference", "mini-batches", "checkpointing"],
)
def test_passes_per_rollout(base: str, prompts: Dataset, settings: Any, changes: dict[str, Any], passes: int) -> None:
    steps = 3 * changes.get("num_mini_batches", 1)
    trainer = make(base, prompts, settings(max_steps=2 * steps, num_iterations=3, **changes))
    seen = []
    trunk = trainer.model.get_base_model().model
    trunk.register_forward_hook(lambda module, args, output: seen.append(output.last_hidden_state.requires_grad))
    generate = trainer._generate

    def without_counting(*args: Any) -> Any:
        before = len(seen)
        result = generate(*args)
        del seen[before:]
        return result

    trainer._generate = without_counting
    trainer.train()
    assert len(seen) == 2 * passes


@pytest.mark.parametrize("changes", [{}, {"entropy_coef": 0.1, "detach_critic": True}, {"missing_eos_penalty": 1.0}])
def test_a_pass_used_again_trains_the_same(
    base: str, prompts: Dataset, settings: Any, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained() -> MultiRewardPPOTrainer:
        trainer = make(base, prompts, settings(max_steps=6, num_iterations=3, **changes))
        trainer.train()
        return trainer

    again = trained()
    monkeypatch.setattr(MultiRewardPPOTrainer, "_may_keep_first_pass", lambda self: False)
    anew = trained()
    for (name, expected), value in zip(anew.model.named_parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(value, expected, msg=name)
    for expected, value in zip(anew.critic.parameters(), again.critic.parameters(), strict=True):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_kept_logits_train_what_tiles_do(
    base: str, prompts: Dataset, settings: Any, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    def trained() -> MultiRewardPPOTrainer:
        trainer = make(base, prompts, settings(max_steps=4, temperature=temperature))
        trainer.train()
        return trainer

    kept = trained()
    monkeypatch.setattr(forward, "MOST_LOGITS", 0)
    tiled = trained()
    for (name, expected), value in zip(tiled.model.named_parameters(), kept.model.parameters(), strict=True):
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4, msg=name)
    entropies = [[e["entropy"] for e in t.state.log_history if "entropy" in e] for t in (kept, tiled)]
    assert entropies[0] == pytest.approx(entropies[1], abs=1e-4)

"""A prefix that is run once gives what running it in every row does."""

from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tiny import count_word, tiny_llama
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config

from trl_bonesoup import MultiRewardPPOTrainer
from trl_bonesoup.training import prefix
from trl_bonesoup.training.prefix import after_prefix, has_plain_attention, shared_prefix

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture
def any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "FEWEST_TOKENS", 1)


def batch(prompts: list[list[int]], completions: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts padded on the left, completions on the right, with 0."""
    width, tokens = max(map(len, prompts)), max(map(len, completions))
    rows = [
        ([0] * (width - len(p)) + p + c + [0] * (tokens - len(c)),
         [0] * (width - len(p)) + [1] * (len(p) + len(c)) + [0] * (tokens - len(c)))
        for p, c in zip(prompts, completions, strict=True)
    ]  # fmt: skip
    return torch.tensor([ids for ids, _ in rows]), torch.tensor([mask for _, mask in rows])


@pytest.mark.parametrize(
    ("prompts", "length"),
    [
        ([[7, 8, 9, 4], [7, 8, 9, 5]], 3),
        ([[7, 8, 9, 4], [7, 8, 9, 4]], 3),  # the last token of a prompt is never part of it
        ([[7, 8, 9, 4], [7, 8, 9]], 2),
        ([[7, 8], [7, 8, 9, 4, 5, 6]], 1),
        ([[7, 8, 9, 4], [5, 8, 9, 4]], 0),
        ([[7], [7]], 0),
        ([[7, 8, 1, 9], [7, 8, 2, 9]], 2),  # what is equal after a difference does not count
        ([[7, 8, 9]], 0),  # one row has nobody to share with
    ],
)
def test_what_all_rows_begin_with(prompts: list[list[int]], length: int, any_length: None) -> None:
    ids, mask = batch(prompts, [[3, 3]] * len(prompts))
    assert shared_prefix(ids, mask, 2) == length


def test_a_short_prefix_does_not_pay() -> None:
    ids, mask = batch([[*range(3, 13), 4]] * 7, [[3]] * 7)
    assert shared_prefix(ids, mask, 1) == 0  # 6 · 10 tokens saved
    ids, mask = batch([[*range(3, 13), 4]] * 8, [[3]] * 8)
    assert shared_prefix(ids, mask, 1) == 10


def test_hidden_states_and_gradients_are_the_same() -> None:
    model = tiny_llama()
    ids, mask = batch([[7, 8, 9, 4], [7, 8, 9, 5, 6, 10], [7, 8, 9, 11, 12]], [[3, 4, 5], [6], [9, 8]])
    length = 3

    def run(shared: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        inputs = {"input_ids": ids, "attention_mask": mask}
        if shared:
            inputs = after_prefix(model.model, ids, mask, length)
        hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, -4:]
        kept = hidden[mask[:, -4:].bool()]
        gradients = torch.autograd.grad(
            (kept * torch.arange(kept.numel()).view_as(kept)).sum(), model.model.parameters()
        )
        return kept, list(gradients)

    plain, shared = run(False), run(True)
    torch.testing.assert_close(shared[0], plain[0], atol=1e-5, rtol=1e-5)
    for expected, value in zip(plain[1], shared[1], strict=True):
        torch.testing.assert_close(value, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("changes", [{"peft_config": LORA}, {}, {"value_model": LORA, "peft_config": LORA}])
def test_training_is_the_same(
    base: str, settings: Any, monkeypatch: pytest.MonkeyPatch, any_length: None, changes: dict[str, Any]
) -> None:
    chats = Dataset.from_dict(
        {"prompt": [" ".join(["w3 w4 w5", *["w6"] * (i % 3), f"w{i}"]) for i in range(16)]}  # of several lengths
    )
    used = []
    original = after_prefix
    monkeypatch.setattr(
        "trl_bonesoup.training.forward.after_prefix", lambda *args: used.append(args[3]) or original(*args)
    )

    def trained() -> MultiRewardPPOTrainer:
        torch.manual_seed(0)
        args = settings(max_steps=4, optim="sgd", learning_rate=0.5, vf_coef=1.0)
        trainer = MultiRewardPPOTrainer(base, count_word("w5"), [1.0], args=args, train_dataset=chats, **changes)
        torch.manual_seed(1)
        trainer.train()
        return trainer

    shared = trained()
    passes = 2 * (1 + 1 + 1)  # two rollouts: rollout and first epoch, reference, second epoch
    assert used == [3] * passes
    monkeypatch.setattr(prefix, "FEWEST_TOKENS", 10**9)
    plain = trained()
    assert len(used) == passes
    for (name, expected), value in zip(plain.model.named_parameters(), shared.model.parameters(), strict=True):
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4, msg=name)
    for expected, value in zip(plain.critic.parameters(), shared.critic.parameters(), strict=True):
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4)


def test_models_that_do_not_see_all_earlier_tokens_are_left_alone() -> None:
    assert has_plain_attention(LlamaConfig())
    assert has_plain_attention(Qwen2Config())
    assert not has_plain_attention(MistralConfig(sliding_window=8))
    assert not has_plain_attention(Gemma3TextConfig())

"""The critic in its three kinds: on the policy's trunk, an adapter of its own, a model of its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import WORDS, count_word, save_tiny, tiny_llama, tiny_tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification

from trl_bonesoup import MultiRewardPPOTrainer
from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.training.critic import ValueHead, ValueModel, make_critic

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


def trained(base: str, prompts: Dataset, args: Any, **kwargs: Any) -> MultiRewardPPOTrainer:
    trainer = MultiRewardPPOTrainer(base, count_word("w5"), [1.0], args=args, train_dataset=prompts, **kwargs)
    trainer.train()
    return trainer


def history(trainer: MultiRewardPPOTrainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reward model with one label, over the tokens of the policy."""
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=24, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=None, num_labels=1,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def test_values_are_read_where_each_token_is_chosen(classifier: str, base: str) -> None:
    """Against a plain forward pass of the classifier: the value of token t comes from position t-1."""
    critic = make_critic(classifier, tiny_llama())
    whole = LlamaForSequenceClassification.from_pretrained(classifier).eval()
    ids = torch.randint(3, 32, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    values = critic.eval()(ids, mask, 3)
    for row in range(2):
        for t in range(3):
            prefix = ids[row : row + 1, : 4 + t]
            torch.testing.assert_close(values[row, t], whole(prefix).logits[0, 0])


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_a_separate_critic_learns_and_leaves_the_policy_to_the_advantages(
    base: str, prompts: Dataset, settings: Any, classifier: str, tmp_path: Path, kind: str
) -> None:
    value_model = LORA if kind == "adapter" else classifier
    args = settings(
        max_steps=60, critic_learning_rate=2e-2, vf_coef=1.0, cliprange_value=None, learning_rate=0.0,
        lr_scheduler_type="constant", score_normalization="none", kl_coef=0.0,
    )  # fmt: skip

    def constant(completions: list, **columns: Any) -> list[float]:
        return [2.0] * len(completions)

    trainer = MultiRewardPPOTrainer(
        base, constant, [1.0], args=args, train_dataset=prompts, peft_config=LORA, value_model=value_model
    )
    before = weights_of(trainer.model)
    trainer.train()
    assert isinstance(trainer.critic, ValueModel)
    assert np.mean(history(trainer, "value/mean")[-5:]) == pytest.approx(2.0, abs=0.3)
    assert np.mean(history(trainer, "value/loss")[-5:]) < 0.05 * history(trainer, "value/loss")[0]
    for name, value in weights_of(trainer.model).items():
        assert torch.equal(before[name], value), name  # learning rate 0: nothing leaked into the policy
    trainer.save_model(str(tmp_path / "policy"))
    with safe_open(tmp_path / "policy" / "adapter_model.safetensors", "pt") as file:
        assert len(file.keys()) == 2 * 7 * 2  # A and B of 7 layers in 2 blocks


def test_an_adapter_as_critic_shares_the_base_and_is_saved_alone(
    base: str, prompts: Dataset, settings: Any, tmp_path: Path
) -> None:
    args = settings(max_steps=2, save_strategy="steps", save_steps=2)
    trainer = trained(base, prompts, args, peft_config=LORA, value_model=LORA)
    policy = {value.data_ptr() for value in trainer.model.parameters()}
    frozen = [value for value in trainer.critic.parameters() if not value.requires_grad]
    assert frozen
    assert all(value.data_ptr() in policy for value in frozen)
    learned = {name for name, value in trainer.critic.named_parameters() if value.requires_grad}
    assert all(".lora_" in name or name.startswith("head.") for name in learned)
    assert set(load_file(tmp_path / "run" / "checkpoint-2" / "critic.safetensors")) == learned
    original = tiny_llama().state_dict()
    for name, value in trainer.model.get_base_model().state_dict().items():
        if "lora" not in name:
            assert torch.equal(value, original[name.replace(".base_layer", "")]), name


def test_the_policy_pass_does_not_depend_on_the_kind_of_critic(base: str, prompts: Dataset, settings: Any) -> None:
    """Both critics say 0 as long as nothing is learned from the value loss, so the policies must agree."""

    def run(value_model: Any) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        trainer = MultiRewardPPOTrainer(
            base, count_word("w5"), [1.0], args=settings(max_steps=2, num_iterations=1, vf_coef=0.0),
            train_dataset=prompts, peft_config=LORA, value_model=value_model,
        )  # fmt: skip
        torch.manual_seed(1)
        trainer.train()
        return weights_of(trainer.model)

    shared, adapter = run(None), run(LORA)
    assert shared.keys() == adapter.keys()
    for name, value in shared.items():
        torch.testing.assert_close(adapter[name], value, msg=name)


def test_warm_up_moves_the_critic_alone(base: str, prompts: Dataset, settings: Any) -> None:
    def run(steps: int) -> tuple[Any, dict[str, torch.Tensor]]:
        args = settings(max_steps=steps, critic_warmup_steps=4, vf_coef=1.0, entropy_coef=0.1)
        trainer = MultiRewardPPOTrainer(base, count_word("w5"), [1.0], args=args, train_dataset=prompts)
        before = weights_of(trainer.model)
        trainer.train()
        return trainer, before

    trainer, before = run(4)
    assert all(torch.equal(before[name], value) for name, value in weights_of(trainer.model).items())
    assert trainer.critic.linear.bias.item() != 0.0
    trainer, before = run(6)
    assert not all(torch.equal(before[name], value) for name, value in weights_of(trainer.model).items())


def test_critics_that_do_not_fit_are_refused(base: str, prompts: Dataset, settings: Any, tmp_path: Path) -> None:
    def make(value_model: Any, **kwargs: Any) -> None:
        MultiRewardPPOTrainer(
            base, count_word("w5"), [1.0], args=settings(), train_dataset=prompts, value_model=value_model, **kwargs
        )

    with pytest.raises(ConfigurationError, match="this policy is a whole model"):
        make(LORA)
    with pytest.raises(ConfigurationError, match="vocabulary of 40 tokens and the policy one of 32"):
        make(str(save_tiny(tmp_path / "other", vocab_size=40)))
    with pytest.raises(ConfigurationError, match="value_model must be None, a PEFT configuration"):
        make(3)


def test_a_head_starts_where_the_classifier_was(classifier: str) -> None:
    critic = make_critic(classifier, tiny_llama())
    assert torch.equal(critic.head.linear.weight, load_file(Path(classifier) / "model.safetensors")["score.weight"])
    plain = make_critic(None, tiny_llama())
    assert isinstance(plain, ValueHead)
    assert not plain.linear.weight.any()
    assert tiny_tokenizer().pad_token_id == 0

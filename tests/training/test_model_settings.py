"""What `seek` loads the base model with, and that nothing says the opposite."""

import logging
from typing import Any

import pytest
from datasets import Dataset
from tiny import count_word
from transformers import AutoModelForCausalLM, TrainerCallback

from trl_bonesoup import circulant_weights, seek
from trl_bonesoup.training.upstream import model_settings_were_used

REWARDS = [count_word("w5"), count_word("w7")]
B = circulant_weights(2, beta=0.7)
SAYS_IGNORED = "`model_init_kwargs` will be ignored"


class Look(TrainerCallback):
    """Notes how the attention of each trained model is computed."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.seen.append(model.config._attn_implementation)


def warnings_of(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)


def test_settings_that_seek_loaded_the_model_with_are_not_called_ignored(
    base: str, prompts: Dataset, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    args, look = settings(max_steps=2, model_init_kwargs={"attn_implementation": "eager"}), Look()
    seek(base, REWARDS, B, args, prompts, callbacks=[look])
    assert look.seen == ["eager"] * 2
    assert SAYS_IGNORED not in warnings_of(caplog)


def test_settings_for_a_model_that_is_loaded_already_are(
    base: str, prompts: Dataset, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    args, look = settings(max_steps=2, model_init_kwargs={"attn_implementation": "eager"}), Look()
    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="sdpa")
    seek(model, REWARDS, B, args, prompts, callbacks=[look], backbones=[0])
    assert look.seen == ["sdpa"]
    assert SAYS_IGNORED in warnings_of(caplog)


def test_no_other_warning_is_kept_back(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("trl.trainer.grpo_trainer")
    ignored = f"You passed `model_init_kwargs` to the `GRPOConfig`. The {SAYS_IGNORED}."
    with model_settings_were_used():
        logger.warning(ignored)
        logger.warning("You passed `quantization_config` to the trainer. The `quantization_config` will be ignored.")
    assert [record.getMessage().split()[2] for record in caplog.records] == ["`quantization_config`"]
    logger.warning(ignored)
    assert SAYS_IGNORED in warnings_of(caplog)

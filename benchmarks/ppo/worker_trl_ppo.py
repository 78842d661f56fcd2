"""One run of the last released PPOTrainer of TRL, 1.12, in an environment of its own: worker_trl_ppo.py WORK RESULT"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from common import Meter, common_arguments, lora, start
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
from work import Work


class TextReward(torch.nn.Module):
    """Stands where PPOTrainer expects a reward model, and scores the text of completions."""

    def __init__(self, meter: Meter, tokenizer: Any):
        super().__init__()
        self.meter = meter
        self.tokenizer = tokenizer

    def forward(self, completion_ids: torch.Tensor) -> torch.Tensor:
        texts = self.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
        return torch.tensor(self.meter.positivity(texts), device=completion_ids.device)


def accept_text_rewards() -> None:
    """Let PPOTrainer ask a `TextReward` for scores; its value model is asked as before."""
    upstream = ppo_trainer.get_reward

    def get_reward(model: Any, query_responses: torch.Tensor, pad_token_id: int, context_length: int) -> Any:
        if isinstance(model, TextReward):
            return None, model(query_responses[:, context_length:]), None
        return upstream(model, query_responses, pad_token_id, context_length)

    ppo_trainer.get_reward = get_reward


def tokenized(work: Work, tokenizer: Any) -> Dataset:
    encoded = tokenizer.apply_chat_template(work.prompts, add_generation_prompt=True, return_dict=True)
    return Dataset.from_dict({"input_ids": encoded["input_ids"]})


def main() -> None:
    work, result = start()
    meter = Meter(work, optimizer_steps=1)
    accept_text_rewards()
    tokenizer = AutoTokenizer.from_pretrained(work.model, padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=PPOConfig(
                **common_arguments(work, Path(folder)),
                total_episodes=(work.warm_up + work.steps) * work.completions,
                num_ppo_epochs=work.epochs,
                response_length=work.tokens,
                kl_coef=work.kl_coef,
                stop_token=None if work.fixed_length else "eos",
            ),
            processing_class=tokenizer,
            model=AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32),
            ref_model=None,
            reward_model=TextReward(meter, tokenizer),
            value_model=AutoModelForSequenceClassification.from_pretrained(
                work.model, num_labels=1, dtype=torch.float32
            ),
            train_dataset=tokenized(work, tokenizer),
            peft_config=lora(work),
            callbacks=[meter],
        )
        trainer.train()
    meter.write(result)


if __name__ == "__main__":
    main()

"""Train one backbone on a mixture of two rewards: python examples/one_backbone.py MODEL"""

import sys
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig

from trl_bonesoup import MultiRewardPPOConfig, MultiRewardPPOTrainer, circulant_weights
from trl_bonesoup.rewards.offline import positivity
from trl_bonesoup.rewards.protocol import completion_texts


def asks_back(completions, **columns):
    """Score 1 for an answer that ends in a question, else 0."""
    return [float(text.rstrip().endswith("?")) for text in completion_texts(completions)]


def main(model: str, output_dir: str = "runs/one-backbone", max_steps: int = 40) -> None:
    lines = Path(__file__).with_name("prompts.txt").read_text(encoding="utf-8").splitlines()
    trainer = MultiRewardPPOTrainer(
        model,
        reward_funcs=[positivity, asks_back],
        combination_weights=circulant_weights(2, beta=0.7),
        backbone=0,  # 70 % positivity, 30 % asks_back
        args=MultiRewardPPOConfig(
            output_dir,
            per_device_train_batch_size=8,
            max_completion_length=48,
            max_steps=max_steps,
            learning_rate=5e-4,
            logging_steps=1,
            report_to="none",
        ),
        train_dataset=Dataset.from_dict({"prompt": [[{"role": "user", "content": line}] for line in lines]}),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model(output_dir)


if __name__ == "__main__":
    main(*sys.argv[1:2])

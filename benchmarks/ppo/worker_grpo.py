"""One run of TRL's GRPOTrainer, the floor: worker_grpo.py WORK RESULT

It generates and learns from as many tokens, but has no critic.
"""

import tempfile
from pathlib import Path

from common import Meter, common_arguments, lora, start
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

GROUP = 4


def main() -> None:
    work, result = start()
    meter = Meter(work, optimizer_steps=work.epochs)
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            work.model,
            reward_funcs=meter.positivity,
            args=GRPOConfig(
                **common_arguments(work, Path(folder)),
                max_steps=(work.warm_up + work.steps) * work.epochs,
                num_iterations=work.epochs,
                num_generations=GROUP,
                max_completion_length=work.tokens,
                beta=work.kl_coef,
                model_init_kwargs={"dtype": "float32"},
                generation_kwargs={"min_new_tokens": work.tokens} if work.fixed_length else None,
            ),
            train_dataset=Dataset.from_dict({"prompt": work.prompts}),
            peft_config=lora(work),
            callbacks=[meter],
        )
        trainer.train()
    meter.write(result)


if __name__ == "__main__":
    main()

"""One run of this project's trainer: worker_bonesoup.py WORK RESULT"""

import tempfile
from pathlib import Path

from common import Meter, common_arguments, lora, start
from datasets import Dataset

from trl_bonesoup import MultiRewardPPOConfig, MultiRewardPPOTrainer


def main() -> None:
    work, result = start()
    meter = Meter(work, optimizer_steps=work.epochs)
    with tempfile.TemporaryDirectory() as folder:
        trainer = MultiRewardPPOTrainer(
            work.model,
            reward_funcs=meter.positivity,
            args=MultiRewardPPOConfig(
                **common_arguments(work, Path(folder)),
                max_steps=(work.warm_up + work.steps) * work.epochs,
                num_iterations=work.epochs,
                max_completion_length=work.tokens,
                kl_coef=work.kl_coef,
                score_normalization="none",
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

"""What the three workers share: reading the work, the reward, the measuring, and the adapter."""

from __future__ import annotations

import functools
import json
import platform
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import GenerationMixin, TrainerCallback, set_seed
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
from work import Work

PACKAGES = ("trl", "transformers", "peft", "torch", "accelerate")


def start() -> tuple[Work, Path]:
    """Read the work named on the command line and where its result goes, and settle seed and threads."""
    work = Work(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    if work.threads:
        torch.set_num_threads(work.threads)
    set_seed(work.seed)
    return work, Path(sys.argv[2])


def lora(work: Work) -> LoraConfig:
    return LoraConfig(
        r=work.lora_rank, lora_alpha=2 * work.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def common_arguments(work: Work, output_dir: Path) -> dict[str, Any]:
    """Return the arguments that all three configurations know, with the same meaning."""
    return {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": work.completions,
        "gradient_accumulation_steps": 1,
        "learning_rate": work.learning_rate,
        "lr_scheduler_type": "constant",
        "temperature": 1.0,
        "seed": work.seed,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


class Meter(TrainerCallback):
    """Measures every rollout batch, from its first prompt to its last optimizer step, and scores its completions.

    Args:
        work: what is being measured.
        optimizer_steps: how many of the trainer's steps make one rollout batch with its epochs.
    """

    def __init__(self, work: Work, optimizer_steps: int):
        self.work = work
        self.optimizer_steps = optimizer_steps
        self.analyzer = SentimentIntensityAnalyzer()
        self.steps: list[dict[str, float]] = []
        self.peak_before_training = 0.0
        self._generated = {"generation_seconds": 0.0, "tokens": 0}
        self._reward = 0.0
        self._mark = 0.0
        self._watch_generation()

    def positivity(self, completions: list, **columns: Any) -> list[float]:
        """Score completions, texts or messages, by VADER's compound sentiment, and note the mean."""
        texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
        scores = [self.analyzer.polarity_scores(text)["compound"] for text in texts]
        self._reward = sum(scores) / len(scores)
        return scores

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.peak_before_training = peak_mib()
        self._mark = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.optimizer_steps:
            return
        now = time.perf_counter()
        self.steps.append({"seconds": now - self._mark, "reward": self._reward, **self._generated})
        self._generated = {"generation_seconds": 0.0, "tokens": 0}
        self._mark = now

    def write(self, path: Path) -> None:
        """Write the measurements, after checking that the work was the agreed one."""
        expected = self.work.warm_up + self.work.steps
        if len(self.steps) != expected:
            raise RuntimeError(f"{len(self.steps)} rollout batches were measured instead of {expected}.")
        tokens = self.work.completions * self.work.tokens
        if self.work.fixed_length and {step["tokens"] for step in self.steps} != {tokens}:
            raise RuntimeError(f"Every rollout batch must have {tokens} tokens; got {self.steps}.")
        result = {
            "work": self.work.record(),
            "steps": self.steps,
            "peak_mib": peak_mib(),
            "peak_before_training_mib": self.peak_before_training,
            "threads": torch.get_num_threads(),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        }
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    def _watch_generation(self) -> None:
        generate = GenerationMixin.generate

        @functools.wraps(generate)
        def timed(model: Any, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            output = generate(model, *args, **kwargs)
            self._generated["generation_seconds"] += time.perf_counter() - started
            sequences = getattr(output, "sequences", output)
            self._generated["tokens"] += sequences.numel() - kwargs["input_ids"].numel()
            return output

        GenerationMixin.generate = timed


def peak_mib() -> float:
    """Return the largest resident set that this process has had, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10

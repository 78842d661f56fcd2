"""A small run of `seek` in a process of its own, which can be killed, and everything that it has to end as."""

import json
import multiprocessing
import os
import signal
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from tiny import count_word

from trl_bonesoup import MultiRewardPPOConfig, circulant_weights, seek

_OF_THE_SESSION = (
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "step_time",
    "train_loss",  # `Trainer` takes the mean over the steps since it was started
)


def small_seek(base: str, folder: Path) -> None:
    """Train two backbones of 8 optimizer steps, 2 for each rollout, with checkpoints and all that has a state."""
    args = MultiRewardPPOConfig(
        str(folder), per_device_train_batch_size=4, gradient_accumulation_steps=2, num_iterations=2,
        max_completion_length=4, max_steps=8, save_strategy="steps", save_steps=2, save_total_limit=2,
        learning_rate=1e-2, kl_coef=0.05, kl_target=0.5, kl_horizon=20, report_to="none", use_cpu=True,
        disable_tqdm=True, activation_checkpointing=False, logging_steps=2, seed=3,
    )  # fmt: skip
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
    prompts = Dataset.from_dict({"prompt": [f"w{i} w{i + 1}" for i in range(12)]})
    rewards = [count_word("w5"), count_word("w7")]
    seek(base, rewards, circulant_weights(2, 0.7), args, prompts, peft_config=lora, calibration_samples=8)


def _child(base: str, folder: Path, begun: Any) -> None:
    begun.set()
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        small_seek(base, folder)


class Seeks:
    """Starts runs in new processes that have imported everything already."""

    def __init__(self, base: str):
        self.base = base
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["trl_bonesoup.training.trainer", "killed_seeks"])

    def run(self, folder: Path, kill_after: float | None = None, kill_at: str | None = None) -> tuple[int, float]:
        """Run to the end, or kill -9; return the exit code and the seconds it ran.

        Args:
            folder: of the run.
            kill_after: seconds.
            kill_at: a pattern; as soon as something in the folder has such a name.
        """
        begun = self.context.Event()
        process = self.context.Process(target=_child, args=(self.base, folder, begun))
        process.start()
        assert begun.wait(120)
        start = time.monotonic()
        while kill_at is not None and process.exitcode is None and not any(folder.glob(kill_at)):
            time.sleep(0.001)
        process.join(0.0 if kill_at is not None else kill_after)
        if process.exitcode is None:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        return process.exitcode, time.monotonic() - start


def everything(folder: Path) -> dict[str, Any]:
    """Return all files of a run: as bytes, and JSON without what depends on the session."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            found[name] = _lasting(json.loads(path.read_text(encoding="utf-8")))
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(inner) for key, inner in value.items() if key not in _OF_THE_SESSION}
    return [_lasting(inner) for inner in value] if isinstance(value, list) else value

"""Interrupted runs: killed at any moment, they continue as if they had not been."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from tiny import count_word

from trl_bonesoup import MultiRewardPPOConfig, MultiRewardPPOTrainer
from trl_bonesoup.errors import ConfigurationError, RewardError
from trl_bonesoup.training.resume import last_complete_checkpoint

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


def make(base: str, args: MultiRewardPPOConfig, **kwargs: Any) -> MultiRewardPPOTrainer:
    prompts = Dataset.from_dict({"prompt": [f"w{i} w{i + 1}" for i in range(16)]})
    return MultiRewardPPOTrainer(
        base,
        [count_word("w5"), count_word("w7")],
        [0.7, 0.3],
        **{"args": args, "train_dataset": prompts, "peft_config": LORA, **kwargs},
    )


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def assert_same_end(resumed: MultiRewardPPOTrainer, whole: MultiRewardPPOTrainer) -> None:
    for name, value in weights_of(whole.model).items():
        assert torch.equal(weights_of(resumed.model)[name], value), name
    for expected, value in zip(whole.critic.parameters(), resumed.critic.parameters(), strict=True):
        assert torch.equal(expected, value)
    assert resumed.kl_controller.coef == whole.kl_controller.coef != 0.05
    assert resumed.scoring.normalizer.state_dict() == whole.scoring.normalizer.state_dict()
    timing = ("train_runtime", "step_time")

    def curve(trainer: MultiRewardPPOTrainer) -> list[dict[str, Any]]:
        logs = [entry for entry in trainer.state.log_history if "reward" in entry]
        return [{key: value for key, value in entry.items() if key not in timing} for entry in logs]

    assert len(curve(whole)) == whole.state.max_steps / whole.args.num_iterations
    assert curve(resumed) == curve(whole)


@pytest.mark.parametrize("save_steps", [4, 5], ids=["at a rollout", "postponed to a rollout"])
def test_a_resumed_run_equals_the_uninterrupted_one(base: str, settings: Any, save_steps: int) -> None:
    """Across an epoch boundary (after step 4) and with everything that has a state."""

    def args(folder: str) -> MultiRewardPPOConfig:
        return settings(
            output_dir=folder, max_steps=10, save_strategy="steps", save_steps=save_steps, kl_target=0.5, kl_horizon=20
        )

    folder = settings().output_dir
    whole = make(base, args(folder))
    whole.train()
    saved = sorted(int(path.name.split("-")[1]) for path in Path(folder).glob("checkpoint-*"))
    assert saved == ([4, 8, 10] if save_steps == 4 else [6, 10])
    resumed = make(base, args(folder))
    resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-{saved[0]}")
    assert_same_end(resumed, whole)
    assert whole.scoring.normalizer.count_N.tolist() == [40.0, 40.0]


def train_until_killed(base: str, args: MultiRewardPPOConfig, writes: int) -> None:
    """Train, and kill this process when it opens a file of the run for the `writes`-th time."""
    seen = 0

    def watch(event: str, details: tuple) -> None:
        nonlocal seen
        if event == "open" and str(details[0]).startswith(args.output_dir) and "r" not in str(details[1] or "r"):
            seen += 1
            if seen == writes:
                os.kill(os.getpid(), signal.SIGKILL)

    trainer = make(base, args)
    sys.addaudithook(watch)
    trainer.train()


@pytest.fixture(scope="module")
def in_a_process() -> Callable[..., int]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trl_bonesoup.training.trainer", "tiny"])

    def run(*args: Any) -> int:
        process = context.Process(target=train_until_killed, args=args)
        process.start()
        process.join()
        assert process.exitcode is not None
        return process.exitcode

    return run


def test_a_run_killed_while_it_writes_continues_to_the_same_end(
    base: str, settings: Any, tmp_path: Path, in_a_process: Callable[..., int]
) -> None:
    """Killed at one file after another, with one checkpoint kept: some lack their end, and one run has none at all."""

    def args(folder: str) -> MultiRewardPPOConfig:
        return settings(
            output_dir=str(tmp_path / folder), max_steps=8, save_strategy="steps", save_steps=2, save_total_limit=1,
            kl_target=0.5, kl_horizon=20,
        )  # fmt: skip

    whole = make(base, args("whole"))
    whole.train()
    beginnings = set()
    for writes in (1, 4, 9, 14, 19, 25):
        folder = f"killed-{writes}"
        assert in_a_process(base, args(folder), writes) == -signal.SIGKILL
        found = last_complete_checkpoint(tmp_path / folder)
        beginnings.add(None if found is None else found.name)
        resumed = make(base, args(folder))
        resumed.train(resume_from_checkpoint=True)
        assert_same_end(resumed, whole)
    assert None in beginnings
    assert len(beginnings) >= 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "trainer_state.json").unlink(),
        lambda folder: (folder / "trainer_state.json").write_text('{"epoch": 0.5,'),
        lambda folder: (folder / "bonesoup_state.json").unlink(),
        lambda folder: (folder / "critic.safetensors").write_bytes(b"\x10\x00"),
    ],
    ids=["no trainer state", "half a trainer state", "no state of ours", "half a critic"],
)
def test_a_damaged_checkpoint_is_passed_over(
    base: str, settings: Any, tmp_path: Path, damage: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    args = settings(max_steps=4, save_strategy="steps", save_steps=2)
    make(base, args).train()
    damage(tmp_path / "run" / "checkpoint-4")
    assert last_complete_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-2"
    with pytest.raises(ConfigurationError, match=r"checkpoint-4 cannot be resumed from: it lacks a readable"):
        make(base, args).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run" / "checkpoint-best").mkdir(parents=True)
    assert last_complete_checkpoint(tmp_path / "run") is None


def test_a_critic_of_another_kind_is_refused(base: str, settings: Any, tmp_path: Path) -> None:
    args = settings(max_steps=2, save_strategy="steps", save_steps=2)
    make(base, args).train()
    with pytest.raises(ConfigurationError, match="has other parameters than this run's"):
        make(base, args, value_model=LORA).train(resume_from_checkpoint=True)


def test_a_broken_reward_leaves_the_checkpoint_before_it_whole(base: str, settings: Any, tmp_path: Path) -> None:
    calls = 0

    def reward(completions: list, **columns: Any) -> list[float]:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise ValueError("gone")
        return [1.0] * len(completions)

    args = settings(max_steps=8, save_strategy="steps", save_steps=2, score_normalization="none")
    prompts = Dataset.from_dict({"prompt": ["w1"] * 16})
    with pytest.raises(RewardError, match="'reward' raised ValueError: gone"):
        MultiRewardPPOTrainer(base, reward, args=args, train_dataset=prompts).train()
    assert last_complete_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-4"
    assert json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())["global_step"] == 4


def test_the_hub_token_is_never_written(base: str, settings: Any, tmp_path: Path) -> None:
    args = settings(max_steps=2, save_strategy="steps", save_steps=2, hub_token="hf_secret_of_mine")
    trainer = make(base, args)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert "training_args.bin" in {path.name for path in files}
    assert not [path for path in files if b"hf_secret_of_mine" in path.read_bytes()]
    assert trainer.args.hub_token == "hf_secret_of_mine"


def test_the_critic_is_saved_beside_the_policy(base: str, settings: Any, tmp_path: Path) -> None:
    trainer = make(base, settings(max_steps=2, save_strategy="steps", save_steps=2))
    trainer.train()
    saved = load_file(tmp_path / "run" / "checkpoint-2" / "critic.safetensors")
    assert {name: tuple(value.shape) for name, value in saved.items()} == {
        "linear.weight": (1, 16),
        "linear.bias": (1,),
    }
    assert torch.equal(saved["linear.weight"], trainer.critic.linear.weight)
    policy = load_file(tmp_path / "run" / "checkpoint-2" / "adapter_model.safetensors")
    assert not [name for name in policy if "linear" in name]

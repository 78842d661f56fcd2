"""Interrupted runs: killed at any moment, they continue as if they had not been."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import zipfile
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
from trl_bonesoup.training.resume import checkpoint_to_resume, last_complete_checkpoint

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


def cut(name: str, size: int = -7) -> Callable[[Path], Any]:
    """Leave the beginning of a file, as a machine that loses power does."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def flip(name: str) -> Callable[[Path], Any]:
    """Change one bit of the largest tensor in a file of torch's."""

    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        with zipfile.ZipFile(folder / name) as archive:
            numbers = archive.read(max(archive.infolist(), key=lambda entry: entry.file_size))
        content[content.index(numbers) + len(numbers) // 2] ^= 4
        (folder / name).write_bytes(content)

    return damage


DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "no trainer state": ("trainer_state.json, which is written last", lambda f: (f / "trainer_state.json").unlink()),
    "half a trainer state": ("trainer_state.json", cut("trainer_state.json", 20)),
    "no state of ours": ("bonesoup_state.json", lambda folder: (folder / "bonesoup_state.json").unlink()),
    "half a state of ours": ("bonesoup_state.json", cut("bonesoup_state.json")),
    "half a critic": ("critic.safetensors", cut("critic.safetensors", 2)),
    "no critic": ("critic.safetensors", lambda folder: (folder / "critic.safetensors").unlink()),
    "half an adapter": ("adapter_model.safetensors", cut("adapter_model.safetensors")),
    "no adapter": ("adapter_model.safetensors", lambda folder: (folder / "adapter_model.safetensors").unlink()),
    "half a configuration": ("adapter_config.json", cut("adapter_config.json")),
    "half an optimizer": ("optimizer.pt", cut("optimizer.pt")),
    "an empty optimizer": ("optimizer.pt", cut("optimizer.pt", 0)),
    "another bit in the optimizer": ("optimizer.pt", flip("optimizer.pt")),
    "no optimizer": ("optimizer.pt", lambda folder: (folder / "optimizer.pt").unlink()),
    "half a schedule": ("scheduler.pt", cut("scheduler.pt")),
    "no random state": ("rng_state.pth", lambda folder: (folder / "rng_state.pth").unlink()),
    "half a random state": ("rng_state.pth", cut("rng_state.pth")),
}


@pytest.fixture(scope="module")
def three_checkpoints(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    args = MultiRewardPPOConfig(
        str(folder), per_device_train_batch_size=8, num_iterations=1, max_completion_length=4, max_steps=3,
        save_strategy="steps", save_steps=1, report_to="none", use_cpu=True, disable_tqdm=True,
        activation_checkpointing=False,
    )  # fmt: skip
    make(base, args).train()
    return folder


@pytest.mark.parametrize(("file", "damage"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    three_checkpoints: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, damage: Callable[[Path], Any]
) -> None:
    folder = shutil.copytree(three_checkpoints, tmp_path / "run")
    assert checkpoint_to_resume(folder) == folder / "checkpoint-3"
    assert not caplog.records
    damage(folder / "checkpoint-3")
    assert checkpoint_to_resume(folder) == folder / "checkpoint-2"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert re.search(rf"checkpoint-3 is passed over: it lacks a readable .*{file}", record.getMessage())


def test_a_damaged_checkpoint_that_was_asked_for_is_an_error(
    base: str, settings: Any, three_checkpoints: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(three_checkpoints, tmp_path / "run")
    cut("optimizer.pt")(folder / "checkpoint-2")
    with pytest.raises(
        ConfigurationError, match=r"checkpoint-2 cannot be resumed from: it lacks a readable optim.*True"
    ):
        make(base, settings()).train(resume_from_checkpoint=str(folder / "checkpoint-2"))


def test_folders_that_are_no_checkpoints_are_left_alone(
    three_checkpoints: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoint-best").mkdir(parents=True)
    (folder / "checkpoint-9").write_text("a file")
    assert last_complete_checkpoint(folder) is None
    assert checkpoint_to_resume(folder) is None
    assert "No complete checkpoint" in caplog.text
    assert "training starts from the beginning" in caplog.text
    weights_alone = shutil.copytree(three_checkpoints / "checkpoint-3", folder / "checkpoint-3")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):  # as save_only_model leaves it
        (weights_alone / name).unlink()
    assert last_complete_checkpoint(folder) == weights_alone


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

"""What makes an interrupted run continue as if it had not been: data order, rollout boundaries, extra state."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.trainer.utils import RepeatSampler

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.rewards.normalization import ScoreNormalizer
from trl_bonesoup.training.critic import trainable_state
from trl_bonesoup.training.intact import damaged_file, missing_file
from trl_bonesoup.training.losses import KLController

logger = logging.getLogger(__name__)

_CRITIC_FILE = "critic.safetensors"
_STATE_FILE = "bonesoup_state.json"
_LAST_FILE = "trainer_state.json"
"""What `Trainer` writes last into a checkpoint: with it, the checkpoint is complete."""


class EpochSampler(RepeatSampler):
    """TRL's sampler with an order that depends on the epoch alone, not on how many epochs this process has seen."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the given epoch; the trainer calls this before each one."""
        if self.shuffle:
            self.generator.manual_seed((self.seed or 0) + epoch)


class SaveAtRollouts(TrainerCallback):
    """Moves a checkpoint that falls between two epochs of one rollout batch to the end of that batch.

    The rollout itself is not part of a checkpoint, so only there does a resumed run equal an
    uninterrupted one.

    Args:
        steps_per_rollout: optimizer steps between two rollouts.
    """

    def __init__(self, steps_per_rollout: float):
        self.steps_per_rollout = steps_per_rollout
        self.postponed = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Postpone, or catch up on, a checkpoint that is due."""
        due = control.should_save or self.postponed
        complete = state.global_step % self.steps_per_rollout == 0 or state.global_step >= state.max_steps
        control.should_save = due and complete
        self.postponed = due and not complete
        return control


class PauseAt(TrainerCallback):
    """Ends training early, with a checkpoint from which it continues as if it had not.

    Args:
        step: optimizer step at which to pause, at the end of a rollout.
    """

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Pause, unless this is the last step anyway."""
        if self.step <= state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True
        return control


def save_state(folder: Path, critic: nn.Module, kl: KLController, normalizer: ScoreNormalizer) -> None:
    """Begin a checkpoint with the critic and the running statistics, in files of their own.

    To be called before `Trainer` writes its part: the checkpoint counts as complete when that is
    finished, and older checkpoints are removed after it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _LAST_FILE).unlink(missing_ok=True)  # a checkpoint of the same step is written anew
    save_file(trainable_state(critic), folder / _CRITIC_FILE)
    state = {"kl_coef": kl.coef, "score_normalizer": normalizer.state_dict()}
    (folder / _STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def load_state(folder: Path, critic: nn.Module, kl: KLController, normalizer: ScoreNormalizer) -> None:
    """Restore what `save_state` wrote; a fixed normaliser keeps its own numbers.

    Raises:
        ConfigurationError: if the critic of the checkpoint is of another kind.
    """
    saved, parameters = load_file(folder / _CRITIC_FILE), trainable_state(critic)
    if {name: value.shape for name, value in saved.items()} != {n: value.shape for n, value in parameters.items()}:
        raise ConfigurationError(
            f"The critic in {folder} has other parameters than this run's ({len(saved)} and {len(parameters)} "
            "tensors). Resume with the value_model and the model that the checkpoint was trained with."
        )
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(saved[name])
    state = json.loads((folder / _STATE_FILE).read_text(encoding="utf-8"))
    kl.coef = state["kl_coef"]
    if normalizer.mode == "running":
        normalizer.load_state_dict(state["score_normalizer"])


def what_is_missing(checkpoint: Path, *, thorough: bool = False) -> str | None:
    """Say what a checkpoint lacks to be resumed from, or `None` if it is complete.

    A process that is killed while it writes leaves a folder that looks like a checkpoint, and a machine
    that loses power may leave files without their ends.

    Args:
        checkpoint: its folder.
        thorough: see `damaged_file`.
    """
    try:
        TrainerState.load_from_json(str(checkpoint / _LAST_FILE))
    except (OSError, ValueError, TypeError):
        return f"a readable {_LAST_FILE}, which is written last"
    lost = next((name for name in (_STATE_FILE, _CRITIC_FILE) if not (checkpoint / name).is_file()), None)
    damaged = lost or damaged_file(checkpoint, thorough=thorough) or missing_file(checkpoint)
    return None if damaged is None else f"a readable {damaged}"


def last_complete_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint in `folder` that was written to its end, or `None`."""
    return next((path for path in _checkpoints(folder) if what_is_missing(path) is None), None)


def checkpoint_to_resume(folder: Path) -> Path | None:
    """Return the newest checkpoint in `folder` that can be resumed from, or `None`; log what is passed over."""
    for path in _checkpoints(folder):
        missing = what_is_missing(path, thorough=True)
        if missing is None:
            return path
        logger.warning("%s is passed over: it lacks %s.", path, missing)
    logger.warning("No complete checkpoint in %s: training starts from the beginning.", folder)
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, newest first."""
    found = {}
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)
        if step and path.is_dir():
            found[int(step[1])] = path
    return [found[step] for step in sorted(found, reverse=True)]

"""What makes an interrupted run continue as if it had not been: data order, rollout boundaries, extra state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback
from trl.trainer.utils import RepeatSampler

from trl_bonesoup.rewards.normalization import ScoreNormalizer
from trl_bonesoup.training.losses import KLController

_CRITIC_FILE = "critic.safetensors"
_STATE_FILE = "bonesoup_state.json"


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


def save_state(folder: Path, critic: nn.Module, kl: KLController, normalizer: ScoreNormalizer) -> None:
    """Write the critic and the running statistics into a checkpoint, in files of their own."""
    save_file({key: value.contiguous() for key, value in critic.state_dict().items()}, folder / _CRITIC_FILE)
    state = {"kl_coef": kl.coef, "score_normalizer": normalizer.state_dict()}
    (folder / _STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def load_state(folder: Path, critic: nn.Module, kl: KLController, normalizer: ScoreNormalizer) -> None:
    """Restore what `save_state` wrote; a fixed normaliser keeps its own numbers."""
    critic.load_state_dict(load_file(folder / _CRITIC_FILE))
    state = json.loads((folder / _STATE_FILE).read_text(encoding="utf-8"))
    kl.coef = state["kl_coef"]
    if normalizer.mode == "running":
        normalizer.load_state_dict(state["score_normalizer"])

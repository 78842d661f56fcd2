"""What stops a run that has gone wrong: at which step, what is still good, and what to change."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from trl import GRPOTrainer

from trl_bonesoup.errors import BoneSoupError, TrainingError
from trl_bonesoup.training.finite import first_not_finite, trained
from trl_bonesoup.training.resume import last_complete_checkpoint

__all__ = ["CheckWeights", "Guarded", "failures_explained"]

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")
_NO_PROBABILITIES = "probability tensor contains either"
_SYMPTOMS = ("policy_loss", "value/loss", "kl/update", "entropy", "kl", "value/mean", "reward")
"""Metrics whose latest values are looked at to say what was not finite."""


class Guarded(GRPOTrainer):
    """A `GRPOTrainer` that does not take a step with a gradient that is not finite, and clips that of its critic.

    `Trainer` clips the gradient of its model alone, so the critic's has a norm of its own here, bounded by the same
    `max_grad_norm` and logged as `value/grad_norm`.
    """

    critic: nn.Module

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Roll out if it is time, run forward and backward, and explain what memory or logits did not allow."""
        with failures_explained(self.args, self.state.global_step + 1):
            return super().training_step(model, inputs, num_items_in_batch)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        bound = self.args.max_grad_norm or math.inf
        critic_norm = float(torch.nn.utils.clip_grad_norm_(self.critic.parameters(), bound))
        self._metrics["train"]["value/grad_norm"].append(critic_norm)
        # A gradient scaler leaves out such steps itself, and lowers its scale.
        if getattr(self.accelerator, "scaler", None) is None and not (math.isfinite(critic_norm) and _is_finite(norm)):
            step = self.state.global_step + 1
            raise TrainingError(
                f"The gradient of optimizer step {step} is not finite ({self._symptoms(norm, critic_norm)}); the step "
                f"was not taken. {_where_to_go_on(self.args)} Lower learning_rate={self.args.learning_rate:g} or "
                f"bound the scores with score_clip={self.args.score_clip}: with the same settings it happens again."
            )
        return norm

    def _symptoms(self, norm: Any, critic_norm: float) -> str:
        found = [f"norm {float(norm):g}" if norm is not None else "", f"the critic's {critic_norm:g}"]
        for name in _SYMPTOMS:
            values = self._metrics["train"].get(name)
            if values and not math.isfinite(values[-1]):
                found.append(f"{name} {values[-1]:g}")
        return ", ".join(filter(None, found))


class CheckWeights(TrainerCallback):
    """Stops after an optimizer step that left weights which are not finite, before they can be saved.

    Args:
        critic: is looked at, too.
    """

    def __init__(self, critic: nn.Module):
        self.critic = critic

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Look at every weight that is trained."""
        for owner, module in (("policy", model), ("critic", self.critic)):
            name = first_not_finite(trained(module))
            if name is not None:
                raise TrainingError(
                    f"Optimizer step {state.global_step + 1} left weights of the {owner} that are not finite "
                    f"({name}), which are not saved. {_where_to_go_on(args)} Lower "
                    f"learning_rate={args.learning_rate:g}: with the same settings it happens again."
                )


@contextmanager
def failures_explained(args: Any, step: int) -> Iterator[None]:
    """Raise `TrainingError`, with what to change, where the block runs out of memory or cannot sample.

    Args:
        args: the trainer's.
        step: optimizer step that the block works on; 0 before training.
    """
    try:
        yield
    except BoneSoupError:
        raise
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        place = f"at optimizer step {step}" if step else "before training"
        if isinstance(error, MemoryError) or any(sign in text.lower() for sign in _OUT_OF_MEMORY):
            raise TrainingError(
                f"Not enough memory {place}: {text.splitlines()[0] if text else 'MemoryError'} {_smaller(args)} "
                f"{_where_to_go_on(args)}"
            ) from error
        if _NO_PROBABILITIES in text:
            raise TrainingError(
                f"The policy's logits are not finite {place}, so that nothing can be sampled from them. "
                f"{_where_to_go_on(args)} Load the model in bfloat16 or float32 if it is in float16; "
                "raise temperature if it is near 0."
            ) from error
        raise


def _where_to_go_on(args: Any) -> str:
    found = last_complete_checkpoint(Path(args.output_dir))
    if found is None:
        return f"There is no checkpoint in {args.output_dir} yet."
    return f"The last good checkpoint is {found}."


def _smaller(args: Any) -> str:
    advice = [
        f"per_device_train_batch_size={args.per_device_train_batch_size} (raising "
        f"gradient_accumulation_steps={args.gradient_accumulation_steps} by the same factor trains the same)",
        f"max_completion_length={args.max_completion_length}",
    ]
    if args.num_generations > 1:
        advice.append(f"num_generations={args.num_generations}")
    last = "" if args.activation_checkpointing else ", set activation_checkpointing=True,"
    return f"Lower {', '.join(advice)}{last} or train an adapter (peft_config) if this is a whole model."


def _is_finite(norm: Any) -> bool:
    return norm is None or math.isfinite(float(norm))

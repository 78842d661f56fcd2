"""One line of progress per backbone: rollouts done, remaining time, and each objective's mean score."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback


class RolloutProgress(TrainerCallback):
    """A progress bar in rollouts.

    Args:
        label: what is being trained.
        names: objectives, whose raw mean scores follow the bar.
        steps_per_rollout: optimizer steps between two rollouts.
    """

    def __init__(self, label: str, names: tuple[str, ...], steps_per_rollout: float):
        self.label = label
        self.names = names
        self.steps_per_rollout = steps_per_rollout
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw the empty bar."""
        if state.is_world_process_zero:
            total = -(-state.max_steps // self.steps_per_rollout)
            self._bar = tqdm(total=int(total), desc=self.label, unit="rollout", dynamic_ncols=True)
            self._bar.update(int(state.global_step // self.steps_per_rollout))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar when a rollout batch is used up."""
        if self._bar is not None:
            self._bar.update(int(state.global_step // self.steps_per_rollout) - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the latest scores."""
        means = {name: (logs or {}).get(f"rewards/{name}/mean") for name in self.names}
        if self._bar is not None and all(value is not None for value in means.values()):
            self._bar.set_postfix({name: f"{value:.3g}" for name, value in means.items()})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the finished bar on the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

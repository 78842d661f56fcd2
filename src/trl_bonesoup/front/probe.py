"""How long a plan will take: the pace of its earlier parts, or of a rollout for each backbone and some answers."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trl_bonesoup.front.ledger import Ledger
from trl_bonesoup.front.settings import EvaluationSettings
from trl_bonesoup.weights import FloatArray, circulant_weights

if TYPE_CHECKING:
    from trl_bonesoup.front.candidate import Training

__all__ = ["Pace", "known_pace", "measured_pace"]


@dataclass(frozen=True)
class Pace:
    """Seconds of one optimizer step and of one answer, and where these numbers are from."""

    step: float
    answer: float
    source: str

    def estimate(self, steps: int, answers: int) -> str:
        """Return in words how long so many steps and answers take."""
        training, answering = steps * self.step, answers * self.answer
        return (
            f"About {_duration(training + answering)}: {_duration(training)} of training ({self.step:.3g} s a step), "
            f"{_duration(answering)} of answering ({self.answer:.3g} s an answer); {self.source}."
        )


def known_pace(ledger: Ledger) -> Pace | None:
    """Return the pace of the parts that are finished, or `None` before there is one of each kind."""
    step, answer = ledger.rate("steps"), ledger.rate("answers")
    return None if step is None or answer is None else Pace(step, answer, "the pace of the finished parts")


def measured_pace(
    training: Training, prompts: Sequence[Any], preferences_KN: FloatArray, settings: EvaluationSettings
) -> Pace:
    """Train the backbones of a soup for one rollout and let it answer one batch, in a folder that is thrown away."""
    from transformers import TrainerCallback

    from trl_bonesoup.training.policies import train_policies

    class Stopwatch(TrainerCallback):
        seconds = 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.seconds -= time.monotonic()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.seconds += time.monotonic()

    stopwatch, options = Stopwatch(), dict(training.options)
    options["callbacks"] = [*(options.get("callbacks") or []), stopwatch]
    options["calibration_samples"] = 2
    weights = circulant_weights(len(training.objectives), 0.7)
    with tempfile.TemporaryDirectory(prefix="bonesoup-probe-") as folder:
        args = copy.copy(training.args)
        args.output_dir, args.max_steps, args.save_strategy = folder, round(args.steps_per_rollout), "no"
        run = train_policies(
            training.model,
            training.reward_funcs,
            list(weights.T),
            args,
            training.dataset,
            objective_names=training.objectives,
            **options,
        )
        run.soup(weights).save(folder)
        answer = _seconds_per_answer(folder, training, prompts, preferences_KN, settings, args.device)
    steps = len(weights) * args.max_steps
    return Pace(stopwatch.seconds / steps, answer, "the pace of a rollout for each backbone and a batch of answers")


def _seconds_per_answer(
    folder: str,
    training: Training,
    prompts: Sequence[Any],
    preferences_KN: FloatArray,
    settings: EvaluationSettings,
    device: Any,
) -> float:
    from trl_bonesoup.front.evaluate import evaluate_policies
    from trl_bonesoup.front.soups import SoupPolicies
    from trl_bonesoup.soup.lora import BoneSoup

    policies = SoupPolicies(
        BoneSoup.from_pretrained(folder, device=device),
        preferences_KN[: settings.batch_size // 2],
        include_markers=False,
    )
    some = prompts[: max(2, settings.batch_size // len(policies.preferences_KN))]
    started = time.monotonic()
    evaluate_policies(policies, some, training.reward_funcs, settings, show_progress=False)
    answers = len(policies.preferences_KN) * len(some) * settings.samples_per_prompt
    return (time.monotonic() - started) / answers


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

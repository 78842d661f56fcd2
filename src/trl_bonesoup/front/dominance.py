"""select_dominance: choose β after a small part of the training, and train the backbones of the best one to the end.

The folder holds `dominance.json` and one folder per β, such as `beta-0.7`: a run of `seek`, with the
front of its early soups on the validation prompts (`validation.json`) and every answer behind it
(`validation.parquet`). The folder of the chosen β ends up with soup.json.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.front.candidate import CandidateRun, Training
from trl_bonesoup.front.checks import check_functions, check_one_process, check_same_request, write_json
from trl_bonesoup.front.ledger import Ledger
from trl_bonesoup.front.metrics import check_preferences
from trl_bonesoup.front.probe import Pace, known_pace, measured_pace
from trl_bonesoup.front.prompts import Prompt, read_prompts
from trl_bonesoup.front.selection import RECORD, DominanceSelection, SelectionCost, compare_candidates
from trl_bonesoup.front.settings import EvaluationSettings
from trl_bonesoup.rewards.protocol import objective_names as distinct_names
from trl_bonesoup.weights import simplex_grid

if TYPE_CHECKING:
    from datasets import Dataset

    from trl_bonesoup.training.config import MultiRewardPPOConfig

logger = logging.getLogger(__name__)

DOMINANCES = (0.6, 0.7, 0.8)
"""The paper's candidates."""

FRACTION = 0.2
"""The paper's share of the training."""

__all__ = ["DOMINANCES", "FRACTION", "DominanceTrial", "select_dominance"]


def select_dominance(
    model: Any,
    reward_funcs: Sequence[Any],
    args: MultiRewardPPOConfig,
    train_dataset: Any,
    validation_prompts: Sequence[Prompt] | Dataset,
    *,
    dominances: Sequence[float] = DOMINANCES,
    fraction: float = FRACTION,
    preferences: ArrayLike | None = None,
    settings: EvaluationSettings | None = None,
    objective_names: Sequence[str] | None = None,
    show_progress: bool = True,
    **seek_options: Any,
) -> DominanceSelection:
    """Choose the dominance β of a soup by the front that its backbones reach early, then finish the best one.

    The backbones of every β are trained for a `fraction` of the optimizer steps. Their soups answer
    the validation prompts over a grid of preferences, all with the same random numbers, and the β
    with the largest hypervolume above one reference point, shared by all, is trained on from its
    checkpoints. It ends up, bit by bit on a CPU, as `seek` would have trained it from the start: a
    learning-rate schedule spans the whole training, also where training pauses early.

    A call with the same arguments continues an interrupted one, and one with more `dominances` adds
    candidates. Runs of the other β stay where they paused; `seek` with their folder finishes them.

    Args:
        model: Hub id or path of the base model.
        reward_funcs: one function per objective, in TRL's protocol.
        args: settings of each backbone's training. `output_dir` is the folder of the selection.
        train_dataset: prompts to train on, with a column "prompt".
        validation_prompts: prompts to choose by, which should not be trained on; see `evaluate_front`.
        dominances: the candidates, different β in (1/N, 1].
        fraction: share of the optimizer steps before the choice, in (0, 1); rounded up to a whole rollout.
        preferences: shape (K, N), K ≥ 2; by default `simplex_grid(N)`.
        settings: how the validation prompts are answered; by default once each, as in training.
        objective_names: distinct names; by default those of the reward functions.
        show_progress: show bars with the remaining time while soups are measured.
        seek_options: other arguments of `seek`, such as `peft_config`.

    Returns:
        The selection, which dominance.json holds, too. Its `soup_folder` is the chosen soup's.

    Raises:
        ConfigurationError, WeightsError, FrontError: before anything is trained, if the arguments do
            not fit together or the folder holds another selection.

    Source: Bone Soups, Section 3.2 (choosing β in {.6, .7, .8} at 20 % of the training).
    """
    return DominanceTrial(
        model,
        reward_funcs,
        args,
        train_dataset,
        validation_prompts,
        dominances=dominances,
        fraction=fraction,
        preferences=preferences,
        settings=settings,
        objective_names=objective_names,
        show_progress=show_progress,
        **seek_options,
    ).run()


class DominanceTrial:
    """A selection whose arguments, those of `select_dominance`, are checked and of which nothing is done yet.

    Attributes:
        folder: of the selection.
        candidates: the run of each β.
        stop_after: optimizer step at which every candidate's backbones pause.
        total_steps: optimizer steps of a whole training.
        answers: how many answers the front of one candidate takes.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Sequence[Any],
        args: MultiRewardPPOConfig,
        train_dataset: Any,
        validation_prompts: Sequence[Prompt] | Dataset,
        *,
        dominances: Sequence[float] = DOMINANCES,
        fraction: float = FRACTION,
        preferences: ArrayLike | None = None,
        settings: EvaluationSettings | None = None,
        objective_names: Sequence[str] | None = None,
        show_progress: bool = True,
        **seek_options: Any,
    ) -> None:
        from trl_bonesoup.training.backbone import check_stop
        from trl_bonesoup.training.inputs import planned_steps

        check_functions(reward_funcs)
        check_one_process(args)
        objectives = distinct_names(reward_funcs, objective_names)
        training = Training(model, list(reward_funcs), objectives, args, train_dataset, seek_options)
        self.total_steps = planned_steps(train_dataset, args)
        self.stop_after = early_step(fraction, self.total_steps, args.steps_per_rollout)
        check_stop(self.stop_after, args)
        self.candidates = [CandidateRun(dominance, training, self.stop_after) for dominance in _distinct(dominances)]
        grid = simplex_grid(len(objectives)) if preferences is None else np.asarray(preferences, dtype=np.float64)
        self.preferences_KN = check_preferences(grid, np.zeros((len(grid), len(objectives))))
        self.settings = settings or EvaluationSettings(
            max_new_tokens=args.max_completion_length, temperature=args.temperature, seed=args.seed
        )
        self.validation_prompts, self.show_progress = validation_prompts, show_progress
        self.folder, self.backbones = Path(args.output_dir), len(objectives)
        self.ledger = Ledger(self.folder / "cost.jsonl")
        self._prompts = prompts = read_prompts(validation_prompts)
        self.answers = len(grid) * len(prompts) * self.settings.samples_per_prompt
        self.request = {
            **training.request(args, None),
            "selection": {
                "fraction": fraction,
                "stop_after": self.stop_after,
                "total_steps": self.total_steps,
                "validation_prompts": {
                    "rows": len(prompts),
                    "sha256": prompts.digest(),
                    "trained_on": _trained_on(prompts.given, train_dataset),
                },
                "preferences": self.preferences_KN.tolist(),
                "answers": {key: value for key, value in asdict(self.settings).items() if key != "batch_size"},
            },
        }
        check_same_request(self.folder / RECORD, self.request)

    def steps_left(self) -> int:
        """Return how many optimizer steps are still to be trained."""
        early, whole = self.stop_after * self.backbones, self.total_steps * self.backbones
        kept = [candidate.steps() for candidate in self.candidates]
        return sum(early - min(early, steps) for steps in kept) + whole - max(early, *kept)

    def answers_left(self) -> int:
        """Return how many answers are still to be given."""
        return self.answers * sum(not candidate.is_measured for candidate in self.candidates)

    def pace(self) -> Pace:
        """Return how fast this goes: as its finished parts did, or measured on a rollout and a batch of answers."""
        training = self.candidates[0].training
        return known_pace(self.ledger) or measured_pace(
            training, self._prompts.given, self.preferences_KN, self.settings
        )

    def run(self) -> DominanceSelection:
        """Do what is left to do, and return the selection."""
        if not (self.folder / RECORD).is_file():
            write_json(self.folder / RECORD, {"dominance": None, "request": self.request})
        for candidate in self.candidates:
            if not candidate.is_measured:
                logger.info("β = %g: training up to step %d.", candidate.dominance, self.stop_after)
                with self.ledger.piece("steps", candidate.steps):
                    candidate.train(self.candidates)
                logger.info("β = %g: measuring the front at step %d.", candidate.dominance, self.stop_after)
                # called before the loop goes on
                with self.ledger.piece("answers", lambda: self.answers * candidate.is_measured):  # noqa: B023
                    candidate.measure(self.validation_prompts, self.preferences_KN, self.settings, self.show_progress)
        selection = self._selection(None)
        selection.save()
        logger.info("\n%s\n", selection.table())
        chosen = next(candidate for candidate in self.candidates if candidate.dominance == selection.dominance)
        logger.info("β = %g is chosen: training up to step %d.", chosen.dominance, self.total_steps)
        with self.ledger.piece("steps", chosen.steps):
            manifest = chosen.train(self.candidates, to_the_end=True)
        selection = self._selection(manifest)
        selection.save()
        return selection

    def _selection(self, manifest: Any) -> DominanceSelection:
        reference_N, candidates, best = compare_candidates(self.candidates, self.settings.seed)
        backbones = self.backbones * len(candidates)
        return DominanceSelection(
            folder=self.folder,
            objectives=self.candidates[0].training.objectives,
            reference=tuple(reference_N.tolist()),
            candidates=candidates,
            chosen=candidates[best],
            cost=SelectionCost(
                steps_early=self.stop_after * backbones,
                steps_trained=sum(candidate.steps() for candidate in self.candidates),
                steps_of_all=self.total_steps * backbones,
                answers=self.answers * len(candidates),
                seconds_training=round(self.ledger.seconds("steps"), 1),
                seconds_answering=round(self.ledger.seconds("answers"), 1),
            ),
            manifest=manifest,
            request=self.request,
        )


def early_step(fraction: float, total_steps: int, steps_per_rollout: float) -> int:
    """Return the optimizer step at the end of the rollout in which a fraction of all steps is reached.

    Raises:
        ConfigurationError: for a fraction outside (0, 1), or if that rollout is the last one.

    >>> early_step(0.2, 40, 2)
    8
    >>> early_step(0.2, 42, 2)
    10
    """
    if not 0.0 < fraction < 1.0:
        raise ConfigurationError(f"fraction must be between 0 and 1, like the paper's 0.2; got {fraction!r}.")
    rollouts = math.ceil(fraction * total_steps / steps_per_rollout - 1e-9)
    step = round(rollouts * steps_per_rollout)
    if step >= total_steps:
        raise ConfigurationError(
            f"There is nothing left to train after fraction={fraction:g} of {total_steps} optimizer steps, which are "
            f"{total_steps / steps_per_rollout:.3g} rollouts. Raise max_steps or lower the fraction."
        )
    return step


def _distinct(dominances: Sequence[float]) -> list[float]:
    chosen = [float(dominance) for dominance in dominances]
    if len(chosen) < 2 or len(set(chosen)) != len(chosen):
        raise ConfigurationError(f"Choosing β takes at least two different candidates; got {list(dominances)}.")
    return chosen


def _trained_on(prompts: Sequence[Any], train_dataset: Any) -> int:
    """Return how many validation prompts are trained on as well, and warn if any are."""
    if "prompt" not in (getattr(train_dataset, "column_names", None) or ()) or not hasattr(train_dataset, "__len__"):
        return 0
    trained = {json.dumps(prompt, sort_keys=True, default=str) for prompt in train_dataset["prompt"]}
    shared = sum(json.dumps(prompt, sort_keys=True, default=str) in trained for prompt in prompts)
    if shared:
        warnings.warn(
            f"{shared} of the {len(prompts)} validation prompts are trained on, too, so that β is chosen by what the "
            "backbones have seen.",
            stacklevel=4,
        )
    return shared

"""compare: train what several methods need, measure all of them on the same prompts, and say which does better.

The folder holds `policies/seed-0` and so on, with every policy that some method needs (two methods
that need the same one share it); for each method and seed a folder such as `bone-soup-0.7/seed-0`
with its front (`front.json`), every answer (`answers.parquet`) and, for soups, soup.json; and what
comes of them: `compare.json`, `compare.md`, `compare.csv` and figures.
"""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.front.candidate import Training
from trl_bonesoup.front.checks import (
    check_functions,
    check_one_process,
    check_reference,
    check_same_request,
    check_seeds,
    write_json,
)
from trl_bonesoup.front.evaluate import evaluate_policies
from trl_bonesoup.front.front import Front
from trl_bonesoup.front.ledger import Ledger
from trl_bonesoup.front.methods import BaseMethod, Method, SoupMethod, read_methods
from trl_bonesoup.front.metrics import check_preferences
from trl_bonesoup.front.probe import Pace, known_pace, measured_pace
from trl_bonesoup.front.prompts import Prompt, read_prompts
from trl_bonesoup.front.results import ComparisonResult, MethodResult
from trl_bonesoup.front.scores import read_scores
from trl_bonesoup.front.settings import EvaluationSettings
from trl_bonesoup.manifest import ScoreStatistics
from trl_bonesoup.rewards.protocol import objective_names as distinct_names
from trl_bonesoup.weights import FloatArray, simplex_grid

if TYPE_CHECKING:
    from datasets import Dataset

    from trl_bonesoup.training.config import MultiRewardPPOConfig
    from trl_bonesoup.training.policies import PolicyRun

logger = logging.getLogger(__name__)

FRONT, ANSWERS = "front.json", "answers.parquet"
RECORD = "plan.json"

__all__ = ["Comparison"]


@dataclass(frozen=True)
class _Cell:
    """One method with one seed, and the preferences at which its policies answer."""

    method: Method
    seed: int
    folder: Path
    preferences_KN: FloatArray

    @property
    def is_measured(self) -> bool:
        """Whether the front is there, for these preferences: those of MORLHF are an option of the method."""
        file = self.folder / FRONT
        return file.is_file() and np.array_equal(Front.from_json(file).preferences_KN, self.preferences_KN)


class Comparison:
    """Several methods with the same training, prompts, random numbers and reference point.

    Every policy is trained for the same number of steps from the same base; seed s trains all of
    them with the same order of prompts and the same scale of the scores. All methods and seeds answer
    the same test prompts with the same random numbers.

    A second comparison with the same arguments continues an interrupted one; methods and seeds may
    be added to one that is there. Fronts that are there are kept, so the policies of a measured seed may be
    removed, all but their seek.json.

    Args:
        model: Hub id or path of the base model.
        reward_funcs: one function per objective, in TRL's protocol.
        methods: see `read_methods`, or methods that it returned.
        args: settings of each policy's training. `output_dir` is the folder of the comparison; the
            seed is replaced by each of `seeds`.
        train_dataset: prompts to train on, with a column "prompt".
        test_prompts: prompts to measure on; see `evaluate_front`.
        seeds: of the training.
        preferences: shape (K, N), K ≥ 2; by default `simplex_grid(N)`.
        settings: how the test prompts are answered; by default once each, as in training.
        against: slug of the method that the others are compared with; by default Rewarded Soups.
        reference: reference point of the hypervolume (N,); by default the one that all fronts share.
        objective_names: distinct names; by default those of the reward functions.
        show_progress: show bars with the remaining time.
        options: other arguments of `seek`, such as `peft_config`.

    Raises:
        ConfigurationError, WeightsError, FrontError: before anything is trained, if the arguments do
            not fit together or the folder holds another comparison.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Sequence[Any],
        methods: Sequence[str | Mapping[str, Any]] | Sequence[Method],
        args: MultiRewardPPOConfig,
        train_dataset: Any,
        test_prompts: Sequence[Prompt] | Dataset,
        *,
        seeds: Sequence[int] = (0,),
        preferences: ArrayLike | None = None,
        settings: EvaluationSettings | None = None,
        against: str | None = None,
        reference: ArrayLike | None = None,
        objective_names: Sequence[str] | None = None,
        show_progress: bool = True,
        **options: Any,
    ) -> None:
        from trl_bonesoup.training.inputs import planned_steps

        check_functions(reward_funcs)
        check_one_process(args)
        self.objectives = distinct_names(reward_funcs, objective_names)
        n = len(self.objectives)
        self.training = Training(model, list(reward_funcs), self.objectives, args, train_dataset, options)
        self.methods = _methods(methods, n)
        self.seeds = check_seeds(seeds)
        self.steps_per_policy = planned_steps(train_dataset, args)
        grid = simplex_grid(n) if preferences is None else np.asarray(preferences, dtype=np.float64)
        self.preferences_KN = check_preferences(grid, np.zeros((len(grid), n)))
        self.settings = settings or EvaluationSettings(
            max_new_tokens=args.max_completion_length, temperature=args.temperature
        )
        self.against = self._against(against)
        self.reference = None if reference is None else check_reference(reference, n)
        self.test_prompts, self.show_progress = test_prompts, show_progress
        self._prompts = read_prompts(test_prompts)
        self.folder = Path(args.output_dir)
        self.ledger = Ledger(self.folder / "cost.jsonl")
        self.request = self._request()
        check_same_request(self.folder / RECORD, self.request)

    @cached_property
    def mixtures(self) -> list[FloatArray]:
        """The mixtures of the rewards that some method needs a policy for, each once."""
        return _mixtures(self.methods)

    def steps_left(self) -> int:
        """Return how many optimizer steps are still to be trained; a front that is there needs no policies."""
        return sum(len(self._needed(seed)) * self.steps_per_policy - self._steps(seed) for seed in self.seeds)

    def answers_left(self) -> int:
        """Return how many answers are still to be given."""
        return sum(self._answers(cell) for cell in self._cells() if not cell.is_measured)

    def pace(self) -> Pace:
        """Return how fast this goes: as its finished parts did, or measured on a rollout and a batch of answers."""
        return known_pace(self.ledger) or measured_pace(
            self.training, self._prompts.given, self.preferences_KN, self.settings
        )

    def run(self) -> ComparisonResult:
        """Do what is left to do, seed by seed, write the results after each, and return those of all seeds."""
        write_json(self.folder / RECORD, {"request": self.request})
        for count, seed in enumerate(self.seeds, start=1):
            missing = self._missing(seed)
            if missing:
                pool = self._train(seed)
                for cell in missing:
                    self._measure(cell, pool)
            result = self.result(self.seeds[:count])
            result.save()
            if missing and count < len(self.seeds):
                logger.info("\nAfter %d of %d seeds:\n%s\n", count, len(self.seeds), result.table())
        return result

    def result(self, seeds: Sequence[int] | None = None) -> ComparisonResult:
        """Return what has been measured with these seeds (by default all), without measuring anything."""
        seeds = self.seeds if seeds is None else list(seeds)
        return ComparisonResult(
            folder=self.folder,
            objectives=self.objectives,
            measured=[self._method_result(method, seeds) for method in self.methods],
            seeds=seeds,
            steps_per_policy=self.steps_per_policy,
            against=self.against,
            given_reference=self.reference,
            cost={f"seconds_{kind}": round(self.ledger.seconds(kind), 1) for kind in ("steps", "answers")},
            request=self.request,
            scale=self._scale(),
        )

    def _scale(self) -> dict[str, ScoreStatistics]:
        """Return the scale that the first seed normalised scores by; empty if it did not."""
        from trl_bonesoup.training.policies import PolicyRun

        scale = PolicyRun.load(self._pool_folder(self.seeds[0])).scale
        return {} if scale is None else dict(zip(self.objectives, scale, strict=True))

    def _cells(self, seeds: Sequence[int] | None = None) -> list[_Cell]:
        """Return the cells of some seeds; the base, which has no seed, belongs to the first of all."""
        return [
            self._cell(method, seed)
            for seed in (self.seeds if seeds is None else seeds)
            for method in self.methods
            if seed == self.seeds[0] or not isinstance(method, BaseMethod)
        ]

    def _cell(self, method: Method, seed: int) -> _Cell:
        preferences_KN = method.preferences(self.preferences_KN)
        return _Cell(method, seed, self.folder / method.slug / f"seed-{seed}", preferences_KN)

    def _missing(self, seed: int) -> list[_Cell]:
        return [cell for cell in self._cells([seed]) if not cell.is_measured]

    def _needed(self, seed: int) -> list[FloatArray]:
        """Return the mixtures that a seed's missing fronts need policies for; that of the base needs any one."""
        missing = self._missing(seed)
        return _mixtures([cell.method for cell in missing]) or (self.mixtures[:1] if missing else [])

    def _answers(self, cell: _Cell) -> int:
        return len(cell.preferences_KN) * len(self._prompts) * self.settings.samples_per_prompt

    def _pool_folder(self, seed: int) -> Path:
        return self.folder / "policies" / f"seed-{seed}"

    def _steps(self, seed: int) -> int:
        """Return the optimizer steps that are kept of the policies that are needed."""
        from trl_bonesoup.training.policies import PolicyRun
        from trl_bonesoup.training.run import RECORD as RUN

        if not (self._pool_folder(seed) / RUN).is_file():
            return 0
        pool = PolicyRun.load(self._pool_folder(seed))
        pool.mixtures = self._needed(seed)
        return sum(pool.steps(j) for j in range(len(pool.mixtures)))

    def _train(self, seed: int) -> PolicyRun:
        from trl_bonesoup.training.policies import train_policies

        args, mixtures = copy.copy(self.training.args), self._needed(seed)
        args.output_dir, args.seed = str(self._pool_folder(seed)), seed
        logger.info("Seed %d: %d policies of %d steps.", seed, len(mixtures), self.steps_per_policy)
        with self.ledger.piece("steps", lambda: self._steps(seed)):
            return train_policies(
                self.training.model,
                self.training.reward_funcs,
                mixtures,
                args,
                self.training.dataset,
                objective_names=self.objectives,
                **self.training.options,
            )

    def _measure(self, cell: _Cell, pool: PolicyRun) -> None:
        logger.info("Seed %d: measuring %s.", cell.seed, cell.method.name)
        with self.ledger.piece("answers", lambda: self._answers(cell) * cell.is_measured):
            policies = cell.method.policies(pool, cell.preferences_KN, self.training.args.device)
            if isinstance(cell.method, SoupMethod) and not cell.method.averaged:
                pool.soup(cell.method.weights, cell.folder).save(cell.folder)
            evaluate_policies(
                policies,
                self.test_prompts,
                self.training.reward_funcs,
                self.settings,
                objective_names=self.objectives,
                front_path=cell.folder / FRONT,
                samples_path=cell.folder / ANSWERS,
                overwrite=True,
                show_progress=self.show_progress,
            )
        del policies
        gc.collect()

    def _method_result(self, method: Method, seeds: Sequence[int]) -> MethodResult:
        measured_with = [self.seeds[0]] * len(seeds) if isinstance(method, BaseMethod) else seeds
        cells = [self._cell(method, seed) for seed in measured_with]
        result = MethodResult(
            method,
            [Front.from_json(cell.folder / FRONT) for cell in cells],
            [read_scores(cell.folder / ANSWERS, self.objectives) for cell in cells],
        )
        return result.repeated(self.preferences_KN) if isinstance(method, BaseMethod) else result

    def _against(self, slug: str | None) -> str | None:
        slugs = [method.slug for method in self.methods]
        if slug is None:
            return "rewarded-soups" if "rewarded-soups" in slugs else None
        if slug not in slugs:
            raise ConfigurationError(f"against must be one of the methods {slugs}; got {slug!r}.")
        return slug

    def _request(self) -> dict[str, Any]:
        """Return what all methods and seeds of one folder have to share, as JSON."""
        request = self.training.request(self.training.args, None)
        del request["settings"]["seed"]
        return {
            **request,
            "steps_per_policy": self.steps_per_policy,
            "test_prompts": {"rows": len(self._prompts), "sha256": self._prompts.digest()},
            "preferences": self.preferences_KN.tolist(),
            "answers": {key: value for key, value in asdict(self.settings).items() if key != "batch_size"},
        }


def _mixtures(methods: Sequence[Method]) -> list[FloatArray]:
    from trl_bonesoup.training.policies import mixture_name

    return list({mixture_name(mixture): mixture for method in methods for mixture in method.mixtures}.values())


def _methods(given: Sequence[Any], n: int) -> list[Method]:
    ready = [method for method in given if isinstance(method, Method)]
    return list(ready) if ready and len(ready) == len(given) else read_methods(given, n)

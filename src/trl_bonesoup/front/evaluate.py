"""evaluate_front: answer prompts at every preference of a grid, score every objective, and summarise as a Front."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.front.front import Front, Marker
from trl_bonesoup.front.policies import Answer, Answering, Policies, Row
from trl_bonesoup.front.prompts import Prompt, read_prompts
from trl_bonesoup.front.provenance import answers_record, check_same_front, evaluation_record
from trl_bonesoup.front.samples import Answers, check_samples_path
from trl_bonesoup.front.scoring import RewardFunctions, Scorer, reward_functions
from trl_bonesoup.front.settings import EvaluationSettings
from trl_bonesoup.front.soups import SoupPolicies
from trl_bonesoup.front.unfinished import AnswerStore, open_store

if TYPE_CHECKING:
    from datasets import Dataset

    from trl_bonesoup.manifest import Preference
    from trl_bonesoup.soup.lora import BoneSoup

__all__ = ["evaluate_front", "evaluate_policies"]


def evaluate_front(
    soup: BoneSoup,
    prompts: Sequence[Prompt] | Dataset,
    reward_funcs: RewardFunctions,
    preferences: ArrayLike | Sequence[Preference],
    *,
    extrapolation: float | Sequence[float] = 0.0,
    samples_per_prompt: int = 1,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    batch_size: int = 32,
    seed: int = 0,
    include_markers: bool = True,
    objective_names: Sequence[str] | None = None,
    front_path: str | Path | None = None,
    samples_path: str | Path | None = None,
    overwrite: bool = False,
    prompts_source: str | None = None,
    show_progress: bool = True,
) -> Front:
    """Measure the mean rewards of a soup at each of K preferences.

    Every preference (and the base and each backbone, as markers) answers the same prompts with the
    same random numbers, so that a difference between two of them is the effect of the merge. An
    answer depends on the seed, its prompt's place in the list and its sample number, not on
    `batch_size` or on what is evaluated beside it. Rows of many preferences share a batch; soups of
    full checkpoints are merged once per preference instead.

    Args:
        soup: what to measure; its coefficients are put back afterwards.
        prompts: texts, conversations, or a `datasets.Dataset` with a "prompt" column of either.
        reward_funcs: one function per objective in TRL's protocol, in the soup's order or by the
            soup's names. They also receive the data set's other columns. `None` for a sample leaves
            it out of that objective's mean (see `n_samples_KN`).
        preferences: shape (K, N) such as `simplex_grid(N)`, or K preferences as for `set_preference`.
        extrapolation: α of Equation 9, one number or one per objective.
        samples_per_prompt: answers per prompt and preference.
        max_new_tokens: longest answer; by default that of the training, where soup.json records it, else 128.
        temperature: 0 is greedy; by default that of the training, else 1.
        batch_size: answers generated at a time.
        seed: of the random numbers.
        include_markers: also measure the base (λ = 0) and each backbone (λ a unit vector).
        objective_names: names for the front, in the soup's order, where the rewards measured are not
            those it was trained on. Default: the soup's.
        front_path: where to write the front (.json). Until it is complete, a hidden file beside it holds
            the answers and scores so far, and the same call continues an evaluation that was
            interrupted, to the same numbers; see docs/fronts.md.
        samples_path: where to write every answer with its scores (.jsonl or .parquet).
        overwrite: replace a front of another request, and answers behind another front.
        prompts_source: where the prompts come from, for the record.
        show_progress: show a bar with the remaining time.

    Returns:
        The front, with 95 % percentile bootstrap intervals over prompts.

    Raises:
        ConfigurationError: for settings, prompts or reward functions that do not fit the soup, or if
            `front_path` holds a front of another request or an unfinished one lies beside it.
        WeightsError: for an invalid preference or extrapolation.
        RewardError: if a reward function raises or does not return one finite score (or None) per answer.
        FrontError: if an objective has no score at all at some preference, or preferences repeat.
    """
    return evaluate_policies(
        SoupPolicies(soup, preferences, extrapolation, include_markers=include_markers),
        prompts,
        reward_funcs,
        EvaluationSettings.of_training(
            soup.manifest.training,
            samples_per_prompt=samples_per_prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            batch_size=batch_size,
            seed=seed,
        ),
        objective_names=objective_names,
        front_path=front_path,
        samples_path=samples_path,
        overwrite=overwrite,
        prompts_source=prompts_source,
        show_progress=show_progress,
    )


def evaluate_policies(
    policies: Policies,
    prompts: Sequence[Prompt] | Dataset,
    reward_funcs: RewardFunctions,
    settings: EvaluationSettings | None = None,
    *,
    objective_names: Sequence[str] | None = None,
    front_path: str | Path | None = None,
    samples_path: str | Path | None = None,
    overwrite: bool = False,
    prompts_source: str | None = None,
    show_progress: bool = True,
) -> Front:
    """Measure the mean rewards of any policies, as `evaluate_front` does those of soups.

    Fronts can be compared if prompts, reward functions and settings are the same for all of them:
    an answer's random numbers depend on these alone, and not on the policies.

    Args:
        policies: what to measure, see `trl_bonesoup.front.policies`.
        settings: how prompts are answered; by default `EvaluationSettings()`.

    The other arguments are those of `evaluate_front`.
    """
    started = time.monotonic()
    settings = settings or EvaluationSettings()
    sample_file = check_samples_path(samples_path)
    functions = reward_functions(reward_funcs, policies.objectives, objective_names)
    questions = read_prompts(prompts)
    policies_record = policies.provenance()
    provenance = {
        **policies_record,
        **evaluation_record(questions, functions, settings),
        "prompts_source": prompts_source,
    }
    fresh = front_path is not None and not overwrite and not Path(front_path).exists()
    if front_path is not None and not overwrite:
        check_same_front(front_path, policies, provenance)

    models = [*policies.preferences_KN.tolist(), *policies.markers]
    answers = Answers(models, len(questions), settings.samples_per_prompt, tuple(functions))
    scorers = [Scorer(name, function, questions) for name, function in functions.items()]
    with policies.answering(questions, settings) as answering:
        request = {"policies": policies_record, **answers_record(policies, questions, answering.texts, settings)}
        with open_store(front_path, request) as store, _progress(answers.total, show_progress) as progress:
            if fresh and not store.kept:
                _check_new(sample_file)
            for batch in _batches(answering, settings):
                given, scores = _measure(batch, answering, scorers, settings, store)
                answers.add(batch, given, scores)
                progress.update(len(batch))
            provenance |= {"kept_answers": store.kept, "seconds": round(time.monotonic() - started, 1)}
            front = _front(policies, answers, settings, provenance)
            if sample_file is not None:
                answers.write(sample_file, answering.texts)
            if front_path is not None:
                front.to_json(front_path)
    return front


def _check_new(samples: Path | None) -> None:
    """Raise `ConfigurationError` if there are answers already, which then are those behind another front."""
    if samples is not None and samples.exists():
        raise ConfigurationError(
            f"{samples} holds the answers behind another front. Choose another file, or pass overwrite=True "
            "(--overwrite) to replace it."
        )


def _measure(
    batch: list[Row],
    answering: Answering,
    scorers: Sequence[Scorer],
    settings: EvaluationSettings,
    store: AnswerStore,
) -> tuple[list[Answer], list[list[float | None]]]:
    """Return the answers of a batch, and each objective's scores of them, as far as possible from the store."""
    from trl_bonesoup.front.sampling import row_seed

    def answer(rows: list[Row]) -> list[Answer]:
        return answering(rows, [row_seed(settings.seed, row.prompt, row.sample) for row in rows])

    given = store.answers(batch, answer)

    def score(scorer: Scorer, places: list[int]) -> list[float | None]:
        return scorer([batch[place] for place in places], [given[place] for place in places])

    return given, [store.scores(scorer.fingerprint, batch, functools.partial(score, scorer)) for scorer in scorers]


def _front(policies: Policies, answers: Answers, settings: EvaluationSettings, provenance: dict[str, Any]) -> Front:
    rewards_MN, intervals_MN2 = answers.summary(settings.seed)
    k = len(policies.preferences_KN)
    return Front(
        objectives=answers.objectives,
        preferences_KN=policies.preferences_KN,
        coefficients_KN=policies.coefficients_KN,
        rewards_KN=rewards_MN[:k],
        intervals_KN2=intervals_MN2[:k],
        n_samples_KN=answers.counts_MN[:k],
        markers={label: Marker(rewards_MN[k + m], intervals_MN2[k + m]) for m, label in enumerate(policies.markers)},
        provenance=provenance,
    )


def _batches(answering: Answering, settings: EvaluationSettings) -> Iterator[list[Row]]:
    """Yield every row, in batches of one group of models and of similar prompt length."""
    samples = range(settings.samples_per_prompt)
    for group in answering.groups:
        rows = [Row(model, prompt, sample) for prompt in answering.order for sample in samples for model in group]
        for start in range(0, len(rows), settings.batch_size):
            yield rows[start : start + settings.batch_size]


def _progress(rows: int, show: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=rows, desc="Evaluating the front", unit="answer", disable=not show)

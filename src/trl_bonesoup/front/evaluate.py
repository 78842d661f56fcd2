"""evaluate_front: answer prompts at every preference of a grid, score every objective, and summarise as a Front."""

from __future__ import annotations

import datetime
import importlib.metadata
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

import trl_bonesoup
from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.front.front import Front, Marker
from trl_bonesoup.front.metrics import BOOTSTRAP_RESAMPLES
from trl_bonesoup.front.policies import Answer, Answering, Policies, Row
from trl_bonesoup.front.prompts import Prompt, Prompts, read_prompts
from trl_bonesoup.front.samples import Answers, check_samples_path
from trl_bonesoup.front.settings import EvaluationSettings
from trl_bonesoup.front.soups import SoupPolicies
from trl_bonesoup.rewards.protocol import call_reward

if TYPE_CHECKING:
    from datasets import Dataset

    from trl_bonesoup.manifest import Preference
    from trl_bonesoup.soup.lora import BoneSoup

RewardFunctions = Sequence[Callable[..., Any]] | Mapping[str, Callable[..., Any]]

__all__ = ["evaluate_front", "evaluate_policies"]


def evaluate_front(
    soup: BoneSoup,
    prompts: Sequence[Prompt] | Dataset,
    reward_funcs: RewardFunctions,
    preferences: ArrayLike | Sequence[Preference],
    *,
    extrapolation: float | Sequence[float] = 0.0,
    samples_per_prompt: int = 1,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
    include_markers: bool = True,
    objective_names: Sequence[str] | None = None,
    samples_path: str | Path | None = None,
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
        max_new_tokens: longest answer.
        temperature: 0 is greedy.
        batch_size: answers generated at a time.
        seed: of the random numbers.
        include_markers: also measure the base (λ = 0) and each backbone (λ a unit vector).
        objective_names: names for the front, in the soup's order, where the rewards measured are not
            those it was trained on. Default: the soup's.
        samples_path: where to write every answer with its scores (.jsonl or .parquet).
        show_progress: show a bar with the remaining time.

    Returns:
        The front, with 95 % percentile bootstrap intervals over prompts.

    Raises:
        ConfigurationError: for settings, prompts or reward functions that do not fit the soup.
        WeightsError: for an invalid preference or extrapolation.
        RewardError: if a reward function raises or does not return one finite score (or None) per answer.
        FrontError: if an objective has no score at all at some preference, or preferences repeat.
    """
    policies = SoupPolicies(soup, preferences, extrapolation, include_markers=include_markers)
    return evaluate_policies(
        policies,
        prompts,
        reward_funcs,
        EvaluationSettings(samples_per_prompt, max_new_tokens, temperature, batch_size, seed),
        objective_names=objective_names,
        samples_path=samples_path,
        show_progress=show_progress,
    )


def evaluate_policies(
    policies: Policies,
    prompts: Sequence[Prompt] | Dataset,
    reward_funcs: RewardFunctions,
    settings: EvaluationSettings | None = None,
    *,
    objective_names: Sequence[str] | None = None,
    samples_path: str | Path | None = None,
    show_progress: bool = True,
) -> Front:
    """Measure the mean rewards of any policies, as `evaluate_front` does those of soups.

    Fronts can be compared if prompts, reward functions and settings are the same for all of them:
    an answer's random numbers depend on these alone, and not on the policies.

    Args:
        policies: what to measure, see `trl_bonesoup.front.policies`.
        settings: how prompts are answered; by default `EvaluationSettings()`.
        prompts, reward_funcs, objective_names, samples_path, show_progress: see `evaluate_front`.
    """
    from trl_bonesoup.front.sampling import row_seed

    started = time.monotonic()
    settings = settings or EvaluationSettings()
    sample_file = check_samples_path(samples_path)
    functions = _reward_functions(reward_funcs, policies.objectives, objective_names)
    questions = read_prompts(prompts)

    models = [*policies.preferences_KN.tolist(), *policies.markers]
    answers = Answers(models, len(questions), settings.samples_per_prompt, tuple(functions))
    with policies.answering(questions, settings) as answering, _progress(answers.total, show_progress) as progress:
        for batch in _batches(answering, settings):
            given = answering(batch, [row_seed(settings.seed, row.prompt, row.sample) for row in batch])
            answers.add(batch, given, _score(batch, given, questions, functions))
            progress.update(len(batch))
    if sample_file is not None:
        answers.write(sample_file, answering.texts)

    rewards_MN, intervals_MN2 = answers.summary(settings.seed)
    k = len(policies.preferences_KN)
    return Front(
        objectives=tuple(functions),
        preferences_KN=policies.preferences_KN,
        coefficients_KN=policies.coefficients_KN,
        rewards_KN=rewards_MN[:k],
        intervals_KN2=intervals_MN2[:k],
        n_samples_KN=answers.counts_MN[:k],
        markers={label: Marker(rewards_MN[k + m], intervals_MN2[k + m]) for m, label in enumerate(policies.markers)},
        provenance={
            **policies.provenance(),
            **_provenance(questions, functions, settings),
            "seconds": round(time.monotonic() - started, 1),
        },
    )


def _batches(answering: Answering, settings: EvaluationSettings) -> Iterator[list[Row]]:
    """Yield every row, in batches of one group of models and of similar prompt length."""
    samples = range(settings.samples_per_prompt)
    for group in answering.groups:
        rows = [Row(model, prompt, sample) for prompt in answering.order for sample in samples for model in group]
        for start in range(0, len(rows), settings.batch_size):
            yield rows[start : start + settings.batch_size]


def _score(
    batch: Sequence[Row],
    answers: Sequence[Answer],
    questions: Prompts,
    functions: Mapping[str, Callable[..., Any]],
) -> list[list[float | None]]:
    """Return each objective's scores of a batch of answers, called as TRL's trainers call reward functions."""
    inputs = {
        **{name: [column[row.prompt] for row in batch] for name, column in questions.columns.items()},
        "prompts": [questions.given[row.prompt] for row in batch],
        "completions": [questions.completion(answer.text) for answer in answers],
    }
    if all(answer.token_ids is not None for answer in answers):
        inputs["completion_ids"] = [answer.token_ids for answer in answers]
    return [call_reward(function, name, **inputs) for name, function in functions.items()]


def _progress(rows: int, show: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=rows, desc="Evaluating the front", unit="answer", disable=not show)


def _reward_functions(
    reward_funcs: RewardFunctions, objectives: tuple[str, ...], names: Sequence[str] | None
) -> dict[str, Callable[..., Any]]:
    """Return the reward functions by the front's objective names, in the policies' order."""
    if isinstance(reward_funcs, Mapping):
        if set(reward_funcs) != set(objectives):
            raise ConfigurationError(
                f"reward_funcs must have the objectives {list(objectives)} as keys; got {list(reward_funcs)}."
            )
        functions = [reward_funcs[name] for name in objectives]
    else:
        functions = list(reward_funcs)
    shown = tuple(names) if names is not None else objectives
    if not len(functions) == len(shown) == len(objectives) or len(set(shown)) != len(shown):
        raise ConfigurationError(
            f"The objectives are {list(objectives)}, and each needs one reward function, in that order, "
            f"under different names; got {len(functions)} functions and the names {list(shown)}."
        )
    if set(shown) == set(objectives) and shown != objectives:
        raise ConfigurationError(
            f"objective_names {list(shown)} are those of the soup or policies in another order; preferences and "
            f"reward functions go by the order {list(objectives)}."
        )
    for name, function in zip(shown, functions, strict=True):
        if not callable(function):
            raise ConfigurationError(
                f"The reward function of '{name}' must be callable as func(prompts=…, completions=…); got {function!r}."
            )
    return dict(zip(shown, functions, strict=True))


def _provenance(
    questions: Prompts, functions: Mapping[str, Callable[..., Any]], settings: EvaluationSettings
) -> dict[str, Any]:
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "rewards": {name: getattr(func, "__name__", type(func).__name__) for name, func in functions.items()},
        "prompts": len(questions),
        "prompts_sha256": questions.digest(),
        "samples_per_prompt": settings.samples_per_prompt,
        "seed": settings.seed,
        "decoding": {"max_new_tokens": settings.max_new_tokens, "temperature": float(settings.temperature)},
        "batch_size": settings.batch_size,
        "intervals": f"95 % percentile bootstrap over prompts, {BOOTSTRAP_RESAMPLES} resamples",
        "versions": {
            "trl-bonesoup": trl_bonesoup.__version__,
            **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "numpy")},
        },
    }

"""evaluate_front: answer prompts at every preference of a grid, score every objective, and summarise as a Front."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

import trl_bonesoup
from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.front.front import BACKBONE_PREFIX, BASE_LABEL, Front, Marker
from trl_bonesoup.front.metrics import BOOTSTRAP_RESAMPLES, check_preferences
from trl_bonesoup.front.prompts import Prompt, Prompts, read_prompts
from trl_bonesoup.front.samples import Answers, Row, check_samples_path
from trl_bonesoup.rewards.protocol import call_reward
from trl_bonesoup.weights import FloatArray

if TYPE_CHECKING:
    from datasets import Dataset

    from trl_bonesoup.manifest import Preference, SoupManifest
    from trl_bonesoup.soup.lora import BoneSoup

RewardFunctions = Sequence[Callable[..., Any]] | Mapping[str, Callable[..., Any]]

__all__ = ["evaluate_front"]


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
    started = time.monotonic()
    settings = _Settings(samples_per_prompt, max_new_tokens, temperature, batch_size, seed)
    sample_file = check_samples_path(samples_path)
    functions = _reward_functions(reward_funcs, soup.manifest, objective_names)
    preferences_KN = _preferences(preferences, soup.manifest)
    coefficients_KN = soup.manifest.coefficients(preferences_KN, extrapolation)
    marker_coefficients = _marker_coefficients(soup.manifest) if include_markers else {}
    coefficients_MN = np.vstack([coefficients_KN, *marker_coefficients.values()])
    questions = read_prompts(prompts, soup.tokenizer)

    models = [*preferences_KN.tolist(), *marker_coefficients]
    answers = Answers(models, len(questions), samples_per_prompt, tuple(functions))
    with _progress(answers.total, show_progress) as progress, _evaluating(soup):
        for batch, token_ids in _generate(soup, coefficients_MN, questions, settings):
            texts = questions.decode(token_ids)
            answers.add(batch, texts, _score(batch, texts, token_ids, questions, functions))
            progress.update(len(batch))
    if sample_file is not None:
        answers.write(sample_file, questions.texts)

    rewards_MN, intervals_MN2 = answers.summary(seed)
    k = len(preferences_KN)
    return Front(
        objectives=tuple(functions),
        preferences_KN=preferences_KN,
        coefficients_KN=coefficients_KN,
        rewards_KN=rewards_MN[:k],
        intervals_KN2=intervals_MN2[:k],
        n_samples_KN=answers.counts_MN[:k],
        markers={label: Marker(rewards_MN[k + m], intervals_MN2[k + m]) for m, label in enumerate(marker_coefficients)},
        provenance={
            **_provenance(soup, questions, functions, settings),
            "extrapolation": np.asarray(extrapolation, dtype=np.float64).tolist(),
            "seconds": round(time.monotonic() - started, 1),
        },
    )


@dataclass(frozen=True)
class _Settings:
    samples_per_prompt: int
    max_new_tokens: int
    temperature: float
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        for name, least in (("samples_per_prompt", 1), ("max_new_tokens", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigurationError(f"{name} must be a whole number, at least {least}; got {value!r}.")
        if not 0.0 <= self.temperature < float("inf"):
            raise ConfigurationError(
                f"temperature must be a finite number, at least 0 (0 is greedy); got {self.temperature!r}."
            )


def _generate(
    soup: BoneSoup, coefficients_MN: FloatArray, questions: Prompts, settings: _Settings
) -> Iterator[tuple[list[Row], list[list[int]]]]:
    """Yield batches of rows with the token ids of their answers, short prompts first."""
    from trl_bonesoup.front.sampling import generate, row_seed

    merged_in_place = soup.manifest.backbones[0].kind == "full"
    current = None
    for batch in _batches(len(coefficients_MN), questions, settings, one_model=merged_in_place):
        rows: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if not merged_in_place:
            rows = soup.coefficient_rows(coefficients_MN[[row.model for row in batch]])
        elif current != batch[0].model:
            current = batch[0].model
            soup.set_coefficients(coefficients_MN[current])
        with rows:
            token_ids = generate(
                soup.model,
                questions.tokenizer,
                [questions.token_ids[row.prompt] for row in batch],
                [row_seed(settings.seed, row.prompt, row.sample) for row in batch],
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
            )
        yield batch, token_ids


def _score(
    batch: Sequence[Row],
    texts: list[str],
    token_ids: list[list[int]],
    questions: Prompts,
    functions: Mapping[str, Callable[..., Any]],
) -> list[list[float | None]]:
    """Return each objective's scores of a batch of answers, called as TRL's trainers call reward functions."""
    inputs = {
        **{name: [column[row.prompt] for row in batch] for name, column in questions.columns.items()},
        "prompts": [questions.given[row.prompt] for row in batch],
        "completions": [questions.completion(text) for text in texts],
        "completion_ids": token_ids,
    }
    return [call_reward(function, name, **inputs) for name, function in functions.items()]


def _batches(models: int, questions: Prompts, settings: _Settings, *, one_model: bool) -> Iterator[list[Row]]:
    """Yield the rows in batches of similar prompt length; with `one_model`, of one model each."""
    by_length = sorted(range(len(questions)), key=lambda prompt: len(questions.token_ids[prompt]))
    samples = range(settings.samples_per_prompt)
    for group in [[m] for m in range(models)] if one_model else [list(range(models))]:
        rows = [Row(m, prompt, sample) for prompt in by_length for sample in samples for m in group]
        for start in range(0, len(rows), settings.batch_size):
            yield rows[start : start + settings.batch_size]


@contextlib.contextmanager
def _evaluating(soup: BoneSoup) -> Iterator[None]:
    """Switch dropout off, and put the soup's preference and mode back whatever happens."""
    training = soup.model.training
    preference, coefficients = soup.preference, np.array(soup.coefficients)
    soup.model.eval()
    try:
        yield
    finally:
        soup.model.train(training)
        if not np.array_equal(soup.coefficients, coefficients):
            soup.set_coefficients(coefficients)
            soup.preference = preference


def _progress(rows: int, show: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=rows, desc="Evaluating the front", unit="answer", disable=not show)


def _reward_functions(
    reward_funcs: RewardFunctions, manifest: SoupManifest, names: Sequence[str] | None
) -> dict[str, Callable[..., Any]]:
    """Return the reward functions by the front's objective names, in the soup's order."""
    trained = manifest.objective_names
    if isinstance(reward_funcs, Mapping):
        if set(reward_funcs) != set(trained):
            raise ConfigurationError(
                f"reward_funcs must have the soup's objectives {list(trained)} as keys; got {list(reward_funcs)}."
            )
        functions = [reward_funcs[name] for name in trained]
    else:
        functions = list(reward_funcs)
    shown = tuple(names) if names is not None else trained
    if not len(functions) == len(shown) == len(trained) or len(set(shown)) != len(shown):
        raise ConfigurationError(
            f"This soup has the objectives {list(trained)}, and needs one reward function for each, in that order, "
            f"under different names; got {len(functions)} functions and the names {list(shown)}."
        )
    if set(shown) == set(trained) and shown != trained:
        raise ConfigurationError(
            f"objective_names {list(shown)} are the soup's in another order; preferences and reward functions go by "
            f"the soup's order {list(trained)}."
        )
    for name, function in zip(shown, functions, strict=True):
        if not callable(function):
            raise ConfigurationError(
                f"The reward function of '{name}' must be callable as func(prompts=…, completions=…); got {function!r}."
            )
    return dict(zip(shown, functions, strict=True))


def _preferences(preferences: Any, manifest: SoupManifest) -> FloatArray:
    if isinstance(preferences, Mapping) or not len(preferences):
        raise ConfigurationError(f"preferences must be a list of at least one preference; got {preferences!r}.")
    preferences_KN = np.stack([manifest.preference(preference) for preference in preferences])
    return check_preferences(preferences_KN, np.zeros_like(preferences_KN))


def _marker_coefficients(manifest: SoupManifest) -> dict[str, FloatArray]:
    n = len(manifest.objective_names)
    backbones = {f"{BACKBONE_PREFIX}{name}": np.eye(n)[j] for j, name in enumerate(manifest.objective_names)}
    return {BASE_LABEL: np.zeros(n), **backbones}


def _provenance(
    soup: BoneSoup, questions: Prompts, functions: Mapping[str, Callable[..., Any]], settings: _Settings
) -> dict[str, Any]:
    manifest = soup.manifest
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "base_model": manifest.base_model.model_dump(mode="json"),
        "backbones": [backbone.model_dump(mode="json") for backbone in manifest.backbones],
        "combination_weights": manifest.weights.tolist(),
        "rewards": {name: getattr(func, "__name__", type(func).__name__) for name, func in functions.items()},
        "prompts": len(questions),
        "prompts_sha256": questions.digest(),
        "samples_per_prompt": settings.samples_per_prompt,
        "seed": settings.seed,
        "decoding": {"max_new_tokens": settings.max_new_tokens, "temperature": float(settings.temperature)},
        "batch_size": settings.batch_size,
        "intervals": f"95 % percentile bootstrap over prompts, {BOOTSTRAP_RESAMPLES} resamples",
        "device": str(soup.model.device),
        "dtype": str(soup.model.dtype).removeprefix("torch."),
        "versions": {
            "trl-bonesoup": trl_bonesoup.__version__,
            **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "numpy")},
        },
    }

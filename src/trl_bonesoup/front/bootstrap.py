"""Bootstrap intervals over prompts: of mean rewards, of the metrics of a front, and of differences of two methods.

Axis letters: R resamples, K preferences, N objectives, P prompts, S samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trl_bonesoup.errors import FrontError
from trl_bonesoup.front import metrics
from trl_bonesoup.weights import FloatArray

RESAMPLES = 2000

ROUNDING = 1e-6
"""Scores come in float32: a difference of less than this share of what is compared is rounding."""

CHUNK = 4_000_000
"""Numbers held at a time while pairs of solutions are compared in every resample: 32 MB."""

__all__ = [
    "Estimate",
    "basic_interval",
    "bootstrap_intervals",
    "metric_differences",
    "metric_intervals",
    "percentile_interval",
    "resampled_metrics",
    "resampled_rewards",
    "without_rounding",
]


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its confidence interval."""

    value: float
    lower: float
    upper: float

    @property
    def within_noise(self) -> bool:
        """Whether the interval includes 0: for a difference, that its sign is not known."""
        return self.lower <= 0.0 <= self.upper


def bootstrap_intervals(
    scores: ArrayLike, *, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> FloatArray:
    """Return percentile bootstrap intervals of mean rewards, resampling whole prompts.

    Samples of one prompt resemble each other, so prompts and not samples are drawn with
    replacement. Equal `seed` draws equal prompts, whatever the scores.

    Args:
        scores: shape (P, S, N): P prompts, S samples of each, N objectives. NaN marks a sample that
            a reward function declined to score; it enters neither sum nor count.
        resamples: number of bootstrap resamples.
        level: coverage.
        seed: of the resampling.

    Returns:
        Lower and upper ends, shape (N, 2). Resamples without any score of an objective are left out.

    Raises:
        FrontError: for fewer than 2 prompts, infinity, or an objective without any score.
    """
    scores_PSN = np.asarray(scores, dtype=np.float64)
    if scores_PSN.ndim != 3 or len(scores_PSN) < 2:
        raise FrontError(
            "Intervals are found by resampling prompts, so scores must have shape (prompts, samples, objectives) "
            f"with at least 2 prompts; got shape {scores_PSN.shape}."
        )
    scored_PSN = ~np.isnan(scores_PSN)
    if np.isinf(scores_PSN).any() or not scored_PSN.any(axis=(0, 1)).all():
        raise FrontError("Every objective needs at least one score, and all of them finite.")
    sums_PN = np.where(scored_PSN, scores_PSN, 0.0).sum(axis=1)
    counts_PN = scored_PSN.sum(axis=1)
    draws_RP = draw_prompts(len(scores_PSN), resamples, seed)
    with np.errstate(invalid="ignore"):
        means_RN = (draws_RP @ sums_PN) / (draws_RP @ counts_PN)
    tail = (1.0 - level) / 2.0
    return np.nanquantile(means_RN, [tail, 1.0 - tail], axis=0).T


def metric_intervals(
    scores: ArrayLike,
    preferences: ArrayLike,
    reference: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Return hypervolume, inner product and controllability of a front with intervals over prompts.

    All preferences are resampled together, prompt by prompt, as all of them answered the same
    prompts. Noise biases two of the metrics, and a percentile interval would carry the bias twice:

    - The hypervolume gains from whichever solution was lucky, so its interval (and the inner
      product's, which has no bias) is the basic one, [2v - q(1-τ), 2v - q(τ)] with quantiles q of the
      resampled values around the measured v. That of the hypervolume stops at 0, below which no truth is.
    - Neighbouring solutions that differ by less than the noise come out in either order, so that
      controllability is measured too low and no resampling repairs it. Its interval goes from the
      share of pairs that are ordered right to the share that are not ordered wrong, counting those
      whose order holds for all pairs and objectives at once (the bootstrapped maximum of studentised
      differences). It is wide where neighbours cannot be told apart: that is what the data say.

    Args:
        scores: shape (K, P, S, N): the scores of each preference, prompt, sample and objective. NaN
            marks a sample that a reward function declined; it enters neither sum nor count.
        preferences: shape (K, N).
        reference: reference point of the hypervolume (N,), see `metrics.shared_reference`.
        resamples: R.
        level: coverage.
        seed: of the resampling; equal seeds draw equal prompts.

    Raises:
        FrontError: for fewer than 2 prompts or preferences, infinity, an objective that is without a
            score at some preference in some resample, or arguments whose shapes do not fit.

    Source: Davison & Hinkley (1997), Section 5.2 (basic intervals); Romano & Wolf (2005) (maximum of
    studentised differences). `benchmarks/intervals` measures the coverage of both.
    """
    _check_level(level)
    rewards_KN, resampled_RKN = resampled_rewards(scores, resamples, seed)
    samples = _metrics_of(resampled_RKN, preferences, reference)
    values = {name: float(value[0]) for name, value in _metrics_of(rewards_KN[None], preferences, reference).items()}
    certain = _certain_order(rewards_KN, resampled_RKN, _preferences(preferences, rewards_KN), level)
    return {
        "hypervolume": basic_interval(values["hypervolume"], samples["hypervolume"], level, least=0.0),
        "inner_product": basic_interval(values["inner_product"], samples["inner_product"], level),
        "controllability": Estimate(values["controllability"], *certain),
    }


def metric_differences(
    first: ArrayLike,
    second: ArrayLike,
    preferences: ArrayLike,
    reference: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Return how much the first method is above the second in each metric, by paired bootstrap.

    Both must have answered the same prompts, in the same order: what a prompt does to both then
    cancels. Intervals are basic ones, except that of controllability, whose difference moves in
    steps: the percentile interval says how the measured difference varies with the prompts. Where
    one method's neighbours are closer to each other than the other's, noise lowers its
    controllability more, and the difference is biased. What only rounding makes of two equal methods
    counts as 0.

    Args:
        first, second: scores of two methods, shapes (K, P, S, N); S may differ.
        preferences, reference, resamples, level, seed: as for `metric_intervals`, the same for both.

    Raises:
        FrontError: as `metric_intervals`, and for different numbers of prompts.
    """
    _check_level(level)
    prompts = [np.shape(scores)[1] if np.ndim(scores) == 4 else None for scores in (first, second)]
    if prompts[0] != prompts[1]:
        raise FrontError(
            f"A paired difference needs both methods' answers to the same prompts; got {prompts[0]} and {prompts[1]}."
        )
    pairs = [resampled_rewards(scores, resamples, seed) for scores in (first, second)]
    values = [_metrics_of(rewards_KN[None], preferences, reference) for rewards_KN, _ in pairs]
    samples = [_metrics_of(resampled_RKN, preferences, reference) for _, resampled_RKN in pairs]
    differences = {}
    for name in values[0]:
        ours, theirs = (np.concatenate([values[k][name], samples[k][name]]) for k in range(2))
        value, *resampled = without_rounding(ours - theirs, ours, theirs)
        interval = percentile_interval if name == "controllability" else basic_interval
        differences[name] = interval(float(value), np.array(resampled), level)
    return differences


def resampled_metrics(
    scores: ArrayLike, preferences: ArrayLike, reference: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, FloatArray]:
    """Return hypervolume, inner product and controllability in each of R resamples of the prompts, shapes (R,).

    For what `metric_intervals` and `metric_differences` do not cover, such as ratios; equal seeds
    draw equal prompts, so that resample r of two methods belongs together. Arguments and errors are
    those of `metric_intervals`.
    """
    return _metrics_of(resampled_rewards(scores, resamples, seed)[1], preferences, reference)


def draw_prompts(prompts: int, resamples: int, seed: int) -> NDArray[np.int64]:
    """Return how often each of P prompts is drawn in each resample, shape (R, P)."""
    return np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1.0 / prompts), size=resamples)


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise FrontError(f"level must be between 0 and 1, like 0.95; got {level!r}.")


def resampled_rewards(scores: ArrayLike, resamples: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Return mean rewards (K, N) and those of each resample of the prompts (R, K, N).

    Arguments and errors are those of `metric_intervals`.
    """
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 1:
        raise FrontError(f"resamples must be a whole number, at least 1; got {resamples!r}.")
    scores_KPSN = np.asarray(scores, dtype=np.float64)
    if scores_KPSN.ndim != 4 or scores_KPSN.shape[1] < 2:
        raise FrontError(
            "Scores must have shape (preferences, prompts, samples, objectives), with at least 2 prompts to resample; "
            f"got shape {scores_KPSN.shape}."
        )
    if np.isinf(scores_KPSN).any():
        raise FrontError("Scores must be finite, or NaN where a reward function declined; some are infinite.")
    scored_KPSN = ~np.isnan(scores_KPSN)
    sums_KPN = np.where(scored_KPSN, scores_KPSN, 0.0).sum(axis=2)
    counts_KPN = scored_KPSN.sum(axis=2)
    draws_RP = draw_prompts(scores_KPSN.shape[1], resamples, seed)
    counts_RKN = np.einsum("rp,kpn->rkn", draws_RP, counts_KPN, optimize=True)
    if (counts_RKN == 0).any():
        _, k, i = np.argwhere(counts_RKN == 0)[0]
        raise FrontError(
            f"Objective {i} has so few scores at preference {k} that a resample of the prompts has none. Evaluate more "
            "prompts to which the objective applies."
        )
    resampled_RKN = np.einsum("rp,kpn->rkn", draws_RP, sums_KPN, optimize=True) / counts_RKN
    return sums_KPN.sum(axis=1) / counts_KPN.sum(axis=1), resampled_RKN


def _metrics_of(rewards_RKN: FloatArray, preferences: ArrayLike, reference: ArrayLike) -> dict[str, FloatArray]:
    preferences_KN = _preferences(preferences, rewards_RKN[0])
    ordered_RQ = np.concatenate(
        [
            ((asked_QN == 0.0) | (gaps_RQN > 0.0)).all(axis=2)
            for asked_QN, gaps_RQN in _gaps(rewards_RKN, preferences_KN)
        ],
        axis=1,
    )
    return {
        "hypervolume": np.array([metrics.hypervolume(rewards_KN, reference) for rewards_KN in rewards_RKN]),
        "inner_product": (preferences_KN * rewards_RKN).sum(axis=-1).mean(axis=-1),
        "controllability": ordered_RQ.mean(axis=1),
    }


def _preferences(preferences: ArrayLike, rewards_KN: FloatArray) -> FloatArray:
    return metrics.check_preferences(
        preferences, metrics.check_rewards(rewards_KN, at_least=2, for_what="controllability")
    )


def _gaps(rewards_RKN: FloatArray, preferences_KN: FloatArray) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield, for some pairs of solutions at a time, what was asked (Q, N) and the gaps in its direction (R, Q, N).

    A gap is above 0 where the rewards are ordered as asked, and 0 where nothing was asked.
    """
    first, second = np.triu_indices(len(preferences_KN), k=1)
    asked_QN = metrics.asked_order(preferences_KN)[first, second]
    size = max(1, CHUNK // (len(rewards_RKN) * preferences_KN.shape[1]))
    for start in range(0, len(first), size):
        part = slice(start, start + size)
        yield asked_QN[part], asked_QN[part] * (rewards_RKN[:, first[part]] - rewards_RKN[:, second[part]])


def _certain_order(
    rewards_KN: FloatArray, resampled_RKN: FloatArray, preferences_KN: FloatArray, level: float
) -> tuple[float, float]:
    """Return the shares of pairs that are certainly ordered right, and that are not certainly ordered wrong."""
    largest_R = np.zeros(len(resampled_RKN))
    pairs = []
    for asked_QN, gaps_RQN in _gaps(np.concatenate([rewards_KN[None], resampled_RKN]), preferences_KN):
        gap_QN, resampled_RQN = gaps_RQN[0], gaps_RQN[1:]
        error_QN = resampled_RQN.std(axis=0)
        distance_RQN = np.abs(resampled_RQN - gap_QN) / np.where(error_QN > 0.0, error_QN, np.inf)
        largest_R = np.maximum(largest_R, distance_RQN.max(axis=(1, 2)))
        pairs.append((asked_QN, gap_QN, error_QN))
    asked_QN, gap_QN, error_QN = (np.concatenate(part) for part in zip(*pairs, strict=True))
    margin_QN = np.quantile(largest_R, level) * error_QN
    right_Q = ((asked_QN == 0.0) | (gap_QN > margin_QN)).all(axis=1)
    wrong_Q = (gap_QN < -margin_QN).any(axis=1)
    return float(right_Q.mean()), float(1.0 - wrong_Q.mean())


def percentile_interval(value: float, samples_R: FloatArray, level: float) -> Estimate:
    """Return a value with the percentile interval of its resamples (R,)."""
    tail = (1.0 - level) / 2.0
    lower, upper = np.quantile(samples_R, [tail, 1.0 - tail])
    return Estimate(value, float(lower), float(upper))


def basic_interval(value: float, samples_R: FloatArray, level: float, *, least: float = -math.inf) -> Estimate:
    """Return a value with the basic interval of its resamples (R,), cut off below the least possible value."""
    percentile = percentile_interval(value, samples_R, level)
    ends = (2.0 * value - percentile.upper, 2.0 * value - percentile.lower)
    return Estimate(value, *(max(least, end) for end in ends))


def without_rounding(differences: FloatArray, *compared: ArrayLike) -> FloatArray:
    """Return differences with 0 in place of those that are rounding, beside the largest number compared."""
    largest = max(float(np.nanmax(np.abs(values))) for values in compared)
    return np.where(np.abs(differences) <= ROUNDING * largest, 0.0, differences)

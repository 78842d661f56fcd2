"""Estimates over training seeds and test prompts: a bootstrap of both at once.

Axis letters: S seeds, R resamples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trl_bonesoup.front.bootstrap import Estimate, basic_interval, without_rounding
from trl_bonesoup.weights import FloatArray

__all__ = ["SeedMean", "difference", "draw_seeds", "ratio", "seed_mean"]


@dataclass(frozen=True, eq=False)
class SeedMean:
    """A mean over seeds, as measured and in each resample of seeds and prompts."""

    value: float
    resampled_R: FloatArray

    def estimate(self, level: float = 0.95, *, least: float = -math.inf) -> Estimate:
        """Return it with its basic bootstrap interval, cut off below the least value that is possible."""
        return basic_interval(self.value, self.resampled_R, level, least=least)


def draw_seeds(seeds: int, resamples: int, seed: int = 0) -> NDArray[np.int64]:
    """Return which of S seeds are drawn, with replacement, in each resample: shape (R, S).

    All methods of a comparison need the same draws: what a seed does to all of them then cancels in
    their differences.
    """
    return np.random.default_rng(seed).integers(seeds, size=(resamples, seeds))


def seed_mean(values_S: ArrayLike, resampled_SR: ArrayLike, draws_RS: NDArray[np.int64]) -> SeedMean:
    """Return the mean of a number over seeds, with the spread that seeds and test prompts cause.

    In every resample of the prompts, seeds are drawn with replacement, too. As the mean of S drawn
    seeds varies less than that of S new ones, by (S-1)/S in variance, the part of the spread that
    comes from the seeds is widened by √(S/(S-1)). A single seed has no such part: its interval is
    over prompts alone.

    Args:
        values_S: the number for each seed.
        resampled_SR: the same in each resample of the prompts, which are the same for all seeds.
        draws_RS: from `draw_seeds`.

    Source: Davison & Hinkley (1997), Section 3.8 (hierarchical data).
    """
    values_S, resampled_SR = np.asarray(values_S, dtype=np.float64), np.asarray(resampled_SR, dtype=np.float64)
    seeds = len(values_S)
    value = float(values_S.mean())
    drawn_R = np.take_along_axis(resampled_SR.T, draws_RS, axis=1).mean(axis=1)
    between_R = values_S[draws_RS].mean(axis=1) - value
    widened = math.sqrt(seeds / (seeds - 1)) if seeds > 1 else 1.0
    return SeedMean(value, drawn_R + (widened - 1.0) * between_R)


def difference(first: SeedMean, second: SeedMean, level: float = 0.95) -> Estimate:
    """Return how much the first is above the second, 0 if by rounding alone; both must come from the same draws."""
    ours, theirs = (np.append(mean.resampled_R, mean.value) for mean in (first, second))
    *resampled, value = without_rounding(ours - theirs, ours, theirs)
    return basic_interval(float(value), np.array(resampled), level)


def ratio(first: SeedMean, second: SeedMean, level: float = 0.95) -> Estimate | None:
    """Return the first as a share of the second, neither of them below 0.

    `None` if the second is 0, as measured or in some resample.
    """
    if second.value == 0.0 or (second.resampled_R == 0.0).any():
        return None
    return basic_interval(first.value / second.value, first.resampled_R / second.resampled_R, level, least=0.0)

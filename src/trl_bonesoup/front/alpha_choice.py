"""Which extrapolation α is best, from the scores that each of several α earned: the arithmetic behind the search.

Axis letters: A values of α (the first is 0), V = N vertices of the preference simplex, N objectives,
P prompts, S samples, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from trl_bonesoup.front.bootstrap import RESAMPLES, ROUNDING, Estimate, percentile_interval, resampled_rewards
from trl_bonesoup.front.table import markdown_table
from trl_bonesoup.weights import FloatArray

__all__ = ["AlphaChoice", "choose_alpha"]


@dataclass(frozen=True, eq=False)
class AlphaChoice:
    """The α that was chosen, and everything that it was chosen by.

    Args:
        objectives: names.
        alphas: the candidates in rising order; the first is 0.
        per_objective: whether each objective has an α of its own.
        chosen: places in `alphas`: one for each objective, or the same for all.
        rewards_AVN: mean reward of every objective at every vertex and α.
        intervals_AVN2: their 95 % bootstrap intervals over prompts.
        gains: for each α and objective, by how much the objective's own reward at its own vertex is
            above that at α = 0. The same prompts with the same random numbers were answered, so the
            intervals are paired; they hold for all α of an objective at once, as the best is chosen.
        joint_gains: for each α, the mean over objectives of the gains in standard deviations (of the
            prompts' scores at α = 0), by which one α for all is chosen.
    """

    objectives: tuple[str, ...]
    alphas: tuple[float, ...]
    per_objective: bool
    chosen: tuple[int, ...]
    rewards_AVN: FloatArray
    intervals_AVN2: FloatArray
    gains: tuple[tuple[Estimate, ...], ...]
    joint_gains: tuple[Estimate, ...]

    @property
    def extrapolation(self) -> float | list[float]:
        """α as every `extrapolation` argument takes it."""
        values = [self.alphas[place] for place in self.chosen]
        return values if self.per_objective else values[0]

    @property
    def chosen_gains(self) -> tuple[Estimate, ...]:
        """What the choice is expected to gain on these prompts: one for each objective, or one for all."""
        if self.per_objective:
            return tuple(self.gains[place][i] for i, place in enumerate(self.chosen))
        return (self.joint_gains[self.chosen[0]],)

    @property
    def within_noise(self) -> tuple[bool, ...]:
        """For each of `chosen_gains`, whether α = 0 may be as good."""
        return tuple(gain.within_noise for gain in self.chosen_gains)

    def table(self) -> str:
        """Return a Markdown table of every vertex and α, the chosen ones in bold."""
        rows = [["all weight on", "α", *self.objectives, "gain", "interval"]]
        for i, objective in enumerate(self.objectives):
            for a, alpha in enumerate(self.alphas):
                bold = "**" if self.chosen[i] == a else ""
                means = [f"{mean:.4g}" for mean in self.rewards_AVN[a, i]]
                gain = self.gains[a][i]
                interval = f"{gain.lower:+.3g} to {gain.upper:+.3g}" if a else ""
                rows.append([objective, f"{bold}{alpha:g}{bold}", *means, f"{gain.value:+.3g}" if a else "", interval])
        return markdown_table(rows)

    def verdict(self) -> str:
        """Return the choice in a sentence or two, and whether it is within noise."""
        names = self.objectives if self.per_objective else ("all objectives",)
        unit = "" if self.per_objective else " standard deviations"
        parts = []
        for name, place, gain in zip(names, self.chosen, self.chosen_gains, strict=False):
            if place == 0:
                parts.append(f"α = 0 for {name}: no other is better.")
                continue
            noise = "; within noise, α = 0 may be as good" if gain.within_noise else ""
            interval = f"{gain.lower:+.3g} to {gain.upper:+.3g}"
            parts.append(
                f"α = {self.alphas[place]:g} for {name}: gains {gain.value:+.3g}{unit} ({interval} for the best of "
                f"{len(self.alphas) - 1}{noise})."
            )
        return "\n".join(parts)

    def record(self) -> dict[str, Any]:
        """Return everything in what JSON can hold."""
        vertices = {
            objective: [
                {
                    "alpha": alpha,
                    "rewards": dict(zip(self.objectives, self.rewards_AVN[a, i].tolist(), strict=True)),
                    "intervals": dict(zip(self.objectives, self.intervals_AVN2[a, i].tolist(), strict=True)),
                    "gain": asdict(self.gains[a][i]),
                }
                for a, alpha in enumerate(self.alphas)
            ]
            for i, objective in enumerate(self.objectives)
        }
        return {
            "extrapolation": self.extrapolation,
            "per_objective": self.per_objective,
            "objectives": list(self.objectives),
            "alphas": list(self.alphas),
            "within_noise": list(self.within_noise),
            "vertices": vertices,
            "joint_gains": [asdict(gain) for gain in self.joint_gains],
        }


def choose_alpha(
    scores: ArrayLike,
    alphas: Sequence[float],
    objectives: Sequence[str],
    *,
    per_objective: bool = True,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> AlphaChoice:
    """Choose the α with the largest gain over α = 0; of equal ones, the smallest.

    Gains that differ by less than a millionth of the objective's largest score are equal, and a gain
    below that is 0.

    Args:
        scores: shape (A, V, P, S, N): the scores of every α, vertex, prompt, sample and objective. NaN
            marks a sample that a reward function declined.
        alphas: A values in rising order, the first 0.
        objectives: N names.
        per_objective: α_i by the gain of objective i at its own vertex, as the published code does;
            otherwise one α by the mean of the gains over objectives, each in standard deviations of
            its prompts' scores at α = 0, so that units do not matter.
        resamples, level, seed: of the bootstrap over prompts.

    Raises:
        FrontError: for fewer than 2 prompts, infinity, or too few scores of an objective.
    """
    scores_AVPSN = np.asarray(scores, dtype=np.float64)
    shape = scores_AVPSN.shape
    means_MN, resampled_RMN = resampled_rewards(scores_AVPSN.reshape(-1, *shape[2:]), resamples, seed)
    rewards_AVN = means_MN.reshape(*shape[:2], -1)
    resampled_RAVN = resampled_RMN.reshape(resamples, *rewards_AVN.shape)
    tail = (1.0 - level) / 2.0
    own_AN, own_RAN = (np.diagonal(array, axis1=-2, axis2=-1) for array in (rewards_AVN, resampled_RAVN))
    rounding_N = ROUNDING * np.array([np.nanmax(np.abs(scores_AVPSN[:, i, :, :, i])) for i in range(shape[1])])
    gains_AN, gains_RAN = (
        np.where(np.abs(gains) <= rounding_N, 0.0, gains) for gains in (own_AN - own_AN[:1], own_RAN - own_RAN[:, :1])
    )
    deviations_N = _deviations(scores_AVPSN[0])
    joint_A, joint_RA = ((gains / deviations_N).mean(axis=-1) for gains in (gains_AN, gains_RAN))
    if per_objective:
        best = [_smallest_best(gains_AN[:, i], rounding_N[i]) for i in range(shape[1])]
    else:
        best = [_smallest_best(joint_A, (rounding_N / deviations_N).mean())] * len(objectives)

    for_all_alphas = 1.0 - (1.0 - level) / max(1, len(alphas) - 1)
    return AlphaChoice(
        objectives=tuple(objectives),
        alphas=tuple(float(alpha) for alpha in alphas),
        per_objective=per_objective,
        chosen=tuple(best),
        rewards_AVN=rewards_AVN,
        intervals_AVN2=np.moveaxis(np.quantile(resampled_RAVN, [tail, 1.0 - tail], axis=0), 0, -1),
        gains=tuple(
            tuple(percentile_interval(gains_AN[a, i], gains_RAN[:, a, i], for_all_alphas) for i in range(shape[1]))
            for a in range(len(alphas))
        ),
        joint_gains=tuple(percentile_interval(joint_A[a], joint_RA[:, a], for_all_alphas) for a in range(len(alphas))),
    )


def _smallest_best(gains_A: FloatArray, rounding: float) -> int:
    """Return the first place whose gain is the largest, up to rounding."""
    return int(np.argmax(gains_A >= gains_A.max() - rounding))


def _deviations(scores_VPSN: FloatArray) -> FloatArray:
    """Return, for each objective, the standard deviation of its scores at its own vertex, or 1 where it is 0."""
    deviations_N = np.array([np.nanstd(scores_VPSN[i, :, :, i]) for i in range(len(scores_VPSN))])
    return np.where(deviations_N > 0.0, deviations_N, 1.0)

"""What came of a comparison: the metrics of every method over one reference point, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trl_bonesoup.front.bootstrap import RESAMPLES, Estimate, bootstrap_intervals, metric_intervals, resampled_metrics
from trl_bonesoup.front.front import Front, Marker
from trl_bonesoup.front.methods import Method, OracleMethod
from trl_bonesoup.front.metrics import SAME_PREFERENCE, hypervolume, shared_reference
from trl_bonesoup.front.report import comparison_text, write_report
from trl_bonesoup.front.seeds import SeedMean, difference, draw_seeds, ratio, seed_mean
from trl_bonesoup.manifest import ScoreStatistics
from trl_bonesoup.weights import FloatArray

BASIC = ("hypervolume", "inner_product")
"""Metrics whose interval is a bootstrap of seeds and prompts."""

__all__ = ["ComparisonResult", "MethodResult"]


@dataclass(frozen=True, eq=False)
class MethodResult:
    """One method: its front and every score behind it, for each seed.

    Args:
        method: which one.
        fronts: one for each seed.
        scores_SKPSN: every score, (K, P, samples, N) for each seed.
    """

    method: Method
    fronts: Sequence[Front]
    scores_SKPSN: Sequence[FloatArray]

    @property
    def preferences_KN(self) -> FloatArray:
        """The preferences that it was measured at."""
        return self.fronts[0].preferences_KN

    def scaled(self, scale: Mapping[str, ScoreStatistics]) -> MethodResult:
        """Return the same in standard deviations from a mean, by objective."""
        center_N = np.array([entry.mean for entry in scale.values()])
        std_N = np.array([entry.std for entry in scale.values()])
        fronts = [
            replace(
                front,
                rewards_KN=(front.rewards_KN - center_N) / std_N,
                intervals_KN2=(front.intervals_KN2 - center_N[:, None]) / std_N[:, None],
                markers={},
            )
            for front in self.fronts
        ]
        return MethodResult(self.method, fronts, [(scores - center_N) / std_N for scores in self.scores_SKPSN])

    def repeated(self, preferences_KN: FloatArray) -> MethodResult:
        """Return the result of a model that answers alike whatever is preferred, measured at one preference."""
        repeats = len(preferences_KN)
        fronts = [
            replace(
                front,
                preferences_KN=preferences_KN,
                rewards_KN=np.repeat(front.rewards_KN, repeats, axis=0),
                intervals_KN2=np.repeat(front.intervals_KN2, repeats, axis=0),
                n_samples_KN=np.repeat(front.n_samples_KN, repeats, axis=0),
            )
            for front in self.fronts
        ]
        return MethodResult(self.method, fronts, [np.repeat(scores, repeats, axis=0) for scores in self.scores_SKPSN])

    def mean_front(self, markers: Mapping[str, Marker] | None = None) -> Front:
        """Return the mean of the seeds' fronts, with intervals over prompts, for figures."""
        pooled_KPSN = np.concatenate(list(self.scores_SKPSN), axis=2)
        return Front(
            objectives=self.fronts[0].objectives,
            preferences_KN=self.preferences_KN,
            coefficients_KN=self.fronts[0].coefficients_KN,
            rewards_KN=np.nanmean(pooled_KPSN, axis=(1, 2)),
            intervals_KN2=np.stack([bootstrap_intervals(scores_PSN) for scores_PSN in pooled_KPSN]),
            n_samples_KN=(~np.isnan(pooled_KPSN)).sum(axis=(1, 2)),
            markers=markers or {},
            provenance={"method": self.method.name, "mean_over_seeds": len(self.fronts)},
        )


@dataclass(frozen=True, eq=False)
class ComparisonResult:
    """Every method of a comparison, measured with some seeds.

    Args:
        folder: of the comparison.
        objectives: their names.
        measured: every method in the order of the table, in the units of the rewards.
        seeds: of the training; every method has a front for each.
        steps_per_policy: optimizer steps that every policy was trained for.
        against: slug of the method that differences are taken from, if any.
        given_reference: reference point of the hypervolume, in the units of the rewards; `None` for the
            one that all fronts share.
        cost: seconds, as measured.
        request: what all methods and seeds have in common.
        scale: mean and standard deviation that training normalised scores by, by objective, in which all
            metrics are expressed; empty to leave the units of the rewards.
    """

    folder: Path
    objectives: tuple[str, ...]
    measured: Sequence[MethodResult]
    seeds: Sequence[int]
    steps_per_policy: int
    against: str | None
    given_reference: FloatArray | None
    cost: Mapping[str, float]
    request: Mapping[str, Any]
    scale: Mapping[str, ScoreStatistics] = field(default_factory=dict)

    @cached_property
    def methods(self) -> Sequence[MethodResult]:
        """Every method, on the scale of the metrics."""
        return [each.scaled(self.scale) for each in self.measured] if self.scale else self.measured

    @cached_property
    def raw_reference_N(self) -> FloatArray:
        """The reference point in the units of the rewards, below all methods and seeds."""
        if self.given_reference is not None:
            return np.asarray(self.given_reference, dtype=np.float64)
        return shared_reference([front for result in self.measured for front in result.fronts])

    @cached_property
    def reference_N(self) -> FloatArray:
        """The reference point of every hypervolume, on the scale of the metrics."""
        if not self.scale:
            return self.raw_reference_N
        entries = zip(self.raw_reference_N, self.scale.values(), strict=True)
        return np.array([(value - entry.mean) / entry.std for value, entry in entries])

    def metrics(self, result: MethodResult) -> list[dict[str, float | int]]:
        """Return the six metrics of a method for each seed."""
        return [front.metrics(self.reference_N) for front in result.fronts]

    def estimates(self, result: MethodResult) -> dict[str, Estimate]:
        """Return hypervolume, inner product and controllability with their intervals.

        That of controllability is the mean over seeds of the intervals of `metric_intervals`.
        """
        return self._estimates[result.method.slug]

    def ahead(self, result: MethodResult) -> dict[str, Estimate]:
        """Return how much a method is above the one that all are compared with; empty if there is none."""
        other = next((other for other in self.methods if other.method.slug == self.against), None)
        if other is None or other is result or len(other.preferences_KN) != len(result.preferences_KN):
            return {}
        mine, theirs = self._means[result.method.slug], self._means[other.method.slug]
        return {name: difference(mine[name], theirs[name]) for name in BASIC}

    def share_of_oracle(self, result: MethodResult) -> Estimate | None:
        """Return a method's hypervolume as a share of MORLHF's, both at MORLHF's preferences alone.

        `None` without MORLHF, for MORLHF itself, and for methods that were not measured there.
        """
        return self._shares.get(result.method.slug)

    def table(self) -> str:
        """Return the tables in Markdown, with what is needed to read them."""
        return comparison_text(self)

    def save(self) -> None:
        """Write compare.json, compare.md, compare.csv and the figures into the comparison's folder."""
        write_report(self)

    @cached_property
    def _draws_RS(self) -> Any:
        return draw_seeds(len(self.seeds), RESAMPLES)

    @cached_property
    def _means(self) -> dict[str, dict[str, SeedMean]]:
        found = {}
        for result in self.methods:
            measured = self.metrics(result)
            resampled = [
                resampled_metrics(scores, result.preferences_KN, self.reference_N, resamples=RESAMPLES)
                for scores in result.scores_SKPSN
            ]
            found[result.method.slug] = {
                name: seed_mean(
                    [metrics[name] for metrics in measured], [samples[name] for samples in resampled], self._draws_RS
                )
                for name in BASIC
            }
        return found

    @cached_property
    def _estimates(self) -> dict[str, dict[str, Estimate]]:
        found = {}
        for result in self.methods:
            own = [
                metric_intervals(scores, result.preferences_KN, self.reference_N, resamples=RESAMPLES)[
                    "controllability"
                ]
                for scores in result.scores_SKPSN
            ]
            ends = np.mean([(each.value, each.lower, each.upper) for each in own], axis=0)
            means = self._means[result.method.slug]
            found[result.method.slug] = {
                "hypervolume": means["hypervolume"].estimate(least=0.0),
                "inner_product": means["inner_product"].estimate(),
                "controllability": Estimate(*ends.tolist()),
            }
        return found

    @cached_property
    def _shares(self) -> dict[str, Estimate]:
        oracle = next((other for other in self.methods if isinstance(other.method, OracleMethod)), None)
        if oracle is None:
            return {}
        theirs, found = self._means[oracle.method.slug]["hypervolume"], {}
        for result in self.methods:
            rows = None if result is oracle else _rows(result.preferences_KN, oracle.preferences_KN)
            share = None if rows is None else ratio(self._hypervolume_at(result, rows), theirs)
            if share is not None:
                found[result.method.slug] = share
        return found

    def _hypervolume_at(self, result: MethodResult, rows: list[int]) -> SeedMean:
        values = [hypervolume(front.rewards_KN[rows], self.reference_N) for front in result.fronts]
        resampled = [
            resampled_metrics(scores[rows], result.preferences_KN[rows], self.reference_N, resamples=RESAMPLES)
            for scores in result.scores_SKPSN
        ]
        return seed_mean(values, [samples["hypervolume"] for samples in resampled], self._draws_RS)


def _rows(among_KN: FloatArray, wanted_KN: FloatArray) -> list[int] | None:
    """Return where each wanted preference is, or `None` if one is missing."""
    rows = []
    for wanted_N in wanted_KN:
        (found,) = np.nonzero(np.abs(among_KN - wanted_N).max(axis=1) <= SAME_PREFERENCE)
        if not len(found):
            return None
        rows.append(int(found[0]))
    return rows

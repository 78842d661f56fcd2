"""How often the intervals of metrics hold the truth, on simulated fronts whose truth is known. See README.md."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
from benchmarks.report import machine, table, versions

from trl_bonesoup.front import metrics
from trl_bonesoup.front.bootstrap import metric_differences, metric_intervals, resampled_metrics
from trl_bonesoup.weights import FloatArray, simplex_grid

GRID = simplex_grid(2)
ANGLES = GRID[:, 0] * np.pi / 2
ROUND = np.stack([np.sin(ANGLES), np.cos(ANGLES)], axis=1)
WAVY = ROUND + 0.15 * np.stack([np.sin(20 * GRID[:, 0]), np.cos(17 * GRID[:, 0])], axis=1)
REFERENCE = np.full(2, -0.3)
NAMES = ("hypervolume", "inner_product", "controllability")
SETTINGS = [
    ("round, little noise", ROUND, 300, 1.0),
    ("round, much noise", ROUND, 100, 3.0),
    ("wavy, little noise", WAVY, 300, 0.5),
    ("wavy, much noise", WAVY, 100, 2.0),
]


def scores(means_KN: FloatArray, prompts: int, scale: float, random: np.random.Generator, shared: FloatArray):
    """Scores (K, P, 1, N) of variance scale² around means; half of it is the prompt's, alike for all preferences."""
    own = random.normal(size=(len(means_KN), prompts, 1, 2))
    return means_KN[:, None, None] + scale * np.sqrt(0.5) * (shared + own)


def truth(means_KN: FloatArray) -> dict[str, float]:
    return {
        "hypervolume": metrics.hypervolume(means_KN, REFERENCE),
        "inner_product": metrics.inner_product(GRID, means_KN),
        "controllability": metrics.controllability(GRID, means_KN),
    }


def covered(means_KN: FloatArray, prompts: int, scale: float, trials: int) -> Iterator[dict[tuple[str, str], bool]]:
    """Yield, for each trial, which intervals hold the truth; differences are to a worse front of the other shape."""
    other_KN = 0.95 * (WAVY if means_KN is ROUND else ROUND)
    right, right_other = truth(means_KN), truth(other_KN)
    for seed in range(trials):
        random = np.random.default_rng(seed)
        shared = random.normal(size=(1, prompts, 1, 2))
        first = scores(means_KN, prompts, scale, random, shared)
        second = scores(other_KN, prompts, scale, random, shared)
        holds = {}
        resampled = resampled_metrics(first, GRID, REFERENCE, resamples=500, seed=seed)
        intervals = metric_intervals(first, GRID, REFERENCE, resamples=500, seed=seed)
        differences = metric_differences(first, second, GRID, REFERENCE, resamples=500, seed=seed)
        for name in NAMES:
            low, high = np.quantile(resampled[name], [0.025, 0.975])
            holds["percentile", name] = bool(low - 1e-9 <= right[name] <= high + 1e-9)
            for kind, estimate, value in (
                ("ours", intervals[name], right[name]),
                ("difference", differences[name], right[name] - right_other[name]),
            ):
                holds[kind, name] = bool(estimate.lower - 1e-9 <= value <= estimate.upper + 1e-9)
        yield holds


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.intervals", description=__doc__)
    parser.add_argument("--trials", type=int, default=400, help="simulated evaluations of each kind (%(default)s)")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    arguments = parser.parse_args()
    rows = []
    for label, means_KN, prompts, scale in SETTINGS:
        trials = list(covered(means_KN, prompts, scale, arguments.trials))
        for name in NAMES:
            shares = [np.mean([t[kind, name] for t in trials]) for kind in ("percentile", "ours", "difference")]
            rows.append([label, str(prompts), name.replace("_", " "), *(f"{100 * share:.0f} %" for share in shares)])
    header = ["front", "prompts", "metric", "percentile interval", "`metric_intervals`", "`metric_differences`"]
    print(table(header, rows, arguments.markdown))
    installed = ", ".join(f"{name} {number}" for name, number in versions("numpy", "moocore").items())
    print(f"\n{arguments.trials} trials each, seeds 0 to {arguments.trials - 1}. {machine()}; {installed}.")


if __name__ == "__main__":
    main()

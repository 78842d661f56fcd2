"""Tables of measured rewards: one soup among its neighbours, a whole front, and its metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from trl_bonesoup.front.front import Front, FrontPoint
from trl_bonesoup.front.metrics import shared_reference
from trl_bonesoup.hub.measured import has_row, neighbours
from trl_bonesoup.hub.tables import numbers, signed
from trl_bonesoup.markdown import code, number, table
from trl_bonesoup.weights import FloatArray

_METRICS = {
    "hypervolume": ("hypervolume", "volume of rewards that the front dominates; higher is better"),
    "inner_product": ("inner product", "mean over preferences of ⟨μ, rewards⟩; higher is better"),
    "controllability": (
        "controllability",
        "share of pairs of preferences whose rewards are ordered as asked; at most 1",
    ),
    "length_of_front": ("length of front", "points that no other point dominates"),
    "sparsity": ("sparsity", "mean squared gap between neighbours; lower is denser"),
    "spacing": ("spacing", "how uneven the gaps are; lower is more even"),
}

__all__ = ["front_table", "metrics_table", "reward_table"]


def reward_table(front: Front, point: FrontPoint, compared: Mapping[str, Front]) -> str:
    """Return the rewards of one soup in bold, of the nearest preferences, of other methods, and of the markers.

    Args:
        front: of the soup's family.
        point: the soup.
        compared: fronts of other methods by name; those without this preference are left out.
    """
    rows = []
    for k in sorted([point.index, *neighbours(front, point)]):
        cells = [
            "this soup" if k == point.index else "soup",
            numbers(front.preferences_KN[k]),
            *map(_reward, front.rewards_KN[k], front.intervals_KN2[k]),
        ]
        rows.append([f"**{cell}**" for cell in cells] if k == point.index else cells)
    for name, other in compared.items():
        if has_row(other, point.preference_N):
            theirs = other.nearest(point.preference_N)
            cells = list(map(_reward, theirs.rewards_N, theirs.intervals_N2))
            rows.append([code(name), numbers(theirs.preference_N), *cells])
    rows += ([label, "", *rewards] for label, rewards in _markers(front))
    return table(["Model", "Preference μ", *map(code, front.objectives)], rows)


def front_table(front: Front) -> str:
    """Return every preference of a front with its coefficients and rewards, and its markers."""
    rows = [
        [
            numbers(weights),
            "" if coefficients is None else ", ".join(map(signed, coefficients)),
            *map(_reward, *measured),
        ]
        for weights, coefficients, measured in zip(
            front.preferences_KN,
            [None] * len(front) if front.coefficients_KN is None else front.coefficients_KN,
            zip(front.rewards_KN, front.intervals_KN2, strict=True),
            strict=True,
        )
    ]
    rows += ([label, "", *rewards] for label, rewards in _markers(front))
    return table(["Preference μ", "Coefficients λ", *map(code, front.objectives)], rows)


def metrics_table(front: Front, compared: Mapping[str, Front]) -> tuple[str, str] | None:
    """Return the metrics of a front beside those of other methods, and the reference point of their hypervolumes.

    None for a single preference, which has nothing to be compared with.
    """
    if len(front) < 2:
        return None
    fronts = [front, *compared.values()]
    reference_N = shared_reference(fronts)
    measured = [each.metrics(reference_N) for each in fronts]
    rows = [
        [title, *(number(metrics[name]) for metrics in measured), meaning]
        for name, (title, meaning) in _METRICS.items()
    ]
    reference = ", ".join(
        f"{code(name)} {number(value)}" for name, value in zip(front.objectives, reference_N, strict=True)
    )
    return table(["Metric", "This family", *map(code, compared), "What it says"], rows), reference


def _markers(front: Front) -> Iterator[tuple[str, list[str]]]:
    for label, marker in front.markers.items():
        intervals = [None] * len(front.objectives) if marker.intervals_N2 is None else marker.intervals_N2
        yield code(label), list(map(_reward, marker.rewards_N, intervals))


def _reward(mean: float, interval: FloatArray | None) -> str:
    return number(mean) if interval is None else f"{number(mean)} ({number(interval[0])} to {number(interval[1])})"

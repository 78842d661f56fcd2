"""The six numbers that describe a front, and the reference point over which fronts can be compared.

Everything here is float64 NumPy and every objective is maximised. Axis letters: K preferences (one
solution each), N objectives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from trl_bonesoup.errors import FrontError, WeightsError
from trl_bonesoup.weights import FloatArray, check_preference

if TYPE_CHECKING:
    from trl_bonesoup.front.front import Front

SAME_PREFERENCE = 1e-9
"""Entries of two preferences that differ by at most this are the same."""

_AT_ONCE = 1_000_000
"""Differences of preferences that are in memory at once."""

__all__ = [
    "asked_order",
    "check_preferences",
    "check_rewards",
    "controllability",
    "finite_array",
    "hypervolume",
    "inner_product",
    "length_of_front",
    "pair_order",
    "shared_reference",
    "spacing",
    "sparsity",
]


def hypervolume(rewards: ArrayLike, reference: ArrayLike) -> float:
    """Return the volume that the solutions dominate above a reference point (larger is better).

    Only a comparison over one shared `reference` means anything. A solution that is not above the
    reference in every objective dominates no volume above it and adds 0, so the result is 0.0 when
    none is: choose a reference below the worst reward of every compared method.

    Args:
        rewards: mean rewards, shape (K, N), N ≥ 2.
        reference: the reference point, shape (N,), in the order of the objectives.

    Returns:
        A volume in the product of the objectives' units.

    Raises:
        FrontError: for NaN, infinity or shapes that do not fit.

    Source: Zitzler & Thiele (1998), computed by moocore.

    >>> hypervolume([[3.0, 1.0], [1.0, 2.0]], reference=[0.0, 0.0])
    4.0
    """
    import moocore

    rewards_KN = check_rewards(rewards)
    reference_N = finite_array(reference, "reference point")
    if reference_N.shape != rewards_KN.shape[1:]:
        raise FrontError(
            f"The reference point needs one number for each of the {rewards_KN.shape[1]} objectives; "
            f"got shape {reference_N.shape}."
        )
    return float(moocore.hypervolume(rewards_KN, ref=reference_N, maximise=True))


def inner_product(preferences: ArrayLike, rewards: ArrayLike) -> float:
    """Return mean_p ⟨μ_p, r_p⟩, the reward weighted as each preference asked (larger is better).

    Args:
        preferences: shape (K, N), each row on the simplex.
        rewards: mean rewards, shape (K, N), N ≥ 2.

    Raises:
        FrontError: for NaN, infinity, equal preferences, or shapes that do not fit.

    Source: Bone Soups, evaluation metrics.

    >>> inner_product([[1.0, 0.0], [0.5, 0.5]], [[3.0, 1.0], [1.0, 2.0]])
    2.25
    """
    rewards_KN = check_rewards(rewards)
    preferences_KN = check_preferences(preferences, rewards_KN)
    return float((preferences_KN * rewards_KN).sum(axis=1).mean())


def controllability(preferences: ArrayLike, rewards: ArrayLike) -> float:
    """Return the share of pairs of solutions whose rewards are ordered as their preferences are.

    A pair counts if, in every objective whose weight differs, the solution with the larger weight
    has the strictly larger reward. Objectives with equal weights are skipped, as nothing was asked
    of them. All K(K-1)/2 pairs are in the denominator: 55 for 11 preferences.

    Args:
        preferences: shape (K, N), each row on the simplex, no two equal.
        rewards: mean rewards, shape (K, N), K ≥ 2, N ≥ 2.

    Raises:
        FrontError: for NaN, infinity, equal preferences, fewer than 2 solutions, or shapes that do not fit.

    Source: Bone Soups, evaluation metrics, extended to pairs with equal weights.

    >>> controllability([[1, 0], [0.5, 0.5], [0, 1]], [[3.0, 1.0], [2.0, 2.0], [2.5, 3.0]]).__round__(3)
    0.667
    """
    order_KK = pair_order(preferences, rewards)
    return float((order_KK[np.triu_indices(len(order_KK), k=1)] == 1.0).mean())


def pair_order(preferences: ArrayLike, rewards: ArrayLike) -> FloatArray:
    """Return the share of objectives that each pair of solutions orders as its preferences do.

    Objectives whose weights are equal in both preferences are left out. A pair counts for
    `controllability` if its share is 1.

    Args:
        preferences: shape (K, N), each row on the simplex, no two equal.
        rewards: mean rewards, shape (K, N), K ≥ 2, N ≥ 2.

    Returns:
        Shape (K, K), symmetric, with 1 on the diagonal.

    Raises:
        FrontError: as for `controllability`.

    >>> pair_order([[1, 0], [0.5, 0.5], [0, 1]], [[3.0, 1.0], [2.0, 2.0], [2.5, 3.0]])
    array([[1. , 1. , 1. ],
           [1. , 1. , 0.5],
           [1. , 0.5, 1. ]])
    """
    rewards_KN = check_rewards(rewards, at_least=2, for_what="controllability")
    asked_KKN = asked_order(check_preferences(preferences, rewards_KN))
    got_KKN = rewards_KN[:, None] - rewards_KN[None]
    right_KK = (asked_KKN * got_KKN > 0.0).sum(axis=-1)
    return np.where(np.eye(len(rewards_KN)) == 1.0, 1.0, right_KK / np.maximum(1, (asked_KKN != 0.0).sum(axis=-1)))


def asked_order(preferences_KN: FloatArray) -> FloatArray:
    """Return, for each pair (p, q) and objective, 1 if p asks for more of it than q, -1 for less, 0 for the same."""
    difference_KKN = preferences_KN[:, None] - preferences_KN[None]
    return np.sign(np.where(np.abs(difference_KKN) <= SAME_PREFERENCE, 0.0, difference_KKN))


def length_of_front(rewards: ArrayLike) -> int:
    """Return the number of distinct solutions that no other solution dominates (larger is better).

    Args:
        rewards: mean rewards, shape (K, N), N ≥ 2. Equal rows count once.

    Raises:
        FrontError: for NaN, infinity or a wrong shape.

    Source: Bone Soups, evaluation metrics, computed by moocore.

    >>> length_of_front([[3.0, 1.0], [1.0, 2.0], [1.0, 1.0], [3.0, 1.0]])
    2
    """
    import moocore

    return int(moocore.is_nondominated(check_rewards(rewards), maximise=True, keep_weakly=False).sum())


def sparsity(preferences: ArrayLike, rewards: ArrayLike) -> float:
    """Return how far apart neighbouring solutions lie, squared (smaller is a denser front).

    For N = 2, the mean squared Euclidean distance between solutions that are consecutive in
    preference order. For N > 2 there is no such order: each objective's rewards are sorted by
    themselves, and the squared gaps are summed over objectives and divided by K-1, as in PGMORL
    (which does so over its non-dominated solutions; here it is over all of them).

    Args:
        preferences: shape (K, N), each row on the simplex, no two equal.
        rewards: mean rewards, shape (K, N), K ≥ 2, N ≥ 2.

    Raises:
        FrontError: for NaN, infinity, equal preferences, fewer than 2 solutions, or shapes that do not fit.

    Source: Bone Soups, evaluation metrics; Xu et al. (2020), "Prediction-Guided Multi-Objective
    Reinforcement Learning", for N > 2.

    >>> sparsity([[1, 0], [0, 1], [0.5, 0.5]], [[3.0, 0.0], [0.0, 4.0], [3.0, 4.0]])
    12.5
    """
    rewards_KN = check_rewards(rewards, at_least=2, for_what="sparsity")
    preferences_KN = check_preferences(preferences, rewards_KN)
    if rewards_KN.shape[1] == 2:
        ordered_KN = rewards_KN[np.argsort(-preferences_KN[:, 0])]
    else:
        ordered_KN = np.sort(rewards_KN, axis=0)
    return float((np.diff(ordered_KN, axis=0) ** 2).sum() / (len(rewards_KN) - 1))


def spacing(rewards: ArrayLike) -> float:
    """Return the standard deviation of the distances to the nearest solution (smaller is more even).

    sqrt(mean_p (d_p - d̄)²) with d_p the Euclidean distance from solution p to the nearest other
    one, over all K solutions.

    Args:
        rewards: mean rewards, shape (K, N), K ≥ 2, N ≥ 2.

    Raises:
        FrontError: for NaN, infinity, fewer than 2 solutions, or a wrong shape.

    Source: Bone Soups, evaluation metrics, after Schott (1995).

    >>> spacing([[0.0, 0.0], [0.0, 1.0], [0.0, 4.0]]).__round__(6)
    0.942809
    """
    rewards_KN = check_rewards(rewards, at_least=2, for_what="spacing")
    distances_KK = np.linalg.norm(rewards_KN[:, None] - rewards_KN[None], axis=-1)
    np.fill_diagonal(distances_KK, np.inf)
    return float(distances_KK.min(axis=1).std())


def shared_reference(fronts: Mapping[str, Front] | Sequence[Front], *, margin: float = 0.1) -> FloatArray:
    """Return the reference point (N,) over which the hypervolumes of all these fronts can be compared.

    In each objective, the worst mean over the preferences and markers of every front, less `margin`
    times the range of those means (less `margin` itself where all are equal), so that the end points
    enclose volume too.

    It is fair if every front was measured on the same prompts with the same rewards and decoding, and
    if the point is chosen once, over all methods of a comparison, and reported with it. It depends on
    the worst of them: adding a method that is far off moves it, and with it how much the ends of the
    other fronts count, which can change their ranking. Where a scale of the rewards gives a natural
    zero, that is the better reference.

    Args:
        fronts: every method of the comparison, by name or in a list.
        margin: share of the range that is left below the worst.

    Raises:
        FrontError: for no fronts, or fronts whose objectives are not the same in the same order.
    """
    compared = list(fronts.values() if isinstance(fronts, Mapping) else fronts)
    objectives = {front.objectives for front in compared}
    if len(objectives) != 1:
        raise FrontError(
            "A shared reference needs at least one front, and the same objectives in the same order in all of them; "
            f"got {sorted(map(list, objectives))}."
        )
    points = [front.rewards_KN for front in compared]
    points += [marker.rewards_N[None] for front in compared for marker in front.markers.values()]
    rewards = np.vstack(points)
    worst_N, range_N = rewards.min(axis=0), np.ptp(rewards, axis=0)
    return worst_N - margin * np.where(range_N > 0.0, range_N, 1.0)


def check_rewards(rewards: ArrayLike, *, at_least: int = 1, for_what: str = "a front") -> FloatArray:
    """Return mean rewards as a float64 array of shape (K, N) with K ≥ `at_least` and N ≥ 2.

    Raises:
        FrontError: otherwise, or for NaN or infinity, naming the solution.
    """
    rewards_KN = finite_array(rewards, "rewards")
    if rewards_KN.ndim != 2 or rewards_KN.shape[1] < 2:
        raise FrontError(
            "Rewards must have shape (K, N): one row per solution and one column per objective, at least 2 "
            f"objectives; got shape {rewards_KN.shape}."
        )
    if len(rewards_KN) < at_least:
        raise FrontError(
            f"For {for_what} at least {at_least} solutions must be compared; got {len(rewards_KN)}. "
            "Evaluate more preferences."
        )
    return rewards_KN


def check_preferences(preferences: ArrayLike, rewards_KN: FloatArray) -> FloatArray:
    """Return preferences as float64 of the shape (K, N) of the rewards: on the simplex and all different.

    Raises:
        FrontError: otherwise.
    """
    try:
        preferences_KN = check_preference(preferences, rewards_KN.shape[1])
    except WeightsError as error:
        raise FrontError(str(error)) from error
    if preferences_KN.shape != rewards_KN.shape:
        raise FrontError(
            f"There must be one preference for each row of rewards; got shapes {preferences_KN.shape} and "
            f"{rewards_KN.shape}."
        )
    rows = max(1, _AT_ONCE // preferences_KN.size)
    for start in range(0, len(preferences_KN), rows):
        apart = np.abs(preferences_KN[start : start + rows, None] - preferences_KN).max(axis=2)
        same = np.argwhere(np.triu(apart <= SAME_PREFERENCE, k=start + 1))
        if len(same):
            i, j = start + int(same[0, 0]), int(same[0, 1])
            raise FrontError(
                f"Each preference may occur once in a front; rows {i} and {j} are both {preferences_KN[i].tolist()}."
            )
    return preferences_KN


def finite_array(values: ArrayLike, what: str) -> FloatArray:
    """Return a float64 copy of `values`.

    Raises:
        FrontError: for anything but finite numbers, naming the first offending entry.
    """
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise FrontError(f"The {what} must be numbers in rows of equal length; got {values!r}.") from error
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise FrontError(
            f"The {what} must be finite; entry {bad[0].tolist()} is {array[tuple(bad[0])]}. A solution that could not "
            "be measured must be measured again or left out by you, never skipped in silence."
        )
    return array

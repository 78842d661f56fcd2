"""Combination weights B, merging coefficients λ = B⁻¹(k∘μ), and grids of preferences μ.

Everything here is float64 NumPy. Axis letters: N objectives (and backbones), K preferences.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trl_bonesoup.errors import LargeCoefficientsWarning, WeightsError

FloatArray = NDArray[np.float64]

SIMPLEX_TOLERANCE = 1e-6
"""How far the sum of a preference or of a column of B may be from 1."""

MAX_CONDITION = 1e8
"""Condition number of B from which its columns count as linearly dependent."""

LARGE_COEFFICIENT = 10.0
"""|λ| above which `merging_coefficients` warns: the soup leaves the backbones ten lengths behind."""

BASE_SHARE_TOLERANCE = 4e-6
"""|1 - Σλ| up to which the base has no share: B and μ may each be off the simplex by 1e-6."""

SOLVE_TOLERANCE = 1e-12
"""How far the solve for λ may put a coefficient from a whole number that it is."""

_NO_NUMBERS = "bcmMSUV"
"""Kinds of NumPy's dtypes that would turn into numbers unasked: truth values, texts, times, complex numbers."""

__all__ = [
    "base_share",
    "check_column",
    "check_combination_weights",
    "check_preference",
    "circulant_weights",
    "merging_coefficients",
    "simplex_grid",
    "simplex_sample",
]


def circulant_weights(n: int, beta: float) -> FloatArray:
    """Return the symmetric circulant combination weights B of shape (n, n).

    Column j is what backbone j is trained on: `beta` on objective j and an equal share of
    `1 - beta` on every other one, so B = a·I + b·J with b = (1-β)/(n-1) and a = β - b. Its
    2-norm condition number is 1/a, which grows without bound as β approaches 1/n.

    Args:
        n: number of objectives, at least 2.
        beta: dominance β in (1/n, 1]. β = 1 gives the identity: Rewarded Soups.

    Raises:
        WeightsError: for any other n or β.

    Source: Bone Soups, Section 3.2 (the circulant construction of the backbone rewards).

    >>> circulant_weights(2, beta=0.75)
    array([[0.75, 0.25],
           [0.25, 0.75]])
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 2:
        raise WeightsError(f"n must be a whole number of objectives, at least 2; got {n!r}.")
    beta = _finite_number(beta, "beta (the dominance β)")
    if not 1.0 / n < beta <= 1.0:
        raise WeightsError(
            f"beta (the dominance β) must be in (1/{n}, 1] for {n} objectives; got {beta}. "
            f"At 1/{n} all backbones are the same model, at 1 each has its own reward (Rewarded Soups)."
        )
    weights = np.full((n, n), (1.0 - beta) / (n - 1))
    np.fill_diagonal(weights, beta)
    return check_combination_weights(weights)


def check_combination_weights(weights: ArrayLike, *, require_dominance: bool = False) -> FloatArray:
    """Return B as a float64 array after checking the paper's rules.

    1. Every column lies on the simplex: no negative entry, sum 1 (to 1e-6).
    2. B is invertible: its condition number is below 1e8.
    3. Only if `require_dominance`: every column has one largest entry, and no two columns have it
       in the same row. Random B matrices (the paper's RQ3) need not satisfy this one.

    Args:
        weights: B of shape (N, N), N ≥ 2; column j belongs to backbone j.
        require_dominance: also check rule 3.

    Raises:
        WeightsError: naming the rule and the offending column.
    """
    matrix = _float_array(weights, "combination weights")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] < 2:
        raise WeightsError(
            f"Combination weights must be a square matrix of at least 2 by 2, one column per backbone; "
            f"got shape {matrix.shape}."
        )
    for j, column in enumerate(matrix.T):
        _check_simplex(column, f"column {j} of the combination weights")
    condition = float(np.linalg.cond(matrix))
    if not condition < MAX_CONDITION:
        raise WeightsError(
            f"The combination weights must be invertible; got a matrix with condition number {condition:.3g} "
            f"(allowed: below {MAX_CONDITION:g}). Two backbones trained on (nearly) the same mixture of rewards "
            "cannot be told apart. For circulant weights, choose a larger beta."
        )
    if require_dominance:
        dominant = []
        for j, column in enumerate(matrix.T):
            rows = np.flatnonzero(column == column.max())
            if len(rows) != 1:
                raise WeightsError(
                    f"Each column of the combination weights needs one dominant entry; column {j} is "
                    f"{column.tolist()}, where rows {rows.tolist()} share the largest."
                )
            dominant.append(int(rows[0]))
        if len(set(dominant)) != len(dominant):
            raise WeightsError(
                f"Each backbone needs its own dominant objective; the columns' dominant rows are {dominant}."
            )
    return matrix


def check_column(column: ArrayLike, n: int) -> FloatArray:
    """Return one column of B (what a single backbone is trained on) after checking it lies on the simplex.

    Args:
        column: shape (N,). A unit vector gives a single-reward expert, a preference gives MORLHF.
        n: the number N of objectives it must cover.

    Raises:
        WeightsError: if its length is not `n` or it is off the simplex.
    """
    vector = _float_array(column, "combination weights")
    if vector.shape != (n,):
        raise WeightsError(
            f"A column of combination weights needs one entry for each of the {n} objectives; got shape {vector.shape}."
        )
    return _check_simplex(vector, "the column of combination weights")


def check_preference(preference: ArrayLike, n: int, *, allow_negative: bool = False) -> FloatArray:
    """Return preference(s) μ of shape (n,) or (K, n) as float64 after checking they lie on the simplex.

    Args:
        preference: one preference or K of them.
        n: the number N of objectives.
        allow_negative: accept entries below 0 (and so above 1): against an objective, on the plane Σμ = 1.

    Raises:
        WeightsError: for a wrong length, NaN, a negative entry, or a sum off 1 by more than 1e-6.
    """
    vector = _float_array(preference, "preference")
    if vector.ndim not in (1, 2) or vector.shape[-1] != n:
        raise WeightsError(
            f"A preference needs one entry for each of the {n} objectives, so shape ({n},), or (K, {n}) for K "
            f"preferences; got shape {vector.shape}."
        )
    for row in np.atleast_2d(vector):
        _check_simplex(row, "the preference", allow_negative=allow_negative)
    return vector


def merging_coefficients(
    weights: ArrayLike,
    preference: ArrayLike,
    extrapolation: float | Sequence[float] = 0.0,
    *,
    allow_negative: bool = False,
) -> FloatArray:
    """Solve B·λ = k∘μ for the merging coefficients λ, so that the soup Σ_j λ_j θ_j matches μ.

    Without extrapolation Σλ = 1. With it, k_i = 1/(1-α_i) and the SFT model takes the remaining
    share 1 - Σλ (which is negative: the soup moves away from the SFT model).

    Args:
        weights: B of shape (N, N), see `check_combination_weights`.
        preference: μ on the simplex, shape (N,), or (K, N) for K preferences at once.
        extrapolation: α in [0, 1), one number for all objectives or a sequence of N.
        allow_negative: accept a preference with negative entries, which still has to sum to 1.

    Returns:
        λ with the shape of `preference`. Entries may be negative. What is a whole number up to the
        rounding of the solve (1e-12) is that number: for a column of B, λ is 1 and 0, and the soup
        that backbone itself.

    Raises:
        WeightsError: for invalid B, μ or α.

    Warns:
        LargeCoefficientsWarning: if some λ lies beyond ±10, which only a badly conditioned B
            or an α close to 1 produces.

    Source: Bone Soups, Section 3.3 (merging) and Equation 9 (extrapolation).

    >>> merging_coefficients(circulant_weights(2, beta=0.6), [1.0, 0.0]).round(6)
    array([ 3., -2.])
    """
    matrix = check_combination_weights(weights)
    n = len(matrix)
    target = check_preference(preference, n, allow_negative=allow_negative) * _extrapolation_factors(extrapolation, n)
    coefficients = np.asarray(np.linalg.solve(matrix, target.T).T, dtype=np.float64)
    whole = np.round(coefficients)
    coefficients = np.where(np.abs(coefficients - whole) <= SOLVE_TOLERANCE, whole, coefficients) + 0.0
    largest = float(np.abs(coefficients).max(initial=0.0))
    if largest > LARGE_COEFFICIENT:
        warnings.warn(
            f"The largest merging coefficient is {largest:.3g} (above {LARGE_COEFFICIENT:g}); the combination "
            f"weights have condition number {np.linalg.cond(matrix):.3g}. Such a soup amplifies the noise of the "
            "backbones: use a larger beta or a smaller extrapolation.",
            LargeCoefficientsWarning,
            stacklevel=2,
        )
    return coefficients


def base_share(coefficients_N: FloatArray) -> float:
    """Return the share 1 - Σλ of the base model (Equation 9), exactly 0 where only rounding is left."""
    share = 1.0 - float(coefficients_N.sum())
    return share if abs(share) > BASE_SHARE_TOLERANCE else 0.0


def simplex_grid(n: int, step: float = 0.1) -> FloatArray:
    """Return every preference of n objectives whose entries are multiples of `step`, shape (K, n).

    Rows are in lexicographic order of decreasing first coordinate, so the first is the vertex of
    objective 0 and the last that of objective n-1. K = C(1/step + n - 1, n - 1): 11 points for
    n = 2 and 66 for n = 3 at the default step.

    Raises:
        WeightsError: if n < 1 or 1/step is not a whole number.

    >>> simplex_grid(2, step=0.5)
    array([[1. , 0. ],
           [0.5, 0.5],
           [0. , 1. ]])
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise WeightsError(f"n must be a whole number of objectives, at least 1; got {n!r}.")
    step = _finite_number(step, "step")
    parts = round(1.0 / step) if 0.0 < step <= 1.0 else 0
    if parts < 1 or not math.isclose(parts * step, 1.0, abs_tol=1e-9):
        raise WeightsError(f"step must divide 1 evenly, like 0.1, 0.25 or 0.5; got {step}.")
    rows = []
    for bars in itertools.combinations(range(parts + n - 1), n - 1):
        edges = (-1, *bars, parts + n - 1)
        rows.append([edges[i + 1] - edges[i] - 1 for i in range(n)])
    return np.array(sorted(rows, reverse=True), dtype=np.float64) / parts


def simplex_sample(n: int, k: int, seed: int = 0) -> FloatArray:
    """Return k different preferences of n objectives, shape (k, n): the n vertices, then others drawn at random.

    The others are uniform on the simplex (Dirichlet with all parameters 1). For more than 3
    objectives a grid is too large (286 points for 4, 1001 for 5, at step 0.1). The vertices are always
    there, because they are the ends of every front.

    Args:
        n: number of objectives, at least 2.
        k: number of preferences, at least n.
        seed: of the random numbers.

    Raises:
        WeightsError: for any other n, k or seed.

    >>> simplex_sample(3, 4).round(2)
    array([[1.  , 0.  , 0.  ],
           [0.  , 1.  , 0.  ],
           [0.  , 0.  , 1.  ],
           [0.4 , 0.59, 0.01]])
    """
    for name, value, least in (("n (objectives)", n, 2), ("k (preferences)", k, n), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise WeightsError(f"{name} must be a whole number, at least {least}; got {value!r}.")
    drawn = np.random.default_rng(seed).dirichlet(np.ones(n), size=k - n)
    return np.vstack([np.eye(n), drawn])


def _extrapolation_factors(extrapolation: float | Sequence[float], n: int) -> FloatArray:
    alpha = _float_array(extrapolation, "extrapolation")
    if alpha.ndim > 1 or (alpha.ndim == 1 and len(alpha) != n):
        raise WeightsError(
            f"extrapolation (α) must be one number or one for each of the {n} objectives; got shape {alpha.shape}."
        )
    if not ((alpha >= 0.0) & (alpha < 1.0)).all():
        raise WeightsError(f"extrapolation (α) must be in [0, 1); got {extrapolation!r}.")
    return np.broadcast_to(1.0 / (1.0 - alpha), (n,))


def _check_simplex(vector: FloatArray, what: str, *, allow_negative: bool = False) -> FloatArray:
    if not allow_negative and (vector < 0.0).any():
        raise WeightsError(f"No entry of {what} may be negative; got {vector.tolist()}.")
    total = float(vector.sum())
    if abs(total - 1.0) > SIMPLEX_TOLERANCE:
        raise WeightsError(f"The entries of {what} must sum to 1; {vector.tolist()} sums to {total:.8g}.")
    return vector


def _float_array(values: ArrayLike, what: str) -> FloatArray:
    try:
        given = np.asarray(values)
        if given.dtype.kind in _NO_NUMBERS or (given.dtype.kind == "O" and any(map(_is_no_number, given.flat))):
            raise TypeError
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise WeightsError(f"The {what} must be numbers; got {values!r}.") from error
    if not np.isfinite(array).all():
        raise WeightsError(f"The {what} must be finite; got {array.tolist()}.")
    return array


def _is_no_number(value: object) -> bool:
    return value is None or isinstance(value, (str, bytes, bool))


def _finite_number(value: float, what: str) -> float:
    array = _float_array(value, what)
    if array.ndim:
        raise WeightsError(f"{what} must be one number; got {value!r}.")
    return float(array)

"""Which numbers of a front a card may state: those of this very soup or family, and of methods measured alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trl_bonesoup.errors import FrontError
from trl_bonesoup.front.front import Front, FrontPoint
from trl_bonesoup.front.metrics import SAME_PREFERENCE
from trl_bonesoup.manifest import SoupManifest
from trl_bonesoup.markdown import code
from trl_bonesoup.weights import FloatArray

SAME_COEFFICIENT = 1e-6
"""How far the coefficients of a measured soup may be from this one's and still be the same soup."""

MEASURED_ALIKE = ("rewards", "prompts_sha256", "samples_per_prompt", "seed", "decoding")
"""What front.json records of an evaluation that has to be the same for two fronts to be compared."""

OTHER_RUNS = "Other training runs: there is one of each backbone, so the intervals do not include how much runs differ."
OTHER_TRAINING = (
    "Whether the methods beside this one had the same training. Known to be the same are prompts, rewards and decoding "
    "of the evaluation."
)

__all__ = [
    "OTHER_RUNS",
    "OTHER_TRAINING",
    "check_comparable",
    "check_family_front",
    "check_front",
    "has_row",
    "how_measured",
    "measured_point",
    "neighbours",
]


def check_front(front: Front, manifest: SoupManifest) -> None:
    """Check that a front was measured on these backbones, as far as it records them.

    Raises:
        FrontError: for other objectives, or backbones that were trained otherwise.
    """
    if tuple(front.objectives) != manifest.objective_names:
        raise FrontError(
            f"The front is over the objectives {list(front.objectives)}, the soup over "
            f"{list(manifest.objective_names)}: give the front that was measured with this soup."
        )
    recorded = front.provenance.get("backbones")
    if not isinstance(recorded, list) or not all(isinstance(entry, dict) for entry in recorded):
        return
    measured = [(entry.get("steps"), entry.get("seed")) for entry in recorded]
    trained = [(backbone.steps, backbone.seed) for backbone in manifest.backbones]
    if measured != trained:
        raise FrontError(
            f"The front was measured on backbones with (steps, seed) {measured}, soup.json names {trained}: "
            "they are not the same training. Measure this soup, with `bonesoup evaluate`."
        )


def measured_point(
    front: Front | None, manifest: SoupManifest, preference_N: FloatArray, coefficients_N: FloatArray
) -> FrontPoint | None:
    """Return the point of the front that is this very soup; None if it was not measured.

    Raises:
        FrontError: see `check_front`.
    """
    if front is None:
        return None
    check_front(front, manifest)
    point = front.nearest(preference_N)
    if point.coefficients_N is None:
        return None
    apart = max(np.abs(point.preference_N - preference_N).max(), np.abs(point.coefficients_N - coefficients_N).max())
    return point if apart <= SAME_COEFFICIENT else None


def check_family_front(front: Front, manifest: SoupManifest) -> Any:
    """Check that a front was measured on the soups of this family, and return their extrapolation α.

    Raises:
        FrontError: see `check_front`; or if the coefficients are not those of B and α.
    """
    check_front(front, manifest)
    extrapolation: Any = front.provenance.get("extrapolation", 0.0)
    expected_KN = manifest.coefficients(front.preferences_KN, extrapolation)
    if front.coefficients_KN is None or np.abs(front.coefficients_KN - expected_KN).max() > SAME_COEFFICIENT:
        raise FrontError(
            "The front was not measured on soups that are merged as soup.json says, with λ of B·λ = μ: give the front "
            "that `bonesoup evaluate` measured on this soup, and other methods as what it is compared with."
        )
    return extrapolation


def check_comparable(front: Front, compared: Mapping[str, Front], *, same_preferences: bool = False) -> None:
    """Check that other methods were measured as this front was.

    Args:
        front: of the soup.
        compared: fronts of other methods by name.
        same_preferences: also require the same preferences, without which no metric can be compared.

    Raises:
        FrontError: for other objectives, or if prompts, rewards or decoding differ or are not recorded.
    """
    for name, other in compared.items():
        if other.objectives != front.objectives:
            raise FrontError(
                f"{name!r} was measured on the objectives {list(other.objectives)}, this soup on "
                f"{list(front.objectives)}: they cannot be compared."
            )
        for key in MEASURED_ALIKE:
            mine, theirs = front.provenance.get(key), other.provenance.get(key)
            if mine is None or mine != theirs:
                raise FrontError(
                    f"{name!r} and this soup cannot be compared: {key} is {theirs!r} in its front and {mine!r} in the "
                    "soup's. Measure both with the same prompts, rewards and settings, as `bonesoup compare` does."
                )
        if same_preferences and not _same_rows(front.preferences_KN, other.preferences_KN):
            raise FrontError(
                f"{name!r} was measured at {len(other)} preferences that are not the {len(front)} of this soup: "
                "measure both at the same ones."
            )


def has_row(front: Front, preference_N: FloatArray) -> bool:
    """Return whether a front was measured at a preference."""
    return bool(np.abs(front.nearest(preference_N).preference_N - preference_N).max() <= SAME_PREFERENCE)


def neighbours(front: Front, point: FrontPoint) -> list[int]:
    """Return the rows nearest to a point in preference, all that are equally near, in the front's order."""
    distances = np.linalg.norm(front.preferences_KN - point.preference_N, axis=1)
    distances[point.index] = np.inf
    return np.flatnonzero(np.isfinite(distances) & (distances <= distances.min() + 1e-6)).tolist()


def how_measured(front: Front, counts: NDArray[np.int64]) -> str:
    """Return over what the means are, and how the answers were generated as far as the front records it."""
    fewest, most = counts.min(), counts.max()
    answers = f"{fewest} answers" if fewest == most else f"{fewest} to {most} answers"
    prompts, decoding = front.provenance.get("prompts"), front.provenance.get("decoding")
    details = f" to {prompts} prompts" if isinstance(prompts, int) else ""
    if isinstance(decoding, dict):
        settings = (f"{code(str(key))} {code(str(value))}" for key, value in decoding.items())
        details += f" ({', '.join(settings)})"
    return f"each over {answers}{details}"


def _same_rows(first_KN: FloatArray, second_KN: FloatArray) -> bool:
    if len(first_KN) != len(second_KN):
        return False
    apart_KK = np.abs(first_KN[:, None] - second_KN[None]).max(axis=2)
    return bool((apart_KK.min(axis=1) <= SAME_PREFERENCE).all())

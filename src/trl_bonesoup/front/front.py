"""Front: mean rewards measured over a grid of preferences, with everything needed to judge them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trl_bonesoup.errors import FrontError
from trl_bonesoup.front import metrics
from trl_bonesoup.front.record import FORMAT_VERSION, as_json, read_record, write_json
from trl_bonesoup.strict_json import shown
from trl_bonesoup.weights import FloatArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASE_LABEL = "base"
"""Label of the marker for λ = 0: the model that every backbone started from."""

BACKBONE_PREFIX = "backbone "
"""A marker whose label starts so is one backbone by itself; the name of its objective follows."""

__all__ = ["BACKBONE_PREFIX", "BASE_LABEL", "Front", "FrontPoint", "Marker"]


@dataclass(frozen=True, eq=False)
class Marker:
    """A model that a front is compared with: the base, one backbone, or any other.

    Args:
        rewards_N: mean rewards in the order of the front's objectives.
        intervals_N2: their 95 % intervals, lower and upper end, if known.
    """

    rewards_N: FloatArray
    intervals_N2: FloatArray | None = None

    def __post_init__(self) -> None:
        rewards_N = _frozen(self.rewards_N, "rewards of a marker")
        object.__setattr__(self, "rewards_N", rewards_N)
        if self.intervals_N2 is not None:
            intervals_N2 = _frozen(self.intervals_N2, "intervals of a marker")
            _check_intervals(intervals_N2, rewards_N)
            object.__setattr__(self, "intervals_N2", intervals_N2)


@dataclass(frozen=True, eq=False)
class FrontPoint:
    """One row of a front: what was asked, how the backbones were mixed, and what came out."""

    index: int
    preference_N: FloatArray
    coefficients_N: FloatArray | None
    rewards_N: FloatArray
    intervals_N2: FloatArray
    n_samples_N: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Front:
    """Mean rewards of the soups (or other policies) of K preferences, with intervals, markers and provenance.

    Arrays are copied, checked and made read-only. Two fronts are equal if everything in them is.

    Args:
        objectives: names of the N ≥ 2 objectives; every axis N below is in this order.
        preferences_KN: μ, each row on the simplex, no two equal.
        coefficients_KN: the merging coefficients λ of each preference; None where nothing was merged.
        rewards_KN: mean rewards.
        intervals_KN2: 95 % intervals of the means, lower and upper end (`evaluate_front` makes
            percentile bootstrap intervals by resampling prompts).
        n_samples_KN: how many scores each mean is over.
        markers: models to compare with by label, as `Marker` or as plain mean rewards (N,).
        provenance: how the numbers came about; anything that JSON can hold.

    Raises:
        FrontError: for NaN, infinity, names or shapes that do not fit, or intervals upside down.
    """

    objectives: tuple[str, ...]
    preferences_KN: FloatArray
    coefficients_KN: FloatArray | None
    rewards_KN: FloatArray
    intervals_KN2: FloatArray
    n_samples_KN: NDArray[np.int64]
    markers: Mapping[str, Marker] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        objectives = tuple(self.objectives)
        if len(objectives) < 2 or len(set(objectives)) != len(objectives):
            raise FrontError(f"A front needs at least 2 objectives with different names; got {list(objectives)}.")
        rewards_KN = metrics.check_rewards(self.rewards_KN)
        shape = (len(rewards_KN), len(objectives))
        if rewards_KN.shape != shape:
            raise FrontError(
                f"Rewards need one column for each of the objectives {list(objectives)}; got shape {rewards_KN.shape}."
            )
        counts = np.array(self.n_samples_KN)
        if counts.shape != shape or not np.issubdtype(counts.dtype, np.integer) or (counts < 1).any():
            raise FrontError(
                f"n_samples_KN must hold whole numbers of at least 1 in shape {shape}; got {self.n_samples_KN!r}."
            )
        coefficients_KN = None if self.coefficients_KN is None else _frozen(self.coefficients_KN, "coefficients")
        if coefficients_KN is not None and coefficients_KN.shape != shape:
            raise FrontError(f"Coefficients must have shape {shape}; got {coefficients_KN.shape}.")
        intervals_KN2 = _frozen(self.intervals_KN2, "intervals")
        _check_intervals(intervals_KN2, rewards_KN)
        markers = {label: _as_marker(label, marker, len(objectives)) for label, marker in self.markers.items()}
        checked = {
            "objectives": objectives,
            "preferences_KN": _frozen(metrics.check_preferences(self.preferences_KN, rewards_KN), "preferences"),
            "coefficients_KN": coefficients_KN,
            "rewards_KN": _frozen(rewards_KN, "rewards"),
            "intervals_KN2": intervals_KN2,
            "n_samples_KN": _read_only(counts.astype(np.int64)),
            "markers": markers,
            "provenance": as_json(self.provenance),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.rewards_KN)

    def __eq__(self, other: object) -> bool:
        return self._record() == other._record() if isinstance(other, Front) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def metrics(self, reference: Mapping[str, float] | ArrayLike) -> dict[str, float | int]:
        """Return hypervolume, inner product, controllability, length, sparsity and spacing by name.

        Args:
            reference: the hypervolume's reference point, in the order of the objectives or by name.
                Fronts can be compared only over one shared reference.

        Raises:
            FrontError: for fewer than 2 preferences, which leave nothing to compare, or a reference
                that does not name every objective.
        """
        if len(self) < 2:
            raise FrontError(
                f"The metrics compare solutions with each other; this front has {len(self)} preference. "
                "Evaluate a grid, such as simplex_grid(2), or use trl_bonesoup.front.metrics.hypervolume alone."
            )
        reference_N = self._by_name(reference, "reference point")
        return {
            "hypervolume": metrics.hypervolume(self.rewards_KN, reference_N),
            "inner_product": metrics.inner_product(self.preferences_KN, self.rewards_KN),
            "controllability": metrics.controllability(self.preferences_KN, self.rewards_KN),
            "length_of_front": metrics.length_of_front(self.rewards_KN),
            "sparsity": metrics.sparsity(self.preferences_KN, self.rewards_KN),
            "spacing": metrics.spacing(self.rewards_KN),
        }

    def default_reference(self) -> FloatArray:
        """Return a reference point (N,) for looking at this front alone, never for a comparison.

        In each objective, the worst mean over preferences and markers less 10 % of the range of the
        means (less 0.1 where all are equal), so that the end points enclose volume too. It depends
        on this front; methods to be compared need one reference that all of them share.
        """
        return metrics.shared_reference([self])

    def point(self, preference: Mapping[str, float] | ArrayLike) -> FrontPoint:
        """Return the row measured at this preference (to 1e-9).

        Args:
            preference: numbers in the order of the objectives, or a dict by name in which missing
                objectives count as 0.

        Raises:
            FrontError: if it was not measured, naming the nearest that was.
        """
        wanted_N = self._preference(preference)
        nearest = self.nearest(wanted_N)
        if np.abs(nearest.preference_N - wanted_N).max() > metrics.SAME_PREFERENCE:
            raise FrontError(
                f"The preference {wanted_N.tolist()} was not measured in this front; the nearest of its {len(self)} is "
                f"{nearest.preference_N.tolist()}. Evaluate it, or use `nearest`."
            )
        return nearest

    def nearest(self, preference: Mapping[str, float] | ArrayLike) -> FrontPoint:
        """Return the row whose preference is nearest in Euclidean distance (the first of equals)."""
        wanted_N = self._preference(preference)
        index = int(np.linalg.norm(self.preferences_KN - wanted_N, axis=1).argmin())
        return FrontPoint(
            index=index,
            preference_N=self.preferences_KN[index],
            coefficients_N=None if self.coefficients_KN is None else self.coefficients_KN[index],
            rewards_N=self.rewards_KN[index],
            intervals_N2=self.intervals_KN2[index],
            n_samples_N=self.n_samples_KN[index],
        )

    def table(self) -> str:
        """Return an aligned Markdown table: preference μ, coefficients λ (if any), mean rewards ± half their interval.

        The markers follow the preferences, under their labels.
        """
        from trl_bonesoup.front.table import front_table

        return front_table(self)

    def plot(
        self,
        path: str | Path | None = None,
        *,
        kind: str = "front",
        width: float | None = None,
        highlight: Mapping[str, float] | ArrayLike | None = None,
    ) -> Figure:
        """Draw the front, write it to `path` if given (SVG, PDF or PNG by its ending), and return the figure.

        Args:
            path: where to write.
            kind: one of `trl_bonesoup.front.plots.KINDS`: "front" for rewards against rewards, coloured by
                preference (for more than 3 objectives this is "preference"), "preference" for each
                reward against its weight, "controllability" for the pairs that are ordered as asked, and
                for three objectives "3d" and "ternary".
            width: inches; 3.3 for a column of a paper.
            highlight: a preference that was measured, to ring in the kinds "front" and "preference".

        Raises:
            FrontError: for another kind or file ending, or a preference to ring that was not measured.
        """
        from trl_bonesoup.front import plots

        row = None if highlight is None else self.point(highlight).index
        return plots.plot(self, path, kind=kind, width=width, highlight=row)

    def to_json(self, path: str | Path) -> Path:
        """Write the front to a JSON file, completely or not at all, and return its path."""
        return write_json(self._record(), path)

    @classmethod
    def from_json(cls, path: str | Path) -> Front:
        """Read a front that `to_json` wrote; every number comes back exactly.

        Raises:
            FrontError: if there is no such file, or it is not a complete front of this format version.
        """
        record = read_record(path)
        try:
            return cls(
                objectives=tuple(record.objectives),
                preferences_KN=record.preferences,  # type: ignore[arg-type]
                coefficients_KN=record.coefficients,  # type: ignore[arg-type]
                rewards_KN=record.rewards,  # type: ignore[arg-type]
                intervals_KN2=record.intervals,  # type: ignore[arg-type]
                n_samples_KN=record.n_samples,  # type: ignore[arg-type]
                markers={
                    label: Marker(marker.rewards, marker.intervals)  # type: ignore[arg-type]
                    for label, marker in record.markers.items()
                },
                provenance=record.provenance,
            )
        except ValueError as error:
            raise FrontError(f"{path} is not a valid front: {shown(str(error))}") from error

    def _record(self) -> dict[str, Any]:
        markers = {
            label: {
                "rewards": marker.rewards_N.tolist(),
                "intervals": None if marker.intervals_N2 is None else marker.intervals_N2.tolist(),
            }
            for label, marker in self.markers.items()
        }
        return {
            "format_version": FORMAT_VERSION,
            "objectives": list(self.objectives),
            "preferences": self.preferences_KN.tolist(),
            "coefficients": None if self.coefficients_KN is None else self.coefficients_KN.tolist(),
            "rewards": self.rewards_KN.tolist(),
            "intervals": self.intervals_KN2.tolist(),
            "n_samples": self.n_samples_KN.tolist(),
            "markers": markers,
            "provenance": dict(self.provenance),
        }

    def _preference(self, preference: Mapping[str, float] | ArrayLike) -> FloatArray:
        if isinstance(preference, Mapping):
            preference = {**dict.fromkeys(self.objectives, 0.0), **preference}
        return self._by_name(preference, "preference")

    def _by_name(self, values: Mapping[str, float] | ArrayLike, what: str) -> FloatArray:
        if isinstance(values, Mapping):
            if set(values) != set(self.objectives):
                raise FrontError(f"The {what} must name the objectives {list(self.objectives)}; got {list(values)}.")
            values = [values[name] for name in self.objectives]
        values_N = _frozen(values, what)
        if values_N.shape != (len(self.objectives),):
            raise FrontError(
                f"The {what} needs one number for each of the objectives {list(self.objectives)}; "
                f"got shape {values_N.shape}."
            )
        return values_N


def _frozen(values: ArrayLike, what: str) -> FloatArray:
    return _read_only(metrics.finite_array(values, what))


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


def _check_intervals(intervals: FloatArray, means: FloatArray) -> None:
    if intervals.shape != (*means.shape, 2):
        raise FrontError(
            f"Intervals need a lower and an upper end for each mean, shape {(*means.shape, 2)}; got {intervals.shape}."
        )
    if (intervals[..., 0] > intervals[..., 1]).any():
        raise FrontError("Each interval must give its lower end first.")


def _as_marker(label: str, marker: Marker | ArrayLike, n: int) -> Marker:
    result = marker if isinstance(marker, Marker) else Marker(marker)  # type: ignore[arg-type]
    if result.rewards_N.shape != (n,):
        raise FrontError(
            f'The marker "{label}" needs one mean reward for each of the {n} objectives; '
            f"got shape {result.rewards_N.shape}."
        )
    return result

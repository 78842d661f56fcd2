"""The methods that `compare` knows: which policies each one trains, and how it answers for a preference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from trl_bonesoup.errors import ConfigurationError, WeightsError
from trl_bonesoup.weights import (
    LARGE_COEFFICIENT,
    FloatArray,
    check_combination_weights,
    check_preference,
    circulant_weights,
    simplex_grid,
)

if TYPE_CHECKING:
    from trl_bonesoup.front.policies import Policies
    from trl_bonesoup.training.policies import PolicyRun

__all__ = ["BaseMethod", "Method", "MixtureMethod", "OracleMethod", "SoupMethod", "read_methods"]


@dataclass(frozen=True, eq=False)
class Method:
    """One row of a comparison.

    Args:
        name: in tables and figures.
        slug: of its folder, distinct among the methods of a comparison.
    """

    name: str
    slug: str

    @property
    def mixtures(self) -> list[FloatArray]:
        """The mixtures of the rewards that its policies are trained on."""
        raise NotImplementedError

    def preferences(self, grid_KN: FloatArray) -> FloatArray:
        """Return the preferences that it is measured at."""
        return grid_KN

    def policies(self, pool: PolicyRun, preferences_KN: FloatArray, device: Any) -> Policies:
        """Load its policies from where they were trained."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class SoupMethod(Method):
    """Backbones trained on the columns of B, merged: Bone Soup, Rewarded Soups (B = I), or ABA.

    Args:
        weights: B, (N, N).
        averaged: merge with λ = μ in place of B⁻¹μ, as the paper's ABA does.
    """

    weights: FloatArray
    averaged: bool = False

    @property
    def mixtures(self) -> list[FloatArray]:
        """The columns of B."""
        return list(self.weights.T)

    def policies(self, pool: PolicyRun, preferences_KN: FloatArray, device: Any) -> Policies:
        """Load the soup."""
        from trl_bonesoup.front.soups import SoupPolicies

        merged_with = np.eye(len(self.weights)) if self.averaged else None
        return SoupPolicies(
            _soup(self.weights, pool, device), preferences_KN, include_markers=False, combination_weights=merged_with
        )


@dataclass(frozen=True, eq=False)
class MixtureMethod(Method):
    """Backbones whose logits are mixed while decoding: MOD.

    Args:
        weights: B, (N, N); the identity for MOD as published, over single-reward experts.
        mix_with: "preference" or "coefficients", see `MixturePolicies`.
    """

    weights: FloatArray
    mix_with: str = "preference"

    @property
    def mixtures(self) -> list[FloatArray]:
        """The columns of B."""
        return list(self.weights.T)

    def policies(self, pool: PolicyRun, preferences_KN: FloatArray, device: Any) -> Policies:
        """Load the backbones."""
        from trl_bonesoup.front.mixture import MixturePolicies

        return MixturePolicies(_soup(self.weights, pool, device), preferences_KN, mix_with=self.mix_with)


@dataclass(frozen=True, eq=False)
class OracleMethod(Method):
    """MORLHF: one policy trained on Σ_i μ_i r_i for each of a few preferences, which nothing is merged from.

    Args:
        trained_for: its preferences, (K, N).
    """

    trained_for: FloatArray

    @property
    def mixtures(self) -> list[FloatArray]:
        """Its preferences."""
        return list(self.trained_for)

    def preferences(self, grid_KN: FloatArray) -> FloatArray:
        """Return those it was trained for, whatever the grid of the others is."""
        return self.trained_for

    def policies(self, pool: PolicyRun, preferences_KN: FloatArray, device: Any) -> Policies:
        """Find the policies; each is loaded when its turn comes."""
        from trl_bonesoup.front.checkpoints import CheckpointPolicies
        from trl_bonesoup.training.policies import mixture_name

        folders = [pool.folder / mixture_name(preference_N) for preference_N in preferences_KN]
        return CheckpointPolicies(
            folders, preferences_KN, pool.request["objectives"], base_model=pool.base_model, device=device
        )


@dataclass(frozen=True, eq=False)
class BaseMethod(Method):
    """The base model, which is not trained and answers alike for every preference."""

    @property
    def mixtures(self) -> list[FloatArray]:
        """None."""
        return []

    def preferences(self, grid_KN: FloatArray) -> FloatArray:
        """Return the first: one stands for all."""
        return grid_KN[:1]

    def policies(self, pool: PolicyRun, preferences_KN: FloatArray, device: Any) -> Policies:
        """Find the base model."""
        from trl_bonesoup.front.checkpoints import CheckpointPolicies

        return CheckpointPolicies([pool.base_model], preferences_KN, pool.request["objectives"], device=device)


def read_methods(specs: Sequence[str | Mapping[str, Any]], n: int) -> list[Method]:
    """Return methods from what a YAML file says.

    Args:
        specs: names, or one-entry mappings from a name to its options:

            - `base`
            - `rewarded-soups`
            - `bone-soup`, `aba`: `dominance`, one β or several (default 0.7)
            - `morlhf`: `preferences`, or the step of a `grid` of them (default 0.5)
            - `mod`: `dominance` (default 1) and `mix_with` (default "preference")
            - `random-b`: `draws` (default 3) and the `seed` that they are drawn with (default 0)
        n: number of objectives.

    Raises:
        ConfigurationError, WeightsError: for an unknown method or option, a value that is not
            allowed, or methods that repeat.
    """
    methods = [method for spec in specs for method in _read_method(spec, n)]
    slugs = [method.slug for method in methods]
    if not methods or len(set(slugs)) != len(slugs):
        raise ConfigurationError(f"A comparison needs methods, and each of them once; got {slugs}.")
    return methods


def random_weights(n: int, draws: int, seed: int) -> list[FloatArray]:
    """Return random matrices B: columns uniform on the simplex, to three decimals.

    A matrix that is not invertible, or whose merging coefficients at a vertex are above 10 (from
    which on `merging_coefficients` warns), is drawn again.

    Source: Bone Soups, RQ3 (matrices that are not constructed).
    """
    generator = np.random.default_rng(seed)
    found: list[FloatArray] = []
    while len(found) < draws:
        columns = [np.diff([0, *np.sort(np.round(generator.random(n - 1) * 1000)), 1000]) / 1000 for _ in range(n)]
        try:
            weights = check_combination_weights(np.stack(columns, axis=1))
        except WeightsError:
            continue
        if np.abs(np.linalg.inv(weights)).max() <= LARGE_COEFFICIENT:
            found.append(weights)
    return found


def _read_method(spec: str | Mapping[str, Any], n: int) -> list[Method]:
    name, given = next(iter(spec.items())) if isinstance(spec, Mapping) and len(spec) == 1 else (spec, None)
    if not isinstance(name, str) or name not in _READERS:
        raise ConfigurationError(f"Unknown method {name!r}; a method is one of {', '.join(_READERS)}.")
    options = {} if given is None else given
    known = _READERS[name][1]
    if not isinstance(options, Mapping) or (unknown := set(options) - set(known)):
        raise ConfigurationError(
            f"The method {name} takes {_listed(known)}; got {unknown if isinstance(options, Mapping) else options!r}."
        )
    return _READERS[name][0](n, **options)


def _base(n: int) -> list[Method]:
    return [BaseMethod("base", "base")]


def _rewarded_soups(n: int) -> list[Method]:
    return [SoupMethod("Rewarded Soups", "rewarded-soups", np.eye(n))]


def _bone_soup(n: int, dominance: Any = 0.7) -> list[Method]:
    return [
        SoupMethod(f"Bone Soup, β = {beta:g}", f"bone-soup-{beta:g}", circulant_weights(n, beta))
        for beta in _several(dominance)
    ]


def _aba(n: int, dominance: Any = 0.7) -> list[Method]:
    return [
        SoupMethod(f"ABA, β = {beta:g}", f"aba-{beta:g}", circulant_weights(n, beta), averaged=True)
        for beta in _several(dominance)
    ]


def _morlhf(n: int, preferences: Any = None, grid: float = 0.5) -> list[Method]:
    trained_for = simplex_grid(n, grid) if preferences is None else check_preference(preferences, n)
    if trained_for.ndim != 2 or len(trained_for) < 2:
        raise ConfigurationError(f"MORLHF needs at least two preferences; got {preferences!r}.")
    return [OracleMethod("MORLHF", "morlhf", trained_for)]


def _mod(n: int, dominance: float = 1.0, mix_with: str = "preference") -> list[Method]:
    from trl_bonesoup.front.mixture import MIX_WITH

    if mix_with not in MIX_WITH:
        raise ConfigurationError(f"mix_with must be one of {list(MIX_WITH)}; got {mix_with!r}.")
    weights = circulant_weights(n, dominance)
    if dominance == 1.0:
        return [MixtureMethod("MOD", "mod", weights, "preference")]
    symbol = "μ" if mix_with == "preference" else "λ"
    slug = f"mod-{dominance:g}-{mix_with}"
    return [MixtureMethod(f"MOD, β = {dominance:g}, w = {symbol}", slug, weights, mix_with)]


def _random_b(n: int, draws: int = 3, seed: int = 0) -> list[Method]:
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ConfigurationError(f"draws must be a whole number, at least 1; got {draws!r}.")
    drawn = random_weights(n, draws, seed)
    return [SoupMethod(f"random B {k + 1}", f"random-b-{seed}-{k + 1}", weights) for k, weights in enumerate(drawn)]


_READERS: dict[str, tuple[Callable[..., list[Method]], tuple[str, ...]]] = {
    "base": (_base, ()),
    "rewarded-soups": (_rewarded_soups, ()),
    "bone-soup": (_bone_soup, ("dominance",)),
    "aba": (_aba, ("dominance",)),
    "morlhf": (_morlhf, ("preferences", "grid")),
    "mod": (_mod, ("dominance", "mix_with")),
    "random-b": (_random_b, ("draws", "seed")),
}
"""Each method's reader, and the options that it takes."""


def _several(values: Any) -> Sequence[float]:
    return values if isinstance(values, Sequence) else [values]


def _listed(names: Sequence[str]) -> str:
    return f"only the options {', '.join(names)}" if names else "no options"


def _soup(weights: ArrayLike, pool: PolicyRun, device: Any) -> Any:
    from trl_bonesoup.soup.lora import BoneSoup
    from trl_bonesoup.soup.source import SoupSource

    return BoneSoup.from_source(SoupSource(pool.soup(np.asarray(weights)), pool.folder.resolve()), device=device)

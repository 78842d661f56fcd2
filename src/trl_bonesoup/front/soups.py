"""The soups of a grid of preferences as policies: rows of many soups in a batch, or one merged model after another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from trl_bonesoup.errors import SoupError
from trl_bonesoup.front.fingerprint import fingerprint
from trl_bonesoup.front.front import BACKBONE_PREFIX, BASE_LABEL
from trl_bonesoup.front.policies import Answer, Row, answer_with, read_preferences
from trl_bonesoup.front.prompts import EncodedPrompts, Prompts, encode_prompts
from trl_bonesoup.front.settings import EvaluationSettings
from trl_bonesoup.soup.source import ModelRef
from trl_bonesoup.weights import FloatArray, merging_coefficients

if TYPE_CHECKING:
    from trl_bonesoup.manifest import Preference, SoupManifest
    from trl_bonesoup.soup.lora import BoneSoup

__all__ = ["SoupPolicies"]


class SoupPolicies:
    """One soup for each of K preferences, with the base and the backbones as markers.

    Soups of adapters answer rows of many preferences in one batch; soups of full checkpoints are
    merged one after the other.

    Args:
        soup: what to measure; its coefficients are put back afterwards.
        preferences: shape (K, N) such as `simplex_grid(N)`, or K preferences as for `set_preference`.
        extrapolation: α of Equation 9, one number or one per objective.
        include_markers: also answer as the base (λ = 0) and as each backbone (λ a unit vector).
        combination_weights: B to merge with, where it is not the one that the backbones were trained
            on. The identity merges with λ = μ: the paper's ABA.

    Raises:
        ConfigurationError: for preferences that are no list.
        WeightsError: for an invalid preference, extrapolation or B.
        FrontError: if preferences repeat.
    """

    def __init__(
        self,
        soup: BoneSoup,
        preferences: ArrayLike | Sequence[Preference],
        extrapolation: float | Sequence[float] = 0.0,
        *,
        include_markers: bool = True,
        combination_weights: ArrayLike | None = None,
    ) -> None:
        manifest = soup.manifest
        self.soup = soup
        self.objectives = manifest.objective_names
        self.preferences_KN = read_preferences(preferences, manifest.preference)
        self.extrapolation = extrapolation
        self.combination_weights = manifest.weights if combination_weights is None else np.asarray(combination_weights)
        self.coefficients_KN: FloatArray | None = merging_coefficients(
            self.combination_weights, self.preferences_KN, extrapolation
        )
        markers = _marker_coefficients(manifest) if include_markers else {}
        self.markers: tuple[str, ...] = tuple(markers)
        self._coefficients_MN = np.vstack([self.coefficients_KN, *markers.values()])

    @contextlib.contextmanager
    def answering(self, prompts: Prompts, settings: EvaluationSettings) -> Iterator[_SoupAnswering]:
        """Get ready to answer; the soup's preference and mode come back at the end, whatever happens."""
        encoded = encode_prompts(prompts, self.soup.tokenizer)
        with left_as_it_was(self.soup):
            yield _SoupAnswering(self.soup, self._coefficients_MN, encoded, settings)

    def provenance(self) -> dict[str, Any]:
        """Return what was merged, and how."""
        return {
            "method": "soup",
            **soup_provenance(self.soup),
            "merged_with": np.asarray(self.combination_weights, dtype=np.float64).tolist(),
            "extrapolation": np.asarray(self.extrapolation, dtype=np.float64).tolist(),
        }


class _SoupAnswering:
    """Soups of adapters share batches; soups of full checkpoints are merged when their turn comes."""

    def __init__(
        self, soup: BoneSoup, coefficients_MN: FloatArray, prompts: EncodedPrompts, settings: EvaluationSettings
    ) -> None:
        self._soup, self._coefficients_MN = soup, coefficients_MN
        self._prompts, self._settings = prompts, settings
        self._in_rows = soup.source.kind == "adapter"
        self._merged: int | None = None
        models = list(range(len(coefficients_MN)))
        self.groups: Sequence[Sequence[int]] = [models] if self._in_rows else [[model] for model in models]
        self.order: Sequence[int] = prompts.by_length()
        self.texts: Sequence[str] = prompts.texts

    def __call__(self, batch: Sequence[Row], seeds: Sequence[int]) -> list[Answer]:
        rows: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if self._in_rows:
            rows = self._soup.coefficient_rows(self._coefficients_MN[[row.model for row in batch]])
        elif self._merged != batch[0].model:
            self._merged = batch[0].model
            self._soup.set_coefficients(self._coefficients_MN[self._merged])
        with rows:
            return answer_with(self._soup.model, self._prompts, batch, seeds, self._settings)


@contextlib.contextmanager
def left_as_it_was(soup: BoneSoup) -> Iterator[None]:
    """Switch dropout off, and put the soup's preference and mode back whatever happens."""
    training = soup.model.training
    preference, coefficients = soup.preference, np.array(soup.coefficients)
    soup.model.eval()
    try:
        yield
    finally:
        soup.model.train(training)
        if not np.array_equal(soup.coefficients, coefficients):
            soup.set_coefficients(coefficients)
            soup.preference = preference


def soup_provenance(soup: BoneSoup) -> dict[str, Any]:
    """Return what front.json records of a soup, whatever was done with it."""
    manifest = soup.manifest
    return {
        "base_model": manifest.base_model.model_dump(mode="json"),
        "backbones": [backbone.model_dump(mode="json") for backbone in manifest.backbones],
        "combination_weights": manifest.weights.tolist(),
        "fingerprints": _fingerprints(soup),
        "device": str(soup.model.device),
        "dtype": str(soup.model.dtype).removeprefix("torch."),
    }


def _marker_coefficients(manifest: SoupManifest) -> dict[str, FloatArray]:
    n = len(manifest.objective_names)
    backbones = {f"{BACKBONE_PREFIX}{name}": np.eye(n)[j] for j, name in enumerate(manifest.objective_names)}
    return {BASE_LABEL: np.zeros(n), **backbones}


def _fingerprints(soup: BoneSoup) -> dict[str, Any]:
    try:
        base = fingerprint(soup.source.base_model())
    except SoupError:  # full checkpoints may lie where their base does not
        base = None
    return {"base_model": base, "backbones": [fingerprint(ModelRef(str(f))) for f in soup.source.backbones()]}

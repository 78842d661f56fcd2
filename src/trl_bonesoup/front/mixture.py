"""MOD: policies that mix the backbones' next-token distributions while decoding, and merge nothing.

At every step log π = Σ_j w_j log π_j + constant. Each answer takes one row for each of the N backbones in
the batch; the rows get the same mixed scores and the same noise, so they choose the same token and their
caches stay in step.

Source: Shi et al. (2024), "Decoding-Time Language Model Alignment with Multiple Objectives", for policies that were
trained with a (reverse) KL penalty.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from transformers import LogitsProcessor

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.front.policies import Answer, Row, answer_with, read_preferences
from trl_bonesoup.front.prompts import EncodedPrompts, Prompts, encode_prompts
from trl_bonesoup.front.settings import EvaluationSettings
from trl_bonesoup.front.soups import left_as_it_was, soup_provenance
from trl_bonesoup.weights import FloatArray

if TYPE_CHECKING:
    from trl_bonesoup.manifest import Preference
    from trl_bonesoup.soup.lora import BoneSoup

MIX_WITH = ("preference", "coefficients")

__all__ = ["LogitMixture", "MixturePolicies"]


class LogitMixture(LogitsProcessor):
    """Gives each group of N neighbouring rows the scores Σ_j w_j log π_j.

    The logarithms of the softmax's denominators are left out: they add the same number to every token.
    So a weight of 1 among zeros gives the scores of that row unchanged, to the last bit.

    Args:
        weights_BN: w of each group; negative ones are allowed.
    """

    def __init__(self, weights_BN: FloatArray) -> None:
        self._weights_BN1 = torch.tensor(weights_BN, dtype=torch.float32)[..., None]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return scores (B·N, vocabulary) in float32, equal within each group."""
        groups, n, _ = self._weights_BN1.shape
        if len(scores) != groups * n:
            raise ConfigurationError(
                f"The mixture has weights for {groups} groups of {n} rows but the batch has {len(scores)} rows; use "
                "one beam and one answer per row."
            )
        weights_BN1 = self._weights_BN1.to(scores.device)
        parts_BNV = weights_BN1 * scores.float().view(groups, n, -1)
        # 0 · -inf is no number; where a backbone has no say, it cannot rule a token out.
        mixed_BV = torch.where(weights_BN1 == 0.0, 0.0, parts_BNV).sum(dim=1)
        return mixed_BV.repeat_interleave(n, dim=0)  # type: ignore[return-value]


class MixturePolicies:
    """The backbones of a soup of adapters, mixed by their logits for each of K preferences.

    With w = μ this is MOD as published, for backbones that were each trained on one reward. Backbones
    that were trained on the columns of B are optimal for Σ_i B_ij r_i, and then the mixture that is
    optimal for μ has w = λ = B⁻¹μ. A batch of answers costs N rows for each of them.

    Args:
        soup: whose backbones to mix; its coefficients are put back afterwards.
        preferences: shape (K, N), or K preferences as for `set_preference`.
        mix_with: w is the "preference" μ or the merging "coefficients" λ.

    Raises:
        ConfigurationError: for backbones that are full checkpoints, or another `mix_with`.
        WeightsError: for an invalid preference.
        FrontError: if preferences repeat.
    """

    coefficients_KN: FloatArray | None = None
    markers: tuple[str, ...] = ()

    def __init__(
        self, soup: BoneSoup, preferences: ArrayLike | Sequence[Preference], *, mix_with: str = "preference"
    ) -> None:
        if soup.source.kind != "adapter":
            raise ConfigurationError(
                f"The backbones of {soup.folder} are full checkpoints, and mixing their logits would take all of them "
                "in memory at once. Only backbones that are adapters of one model can be mixed."
            )
        if mix_with not in MIX_WITH:
            raise ConfigurationError(f"mix_with must be one of {list(MIX_WITH)}; got {mix_with!r}.")
        self.soup = soup
        self.mix_with = mix_with
        self.objectives: tuple[str, ...] = soup.manifest.objective_names
        self.preferences_KN: FloatArray = read_preferences(preferences, soup.manifest.preference)
        self.weights_KN = (
            self.preferences_KN if mix_with == "preference" else soup.manifest.coefficients(self.preferences_KN)
        )

    @contextlib.contextmanager
    def answering(self, prompts: Prompts, settings: EvaluationSettings) -> Iterator[_MixtureAnswering]:
        """Get ready to answer; the soup's preference and mode come back at the end, whatever happens."""
        encoded = encode_prompts(prompts, self.soup.tokenizer)
        with left_as_it_was(self.soup):
            yield _MixtureAnswering(self.soup, self.weights_KN, encoded, settings)

    def provenance(self) -> dict[str, Any]:
        """Return what was mixed, and with which weights."""
        return {
            "method": "logit mixture",
            **soup_provenance(self.soup),
            "mixed_with": self.mix_with,
            "mixture_weights": self.weights_KN.tolist(),
        }


class _MixtureAnswering:
    def __init__(
        self, soup: BoneSoup, weights_KN: FloatArray, prompts: EncodedPrompts, settings: EvaluationSettings
    ) -> None:
        self._soup, self._weights_KN = soup, weights_KN
        self._prompts, self._settings = prompts, settings
        self.groups: Sequence[Sequence[int]] = [range(len(weights_KN))]
        self.order: Sequence[int] = prompts.by_length()
        self.texts: Sequence[str] = prompts.texts

    def __call__(self, batch: Sequence[Row], seeds: Sequence[int]) -> list[Answer]:
        n = self._weights_KN.shape[1]
        backbones_BN = np.tile(np.eye(n), (len(batch), 1))
        mixture = LogitMixture(self._weights_KN[[row.model for row in batch]])
        with self._soup.coefficient_rows(backbones_BN):
            answers = answer_with(
                self._soup.model,
                self._prompts,
                [row for row in batch for _ in range(n)],
                [seed for seed in seeds for _ in range(n)],
                self._settings,
                [mixture],
            )
        return answers[::n]

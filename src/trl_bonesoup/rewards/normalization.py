"""Bringing the scores of different objectives to one scale before the combination weights mix them.

Axis letters: B completion, N objective. A missing score is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trl_bonesoup.manifest import ScoreStatistics
from trl_bonesoup.weights import FloatArray

_EQUAL = 1e-8
"""Standard deviation, relative to the mean, below which scores in float32 are equal."""


class ScoreNormalizer:
    """Subtracts a mean and divides by a standard deviation, per objective.

    Args:
        num_objectives: N.
        mode: "running" learns both from every batch it is shown, "fixed" uses `mean` and `std`,
            "none" leaves scores as they are.
        mean, std: for "fixed", N numbers each, in the objective's own units; std > 0.
        clip: bound on the absolute value of a normalised score, or `None`.

    The running variance follows Chan et al. 1979 (pairwise update), so that batches of any size
    give what one pass over all scores would.
    """

    def __init__(
        self,
        num_objectives: int,
        mode: str = "running",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        clip: float | None = None,
    ):
        self.mode = mode
        self.clip = clip
        self.count_N = torch.zeros(num_objectives, dtype=torch.float64)
        self.mean_N = torch.zeros(num_objectives, dtype=torch.float64)
        self.squares_N = torch.zeros(num_objectives, dtype=torch.float64)
        self._fixed_std_N: Tensor | None = None
        if mode == "fixed":
            assert mean is not None and std is not None
            self.mean_N = torch.tensor(mean, dtype=torch.float64)
            self._fixed_std_N = torch.tensor(std, dtype=torch.float64)

    @property
    def std_N(self) -> Tensor:
        """Standard deviations in use, (N,). 1 where fewer than two scores, or only equal ones, were seen.

        Equal means that they differ by less than float32, in which trainers keep scores, can tell from
        rounding: what a sum leaves of equal numbers is no scale to divide by.
        """
        if self.mode == "none":
            return torch.ones_like(self.mean_N)
        if self._fixed_std_N is not None:
            return self._fixed_std_N
        std_N = (self.squares_N / self.count_N.clamp(min=1.0)).sqrt()
        return torch.where(std_N > _EQUAL * self.mean_N.abs(), std_N, torch.ones_like(std_N))

    def update(self, scores_BN: Tensor) -> None:
        """Learn from a batch of raw scores; does nothing unless the mode is "running"."""
        if self.mode != "running":
            return
        scores_BN = scores_BN.detach().to("cpu", torch.float64)
        present_BN = ~scores_BN.isnan()
        count_N = present_BN.sum(dim=0).to(torch.float64)
        safe_BN = scores_BN.nan_to_num(nan=0.0)
        mean_N = safe_BN.sum(dim=0) / count_N.clamp(min=1.0)
        squares_N = ((safe_BN - mean_N).square() * present_BN).sum(dim=0)
        total_N = self.count_N + count_N
        shift_N = mean_N - self.mean_N
        share_N = count_N / total_N.clamp(min=1.0)
        self.mean_N = self.mean_N + shift_N * share_N
        self.squares_N = self.squares_N + squares_N + shift_N.square() * self.count_N * share_N
        self.count_N = total_N

    def __call__(self, scores_BN: Tensor) -> Tensor:
        """Return normalised scores, (B, N); NaN stays NaN."""
        if self.mode != "none":
            scores_BN = (scores_BN - self.mean_N.to(scores_BN)) / self.std_N.to(scores_BN)
        return scores_BN if self.clip is None else scores_BN.clamp(-self.clip, self.clip)

    def state_dict(self) -> dict[str, list[float]]:
        """Return everything that `load_state_dict` needs, as plain numbers."""
        return {
            "count": self.count_N.tolist(),
            "mean": self.mean_N.tolist(),
            "squares": self.squares_N.tolist(),
        }

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Continue from a saved state."""
        self.count_N = torch.tensor(state["count"], dtype=torch.float64)
        self.mean_N = torch.tensor(state["mean"], dtype=torch.float64)
        self.squares_N = torch.tensor(state["squares"], dtype=torch.float64)


def score_statistics(scores: FloatArray) -> list[ScoreStatistics]:
    """Return mean and standard deviation (1 if none) of each objective over samples (K, N), NaN left out."""
    normalizer = ScoreNormalizer(scores.shape[1])
    normalizer.update(torch.from_numpy(scores))
    return [
        ScoreStatistics(mean=mean, std=std)
        for mean, std in zip(normalizer.mean_N.tolist(), normalizer.std_N.tolist(), strict=True)
    ]


def score_correlation(scores: FloatArray) -> list[list[float]]:
    """Return Pearson's correlation between objectives, (N, N), over the samples that have every score.

    It is 0 with an objective whose scores do not differ.
    """
    complete = scores[~np.isnan(scores).any(axis=1)]
    with np.errstate(invalid="ignore", divide="ignore"):
        matrix = np.atleast_2d(np.corrcoef(complete, rowvar=False)) if len(complete) > 1 else np.zeros((1, 1))
    if matrix.shape != (scores.shape[1],) * 2:
        matrix = np.zeros((scores.shape[1],) * 2)
    matrix = np.nan_to_num(matrix)
    np.fill_diagonal(matrix, 1.0)
    return matrix.tolist()


def objective_weights(scores_BN: Tensor, column_N: Tensor) -> Tensor:
    """Return what each objective weighs in each completion, (B, N).

    An objective without a score (NaN) weighs 0 and the other weights are scaled up to the same sum.
    Where none is left, all are 0.

    Args:
        scores_BN: scores, raw or normalised.
        column_N: column j of the combination weights B, (N,).

    Source: Bone Soups, Section 3.2 (the backbone rewards).
    """
    weights_BN = column_N.to(scores_BN) * ~scores_BN.isnan()
    available_B1 = weights_BN.sum(dim=1, keepdim=True)
    return torch.where(available_B1 > 0, weights_BN * column_N.to(scores_BN).sum() / available_B1, 0.0)


def combine_scores(scores_BN: Tensor, weights_BN: Tensor) -> Tensor:
    """Return the weighted score of each completion, (B,): Σ_i w_i s_i; NaN where no objective has a weight."""
    combined_B = (scores_BN.nan_to_num(nan=0.0) * weights_BN).sum(dim=1)
    return torch.where(weights_BN.sum(dim=1) > 0, combined_B, torch.nan)

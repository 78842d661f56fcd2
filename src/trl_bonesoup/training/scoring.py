"""From every objective's raw scores to the one weighted score that a backbone is trained on.

Axis letters: B completion, T completion token, N objective. A missing score is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trl_bonesoup.errors import RewardError
from trl_bonesoup.manifest import ScoreStatistics
from trl_bonesoup.rewards.dense import DenseScore
from trl_bonesoup.rewards.normalization import ScoreNormalizer, combine_scores, objective_weights
from trl_bonesoup.rewards.protocol import checked_reward
from trl_bonesoup.training.config import MultiRewardPPOConfig
from trl_bonesoup.training.segments import segment_rewards
from trl_bonesoup.weights import FloatArray


class Scoring:
    """Normalises and weighs the scores of one rollout after another.

    Args:
        names: the objectives.
        column: column j of the combination weights, (N,).
        args: how scores are normalised and clipped.
    """

    def __init__(self, names: Sequence[str], column: FloatArray, args: MultiRewardPPOConfig):
        self.names = tuple(names)
        self.column_N = torch.tensor(column, dtype=torch.float32)
        self.timeout = args.reward_timeout
        self.normalizer = ScoreNormalizer(
            len(names), args.score_normalization, args.score_mean, args.score_std, args.score_clip
        )
        self._raw_BN: Tensor | None = None
        self._dense: dict[int, list[float | None]] = {}

    def checked(self, reward_funcs: Sequence[Any]) -> list[Any]:
        """Return the reward functions, callables with their scores checked; models are left to the trainer."""
        return [
            checked_reward(func, name, partial(self._remember, i), self.timeout)
            if callable(func) and not isinstance(func, nn.Module)
            else func
            for i, (func, name) in enumerate(zip(reward_funcs, self.names, strict=True))
        ]

    def fix(self, statistics: Sequence[ScoreStatistics]) -> None:
        """Normalise by these statistics from now on, instead of running ones."""
        mean, std = [entry.mean for entry in statistics], [entry.std for entry in statistics]
        self.normalizer = ScoreNormalizer(len(statistics), "fixed", mean, std, self.normalizer.clip)

    def forget(self) -> None:
        """Make room for the scores of a new rollout."""
        self._raw_BN = None
        self._dense = {}

    def record(self, scores_BN: Tensor, reward_funcs: Sequence[Any]) -> None:
        """Keep the raw scores of a rollout, of all processes.

        Raises:
            RewardError: where a reward model returned what is not a finite number. (Callables were
                checked when they returned, since their NaN here means that they had no score.)
        """
        for i, (func, name) in enumerate(zip(reward_funcs, self.names, strict=True)):
            bad_B = ~scores_BN[:, i].isfinite()
            if isinstance(func, nn.Module) and bad_B.any():
                row = int(bad_B.nonzero()[0])
                raise RewardError(f"Reward model '{name}' returned {scores_BN[row, i].item()} for completion {row}.")
        self._raw_BN = scores_BN

    def weigh(self, *, learn: bool) -> tuple[Tensor, Tensor]:
        """Return the weighted scores (B,), NaN where no objective applies, and the normalised ones (B, N).

        Args:
            learn: whether running statistics take in these scores first.
        """
        assert self._raw_BN is not None
        if learn:
            self.normalizer.update(self._raw_BN)
        normalized_BN = self.normalizer(self._raw_BN)
        return combine_scores(normalized_BN, objective_weights(normalized_BN, self.column_N)), normalized_BN

    def missing_N(self) -> Tensor:
        """Return the share of completions that each objective did not score, (N,)."""
        assert self._raw_BN is not None
        return self._raw_BN.isnan().float().mean(dim=0)

    @property
    def is_dense(self) -> bool:
        """Whether an objective scored parts of this process's completions."""
        return bool(self._dense)

    def parts(
        self, rows: slice, token_ids: Sequence[Sequence[int]], decode: Callable[[Sequence[int]], str], width: int
    ) -> Tensor:
        """Return what segments of this process's completions earned, in units of the weighted score, (B, width).

        Args:
            rows: this process's rows among all.
            token_ids: generated tokens of each completion.
            decode: turns them into the text that the reward functions saw.
            width: T.
        """
        assert self._raw_BN is not None
        weights_BN = objective_weights(self._raw_BN, self.column_N)[rows].cpu()
        total_BT = torch.zeros(len(token_ids), width)
        for i, scores in self._dense.items():
            parts_BT = segment_rewards(scores, token_ids, decode, width) / self.normalizer.std_N[i].float()
            total_BT = total_BT + weights_BN[:, i : i + 1] * parts_BT
        return total_BT

    def _remember(self, i: int, scores: list[float | None]) -> None:
        if any(isinstance(score, DenseScore) for score in scores):
            self._dense[i] = scores

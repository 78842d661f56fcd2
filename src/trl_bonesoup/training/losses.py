"""PPO's clipped losses per token, and the controller of the KL coefficient. Axis letters: B sequence, T token."""

from __future__ import annotations

import torch
from torch import Tensor


def policy_loss(
    logps_BT: Tensor, old_logps_BT: Tensor, advantages_BT: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """Return the clipped surrogate loss per token (B, T) and where the clip was active (B, T, bool).

    With ratio ρ = exp(logp - old logp): -min(ρ A, clip(ρ, 1-clip_low, 1+clip_high) A).

    Source: Schulman et al. 2017, "Proximal policy optimization algorithms", Equation 7.
    """
    ratio_BT = torch.exp(logps_BT - old_logps_BT)
    clipped_BT = ratio_BT.clamp(1.0 - clip_low, 1.0 + clip_high)
    unclipped_loss_BT = -ratio_BT * advantages_BT
    clipped_loss_BT = -clipped_BT * advantages_BT
    return torch.max(unclipped_loss_BT, clipped_loss_BT), clipped_loss_BT > unclipped_loss_BT


def value_loss(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, clip: float | None
) -> tuple[Tensor, Tensor]:
    """Return half the squared error of the critic per token (B, T) and where the clip was active (B, T, bool).

    The new value may leave the old one by at most `clip`; the larger of the clipped and the
    unclipped error counts. `clip=None` is the plain squared error.

    Source: the PPO2 implementation of OpenAI baselines, described in Huang et al. 2022, "The 37
    implementation details of PPO", detail 9.
    """
    error_BT = (values_BT - returns_BT).square()
    if clip is None:
        return 0.5 * error_BT, torch.zeros_like(error_BT, dtype=torch.bool)
    moved_BT = values_BT - old_values_BT
    clipped_values_BT = torch.where(moved_BT.abs() > clip, old_values_BT + moved_BT.clamp(-clip, clip), values_BT)
    clipped_error_BT = (clipped_values_BT - returns_BT).square()
    return 0.5 * torch.max(error_BT, clipped_error_BT), clipped_error_BT > error_BT


def approximate_kl(logps_BT: Tensor, old_logps_BT: Tensor) -> Tensor:
    """Return an estimate per token of KL(old ‖ new), in nats: r - 1 - log r with r = exp(logp - old logp), (B, T).

    It is never negative and unbiased on tokens that the old policy sampled.

    Source: Schulman 2020, "Approximating KL divergence" (the estimator k3).
    """
    difference_BT = logps_BT - old_logps_BT
    return torch.exp(difference_BT) - 1.0 - difference_BT


class KLController:
    """The coefficient of the KL penalty: constant, or steered towards a target KL.

    Args:
        coef: (initial) coefficient.
        target: KL per sequence, in nats, to steer to; `None` keeps the coefficient constant.
        horizon: number of rollouts over which a deviation is corrected.

    Source: Ziegler et al. 2019, "Fine-tuning language models from human preferences", Section 2.2.
    """

    def __init__(self, coef: float, target: float | None = None, horizon: int = 10_000):
        self.coef = coef
        self.target = target
        self.horizon = horizon

    def update(self, sequence_kl: float, num_rollouts: int) -> None:
        """Move the coefficient after a batch of `num_rollouts` sequences with this mean KL (nats per sequence)."""
        if self.target is None:
            return
        error = min(max(sequence_kl / self.target - 1.0, -0.2), 0.2)
        self.coef *= 1.0 + error * num_rollouts / self.horizon

"""Generalised advantage estimation and the statistics PPO takes over completion tokens.

Axis letters: B sequence, T completion token. A mask holds 1 for the tokens that the policy
generated, and 0 for padding or for tokens that the environment inserted.
"""

from __future__ import annotations

import torch
from torch import Tensor


def generalized_advantage_estimation(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Return advantages and returns, both (B, T) and zero where the mask is zero.

    δ_t = r_t + γ V_{t+1} - V_t and A_t = δ_t + γ λ A_{t+1}, where t+1 is the next *generated*
    token: masked tokens are stepped over. After the last one, V and A are 0. The return, which the
    critic learns, is A_t + V_t.

    Source: Schulman et al. 2016, "High-dimensional continuous control using generalized advantage
    estimation", Equation 16.
    """
    mask_BT = mask_BT.to(values_BT.dtype)
    advantages_BT = torch.zeros_like(values_BT)
    next_value_B = torch.zeros_like(values_BT[:, 0])
    next_advantage_B = torch.zeros_like(next_value_B)
    for t in reversed(range(values_BT.shape[1])):
        generated_B = mask_BT[:, t]
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        advantage_B = delta_B + gamma * lam * next_advantage_B
        advantages_BT[:, t] = advantage_B * generated_B
        next_value_B = torch.where(generated_B > 0, values_BT[:, t], next_value_B)
        next_advantage_B = torch.where(generated_B > 0, advantage_B, next_advantage_B)
    return advantages_BT, (advantages_BT + values_BT) * mask_BT


def token_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, kl_coef: float) -> Tensor:
    """Return PPO's reward per token, (B, T): -kl_coef · KL at each one, plus the score at the last.

    Args:
        scores_B: weighted, normalised score of each completion.
        kl_BT: per-token estimate of the KL divergence from the reference, in nats.
        mask_BT: generated tokens; a sequence without any gets no reward.
        kl_coef: weight of the KL penalty.

    Source: Stiennon et al. 2020 and the paper's Appendix on PPO settings.
    """
    generated_BT = mask_BT.to(kl_BT.dtype)
    rewards_BT = -kl_coef * kl_BT * generated_BT
    length = mask_BT.shape[1]
    last_B = length - 1 - mask_BT.flip(1).to(torch.int64).argmax(dim=1)
    scored_B = scores_B.to(kl_BT.dtype) * (mask_BT.sum(dim=1) > 0)
    return rewards_BT.scatter_add(1, last_B.unsqueeze(1), scored_B.unsqueeze(1))


def masked_moments(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return [count, sum, sum of squares] over generated tokens, (3,), ready to be summed over processes."""
    mask_BT = mask_BT.to(values_BT.dtype)
    return torch.stack([mask_BT.sum(), (values_BT * mask_BT).sum(), (values_BT.square() * mask_BT).sum()])


def whiten(values_BT: Tensor, mask_BT: Tensor, moments: Tensor) -> Tensor:
    """Shift and scale to mean 0 and variance 1 over generated tokens; masked tokens become 0.

    Args:
        values_BT: any shape (B, T).
        mask_BT: generated tokens.
        moments: `masked_moments` of the whole batch, summed over processes.
    """
    count, total, squares = moments
    mean = total / count.clamp(min=1.0)
    variance = (squares / count.clamp(min=1.0) - mean.square()).clamp(min=0.0)
    return (values_BT - mean) * torch.rsqrt(variance + 1e-8) * mask_BT.to(values_BT.dtype)


def explained_variance(returns_BT: Tensor, values_BT: Tensor, mask_BT: Tensor) -> float:
    """Return 1 - Var(returns - values) / Var(returns) over generated tokens: 1 is a perfect critic, 0 a constant."""
    generated = mask_BT.bool()
    returns, values = returns_BT[generated], values_BT[generated]
    if returns.numel() < 2:
        return float("nan")
    variance = returns.var()
    return float("nan") if variance == 0 else float(1.0 - (returns - values).var() / variance)

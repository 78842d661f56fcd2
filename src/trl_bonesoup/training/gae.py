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


def token_rewards(
    scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, kl_coef: float, parts_BT: Tensor | None = None
) -> Tensor:
    """Return PPO's reward per token, (B, T): -kl_coef · KL at each one, plus the score.

    The score is given at the last token, except for the parts of it that `parts_BT` has earlier:
    parts say when a score is paid, never how much.

    Args:
        scores_B: weighted, normalised score of each completion.
        kl_BT: per-token estimate of the KL divergence from the reference, in nats.
        mask_BT: generated tokens; a sequence without any gets no reward.
        kl_coef: weight of the KL penalty.
        parts_BT: what segments that end at a token earned, in units of `scores_B`. A part at a token
            that was not generated is paid with the rest, at the end.

    Source: Stiennon et al. 2020 and the paper's Appendix on PPO settings; for the parts Wu et al.
    2023, "Fine-grained human feedback gives better rewards for language model training".
    """
    generated_BT = mask_BT.to(kl_BT.dtype)
    rewards_BT = -kl_coef * kl_BT * generated_BT
    rest_B = scores_B.to(kl_BT.dtype)
    if parts_BT is not None:
        parts_BT = parts_BT.to(kl_BT.dtype) * generated_BT
        rewards_BT = rewards_BT + parts_BT
        rest_B = rest_B - parts_BT.sum(dim=1)
    last_B = mask_BT.shape[1] - 1 - mask_BT.flip(1).to(torch.int64).argmax(dim=1)
    rest_B = rest_B * (mask_BT.sum(dim=1) > 0)
    return rewards_BT.scatter_add(1, last_B.unsqueeze(1), rest_B.unsqueeze(1))


def masked_moments(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return [count, sum, sum of squares] over generated tokens, (3,), ready to be summed over processes."""
    mask_BT = mask_BT.to(values_BT.dtype)
    return torch.stack([mask_BT.sum(), (values_BT * mask_BT).sum(), (values_BT.square() * mask_BT).sum()])


def whiten(values_BT: Tensor, mask_BT: Tensor, moments: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Scale to variance 1 over generated tokens, and shift to mean 0 or keep the mean; masked tokens become 0.

    Args:
        values_BT: any shape (B, T).
        mask_BT: generated tokens.
        moments: `masked_moments` of the whole batch, summed over processes.
        shift_mean: whether the mean becomes 0, as for advantages; rewards keep theirs, since their
            sign says what is good.

    Source: Ziegler et al. 2019, "Fine-tuning language models from human preferences" (its code).
    """
    count, total, squares = moments
    mean = total / count.clamp(min=1.0)
    variance = (squares / count.clamp(min=1.0) - mean.square()).clamp(min=0.0)
    whitened_BT = (values_BT - mean) * torch.rsqrt(variance + 1e-8) + (0.0 if shift_mean else mean)
    return whitened_BT * mask_BT.to(values_BT.dtype)


def explained_variance(returns_BT: Tensor, values_BT: Tensor, mask_BT: Tensor) -> float:
    """Return 1 - Var(returns - values) / Var(returns) over generated tokens: 1 is a perfect critic, 0 a constant."""
    generated = mask_BT.bool()
    returns, values = returns_BT[generated], values_BT[generated]
    if returns.numel() < 2:
        return float("nan")
    variance = returns.var()
    return float("nan") if variance == 0 else float(1.0 - (returns - values).var() / variance)

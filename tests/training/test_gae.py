"""Advantages, token rewards and their statistics against slow loops and numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trl_bonesoup.training.gae import (
    explained_variance,
    generalized_advantage_estimation,
    masked_moments,
    token_rewards,
    whiten,
)


def slow_advantages(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """The defining sum Σ_l (γλ)^l δ_{t+l} over one sequence without masked tokens."""
    deltas = [r + gamma * v1 - v0 for r, v0, v1 in zip(rewards, values, [*values[1:], 0.0], strict=False)]
    return [math.fsum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


@given(seed=st.integers(0, 10_000), gamma=st.floats(0, 1), lam=st.floats(0, 1))
def test_gae_equals_the_defining_sum_on_the_generated_tokens(seed: int, gamma: float, lam: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 7, generator=generator) < 0.6
    advantages, returns = generalized_advantage_estimation(rewards, values, mask, gamma, lam)
    for b in range(3):
        kept = mask[b]
        slow = slow_advantages(rewards[b, kept].tolist(), values[b, kept].tolist(), gamma, lam)
        expected = torch.tensor(slow, dtype=torch.float64)
        torch.testing.assert_close(advantages[b, kept], expected)
        torch.testing.assert_close(returns[b, kept], expected + values[b, kept])
        assert (advantages[b, ~kept] == 0).all()
        assert (returns[b, ~kept] == 0).all()


def test_gae_by_hand() -> None:
    rewards = torch.tensor([[0.0, 1.0, 99.0]])
    values = torch.tensor([[0.5, 0.25, 7.0]])
    mask = torch.tensor([[1, 1, 0]])
    advantages, returns = generalized_advantage_estimation(rewards, values, mask, gamma=0.5, lam=0.5)
    # δ_1 = 1 - .25 = .75;  δ_0 = .5·.25 - .5 = -.375;  A_0 = -.375 + .25·.75 = -.1875
    torch.testing.assert_close(advantages, torch.tensor([[-0.1875, 0.75, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[0.3125, 1.0, 0.0]]))


def test_token_rewards_put_the_score_on_the_last_generated_token() -> None:
    kl = torch.tensor([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]])
    rewards = token_rewards(torch.tensor([1.0, -2.0, 5.0]), kl, mask, kl_coef=0.5)
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, 0.9, 0.0], [-0.05, -0.1, -2.15], [0.0, 0.0, 0.0]]))


def test_parts_of_a_score_are_paid_where_they_were_earned() -> None:
    kl = torch.tensor([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 1]])
    parts = torch.tensor([[0.5, 0.0, 0.25], [0.5, 4.0, 0.0]])
    rewards = token_rewards(torch.tensor([1.0, -2.0]), kl, mask, kl_coef=1.0, parts_BT=parts)
    # first: .5 - .1, -.2, .25 + (1 - .75) - .3; second: the 4 is not on a generated token: -2 - .5 at the end
    torch.testing.assert_close(rewards, torch.tensor([[0.4, -0.2, 0.2], [0.4, 0.0, -2.8]]))


def test_whitening_uses_generated_tokens_only() -> None:
    values = torch.tensor([[1.0, 3.0, 100.0], [5.0, 7.0, -100.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
    whitened = whiten(values, mask, masked_moments(values, mask))
    expected = torch.tensor([-3.0, -1.0, 1.0, 3.0]) / math.sqrt(5.0)  # mean 4, variance (9+1+1+9)/4
    torch.testing.assert_close(whitened[mask.bool()], expected)
    assert (whitened[:, 2] == 0).all()


def test_whitened_rewards_keep_their_mean() -> None:
    values = torch.tensor([[1.0, 3.0, 100.0], [5.0, 7.0, -100.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
    whitened = whiten(values, mask, masked_moments(values, mask), shift_mean=False)
    expected = 4.0 + torch.tensor([-3.0, -1.0, 1.0, 3.0]) / math.sqrt(5.0)
    torch.testing.assert_close(whitened[mask.bool()], expected)
    assert (whitened[:, 2] == 0).all()


def test_moments_add_up_over_parts() -> None:
    values, mask = torch.randn(4, 5), torch.rand(4, 5) < 0.5
    whole = masked_moments(values, mask)
    torch.testing.assert_close(whole, masked_moments(values[:1], mask[:1]) + masked_moments(values[1:], mask[1:]))


def test_explained_variance() -> None:
    returns = torch.tensor([[1.0, 2.0, 3.0, 50.0]])
    mask = torch.tensor([[1, 1, 1, 0]])
    assert explained_variance(returns, returns.clone(), mask) == 1.0
    assert explained_variance(returns, torch.full_like(returns, 2.0), mask) == 0.0
    # residuals 1, 0, -1 reversed: returns - values = -2, 0, 2 with variance 4 against 1
    assert explained_variance(returns, returns.flip(1)[:, [1, 2, 3, 0]], mask) == pytest.approx(-3.0)
    assert math.isnan(explained_variance(torch.ones(1, 4), returns, mask))

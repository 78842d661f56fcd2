"""PPO's losses and the KL controller against numbers worked out by hand."""

import math

import pytest
import torch

from trl_bonesoup.training.losses import KLController, approximate_kl, policy_loss, value_loss


def test_policy_loss_clips_only_what_would_gain() -> None:
    ratio = torch.tensor([[1.5, 0.5, 1.5, 0.5, 1.1]])
    advantages = torch.tensor([[2.0, 2.0, -2.0, -2.0, 2.0]])
    loss, clipped = policy_loss(ratio.log(), torch.zeros(1, 5), advantages, clip_low=0.2, clip_high=0.3)
    # gains: 1.5·2 is cut to 1.3·2; -.5·2 is raised to -.8·2; losses are never cut
    torch.testing.assert_close(loss, torch.tensor([[-2.6, -1.0, 3.0, 1.6, -2.2]]))
    assert clipped.tolist() == [[True, False, False, True, False]]


def test_policy_gradient_at_the_old_policy_is_minus_the_advantage() -> None:
    logps = torch.zeros(1, 3, requires_grad=True)
    advantages = torch.tensor([[1.0, -2.0, 0.5]])
    policy_loss(logps, torch.zeros(1, 3), advantages, 0.2, 0.2)[0].sum().backward()
    torch.testing.assert_close(logps.grad, -advantages)


def test_the_kl_estimate_averages_to_the_divergence() -> None:
    old, new = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    divergence = 0.5 * math.log(2) - 0.25 * math.log(2)  # Σ old · log(old / new), by hand
    estimate = approximate_kl(new.log(), old.log())
    assert (estimate >= 0).all()
    assert (old * estimate).sum().item() == pytest.approx(divergence)


def test_value_loss_takes_the_larger_error() -> None:
    values, old, returns = torch.tensor([[1.0, 0.1, -1.0]]), torch.zeros(1, 3), torch.tensor([[2.0, 2.0, 2.0]])
    loss, clipped = value_loss(values, old, returns, clip=0.2)
    # clipped values .2, .1, -.2: errors 1.8² > 1², 1.9² = 1.9², 2.2² < 3²
    torch.testing.assert_close(loss, 0.5 * torch.tensor([[3.24, 3.61, 9.0]]))
    assert clipped.tolist() == [[True, False, False]]
    torch.testing.assert_close(value_loss(values, old, returns, clip=None)[0], 0.5 * torch.tensor([[1.0, 3.61, 9.0]]))


def test_adaptive_kl_moves_towards_the_target_within_its_bounds() -> None:
    controller = KLController(0.2, target=3.0, horizon=10_000)
    controller.update(sequence_kl=3.3, num_rollouts=64)  # 10 % above: 1 + .1·64/10000
    assert controller.coef == pytest.approx(0.2 * 1.00064)
    controller.coef = 0.2
    controller.update(sequence_kl=30.0, num_rollouts=64)  # clipped to 20 %
    assert controller.coef == pytest.approx(0.2 * 1.00128)
    controller.coef = 0.2
    controller.update(sequence_kl=0.0, num_rollouts=64)
    assert controller.coef == pytest.approx(0.2 * 0.99872)


def test_fixed_kl_stays() -> None:
    controller = KLController(0.2)
    controller.update(sequence_kl=30.0, num_rollouts=64)
    assert controller.coef == 0.2


def test_a_value_inside_the_range_is_not_called_clipped() -> None:
    """old + (value - old) is not value in float32, which is not clipping."""
    generator = torch.Generator().manual_seed(0)
    old, values, returns = (2 * torch.rand(3, 1, 1000, generator=generator) - 1) * torch.tensor([0.04, 0.15, 1.0])[
        :, None, None
    ]
    assert not torch.equal(old + (values - old), values)
    loss, clipped = value_loss(values, old, returns, clip=0.2)
    assert not clipped.any()
    assert torch.equal(loss, 0.5 * (values - returns).square())

"""Log-probabilities and entropies of kept logits, against float64 and autograd's own derivative."""

import pytest
import torch

from trl_bonesoup.training.head import kept_logps


def test_values_and_gradient_equal_the_plain_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=generator)
    head = torch.randn(50, 5, generator=generator) * 3
    targets = torch.randint(0, 50, (7,), generator=generator)
    outer = torch.randn(7, generator=generator)

    exact = hidden.double().requires_grad_()
    logps = (exact @ head.double().t()).log_softmax(-1)
    (logps.gather(-1, targets.unsqueeze(-1)).squeeze(-1) * outer.double()).sum().backward()

    given = hidden.clone().requires_grad_()
    kept, entropies = kept_logps(given @ head.t(), targets)
    (kept * outer).sum().backward()
    torch.testing.assert_close(kept.double(), logps.gather(-1, targets.unsqueeze(-1)).squeeze(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropies.double(), -(logps.exp() * logps).sum(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(given.grad.double(), exact.grad, atol=1e-5, rtol=1e-5)
    assert not entropies.requires_grad


def test_by_hand_and_at_the_extremes() -> None:
    logps, entropies = kept_logps(torch.tensor([[0.0, 0.0], [1e4, -1e4], [-1e4, -1e4]]), torch.tensor([0, 0, 1]))
    half = torch.tensor(0.5).log()
    torch.testing.assert_close(logps, torch.stack([half, torch.tensor(0.0), half]))
    torch.testing.assert_close(entropies, torch.stack([-half, torch.tensor(0.0), -half]))


def test_the_gradient_is_taken_once() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    logps, _ = kept_logps(logits * 1.0, torch.tensor([0, 1, 2]))
    torch.autograd.grad(logps.sum(), logits, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(logps.sum(), logits)

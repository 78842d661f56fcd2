"""How much of a soup's effect the rounding of a full checkpoint's dtype loses."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LARGE_LOSS = 0.01
"""Share of the effect from which `warn_about_rounding` warns."""

__all__ = ["RoundingMeter", "RoundingWarning", "lost_share", "warn_about_rounding"]


class RoundingWarning(UserWarning):
    """A dtype so coarse that it loses more than 1 % of what the soup changes."""


class RoundingMeter:
    """Accumulates ‖rounded - exact‖ / ‖exact - base‖, Frobenius norms over all changed tensors."""

    def __init__(self) -> None:
        self._lost = 0.0
        self._effect = 0.0

    def add(self, rounded: torch.Tensor, exact: torch.Tensor, base: torch.Tensor) -> None:
        """Count one tensor, or one piece of it; all three have the same shape."""
        self._lost += _squared_distance(rounded, exact)
        self._effect += _squared_distance(base, exact)

    @property
    def share(self) -> float:
        """The share of the effect that is lost; 0 if the soup changes nothing."""
        return lost_share(self._lost, self._effect)


def lost_share(squared_loss: float, squared_effect: float) -> float:
    """Return ‖rounded - exact‖ / ‖exact - base‖ from their squares; 0 if the soup changes nothing."""
    return math.sqrt(squared_loss / squared_effect) if squared_effect else 0.0


def warn_about_rounding(share: float | None, where: object) -> None:
    """Warn if more than 1 % of a soup's effect is lost; None means that it was not measured."""
    if share is not None and share > LARGE_LOSS:
        warnings.warn(
            f"Rounding loses {share:.1%} of the soup's effect in {where}: the backbones moved the weights by little "
            "more than the spacing of this dtype. Write the checkpoint in float32 (dtype=torch.float32), or keep "
            "the soup an adapter (full=False).",
            RoundingWarning,
            stacklevel=3,
        )


def _squared_distance(value: torch.Tensor, exact: torch.Tensor) -> float:
    import torch

    difference = (value.to(exact.dtype) - exact).flatten()
    return float(torch.dot(difference, difference)) if difference.numel() else 0.0

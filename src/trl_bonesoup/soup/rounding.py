"""How much of a soup's effect the rounding of a full checkpoint's dtype loses."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

from trl_bonesoup.errors import SoupError

if TYPE_CHECKING:
    import torch

LARGE_LOSS = 0.01
"""Share of the effect from which `warn_about_rounding` warns."""

__all__ = ["Rounder", "RoundingMeter", "RoundingWarning", "is_finite", "lost_share", "warn_about_rounding"]


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


class Rounder:
    """Casts the tensors of a checkpoint to the dtype that they are saved in, and measures what that loses.

    Args:
        what: what the checkpoint is, for errors.
        dtype: of all floats; by default each tensor keeps that of the base model.
        allow_nan: keep NaN and infinity that are not made by rounding.
    """

    def __init__(self, what: str, dtype: torch.dtype | None = None, *, allow_nan: bool = False) -> None:
        self._what = what
        self._allow_nan = allow_nan
        self._dtype = dtype
        self._meter = RoundingMeter()
        self._tied: dict[tuple[int, ...], torch.Tensor] = {}

    @property
    def loss(self) -> float:
        """The share of the effect that is lost; 0 if nothing changed."""
        return self._meter.share

    def cast(self, name: str, exact: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """Return one tensor as it is saved; what is no float stays, and what is tied in the base stays so.

        Args:
            name: of the tensor, for errors.
            exact: its values, in float32 or more.
            base: the base model's.

        Raises:
            SoupError: if a value is not finite.
        """
        if not base.is_floating_point() or not base.numel():
            return exact
        place = (base.data_ptr(), *base.shape)
        if place not in self._tied:
            self._tied[place] = self._cast(name, exact, base)
        return self._tied[place]

    def _cast(self, name: str, exact: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        import torch

        rounded = exact.to(self._dtype or base.dtype)
        if not is_finite(exact, rounded, allow_nan=self._allow_nan):
            if not torch.isfinite(base).all():
                raise SoupError(f"{name} of the base model contains NaN or infinity, and so would {self._what}.")
            if not torch.isfinite(exact).all():
                raise SoupError(f"{name} of {self._what} contains NaN or infinity, which an adapter put there.")
            raise SoupError(
                f"{name} of {self._what} exceeds the range of {rounded.dtype}; write it in float32 "
                "(dtype=torch.float32, --dtype float32)."
            )
        if exact is not base or rounded.dtype != base.dtype:
            self._meter.add(rounded, exact.to(torch.promote_types(exact.dtype, torch.float32)), base)
        return rounded


def is_finite(exact: torch.Tensor, rounded: torch.Tensor, *, allow_nan: bool = False) -> bool:
    """Return whether no rounded value is NaN or infinite; with `allow_nan`, whether none is that was finite before.

    Extremes decide quickly, except near the end of the range.
    """
    import torch

    if not exact.numel():
        return True
    lowest, highest = (float(extreme) for extreme in torch.aminmax(exact))
    limit = torch.finfo(rounded.dtype).max
    if -limit <= lowest and highest <= limit:
        return True
    finite = torch.isfinite(rounded)
    return bool((finite | ~torch.isfinite(exact)).all() if allow_nan else finite.all())


def lost_share(squared_loss: float, squared_effect: float) -> float:
    """Return ‖rounded - exact‖ / ‖exact - base‖ from their squares; 0 if the soup changes nothing."""
    return math.sqrt(squared_loss / squared_effect) if squared_effect else 0.0


def warn_about_rounding(share: float | None, where: object) -> None:
    """Warn if more than 1 % of a soup's effect is lost; None means that it was not measured."""
    if share is not None and share > LARGE_LOSS:
        warnings.warn(
            f"Rounding loses {share:.1%} of the soup's effect in {where}: the backbones moved the weights by little "
            "more than the spacing of this dtype. Write the checkpoint in float32 (dtype=torch.float32, --dtype "
            "float32), or keep the soup an adapter (full=False, no --full).",
            RoundingWarning,
            stacklevel=3,
        )


def _squared_distance(value: torch.Tensor, exact: torch.Tensor) -> float:
    import torch

    difference = (value.to(exact.dtype) - exact).flatten()
    return float(torch.dot(difference, difference)) if difference.numel() else 0.0

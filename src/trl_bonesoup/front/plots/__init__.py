"""Pictures of fronts and of their training that can go straight into a README or a paper.

Each kind draws one front, or several by the name of their method, with colours that every kind of
colour vision can tell apart and shapes besides, and writes SVG, PDF or PNG.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trl_bonesoup.errors import FrontError
from trl_bonesoup.front.plots.control import plot_controllability
from trl_bonesoup.front.plots.fronts import plot_front
from trl_bonesoup.front.plots.simplex import plot_front_3d, plot_ternary
from trl_bonesoup.front.plots.steering import plot_rewards_by_preference
from trl_bonesoup.front.plots.training import plot_training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from trl_bonesoup.front.front import Front

KINDS = {
    "front": plot_front,
    "preference": plot_rewards_by_preference,
    "controllability": plot_controllability,
    "3d": plot_front_3d,
    "ternary": plot_ternary,
}

__all__ = [
    "KINDS",
    "plot",
    "plot_controllability",
    "plot_front",
    "plot_front_3d",
    "plot_rewards_by_preference",
    "plot_ternary",
    "plot_training",
]


def plot(
    fronts: Front | Mapping[str, Front],
    path: str | Path | None = None,
    *,
    kind: str = "front",
    width: float | None = None,
) -> Figure:
    """Draw one of `KINDS`; see the function of each.

    Raises:
        FrontError: for another kind or file ending, or fronts that the kind does not fit.
    """
    if kind not in KINDS:
        raise FrontError(f'kind must be one of {sorted(KINDS)}; got "{kind}".')
    return KINDS[kind](fronts, path, width=width)

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

WITH_HIGHLIGHT = {"front": plot_front, "preference": plot_rewards_by_preference}
"""The kinds that can ring the one preference that a figure is about."""

__all__ = [
    "KINDS",
    "WITH_HIGHLIGHT",
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
    highlight: int | None = None,
) -> Figure:
    """Draw one of `KINDS`; see the function of each.

    Args:
        fronts, path, width: see the function of each.
        kind: which.
        highlight: row of the preference that the figure is about, for the kinds in `WITH_HIGHLIGHT`.

    Raises:
        FrontError: for another kind or file ending, or fronts that the kind does not fit.
    """
    if kind not in KINDS:
        raise FrontError(f'kind must be one of {sorted(KINDS)}; got "{kind}".')
    if highlight is None:
        return KINDS[kind](fronts, path, width=width)
    if kind not in WITH_HIGHLIGHT:
        raise FrontError(f'A preference is highlighted in the kinds {sorted(WITH_HIGHLIGHT)}; got "{kind}".')
    return WITH_HIGHLIGHT[kind](fronts, path, width=width, highlight=highlight)

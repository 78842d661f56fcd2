"""Controllability as a picture: which pairs of preferences come out in the order that was asked for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from trl_bonesoup.front import metrics
from trl_bonesoup.front.front import Front
from trl_bonesoup.front.plots.style import (
    NARROW,
    Fronts,
    add_legend,
    by_method,
    columns_of,
    font_size,
    new_panels,
    save,
    styled,
    wrap,
)

OUTCOMES = {"ordered as asked": "#CFE3EF", "in some objectives only": "#E69F00", "in no objective": "#4A1C0A"}
"""The lighter the better, so that a print without colours says the same."""

MOST_CELLS = 21
"""Preferences up to which cells have borders and every one its weight."""

TICK_INCHES = 0.28
"""Least distance of two weights along an axis."""

__all__ = ["plot_controllability"]


def plot_controllability(fronts: Fronts, path: str | Path | None = None, *, width: float | None = None) -> Figure:
    """Draw, for each pair of preferences, whether their rewards are ordered as they ask.

    One panel per method; rows and columns are the preferences in decreasing order of the weight of
    the first objective (then of the second, and so on). The title counts the pairs of `controllability`.

    Args, returns and raises are those of `plot_front`; the default width is 3.3 inches per method, at most 10.
    """
    named = by_method(fronts)
    width = width if width is not None else max(3.6, min(10.0, 3.3 * len(named)))
    with styled(width):
        columns = columns_of(len(named), width, least=1.6 if width < NARROW else 2.5)
        figure, panels = new_panels(len(named), width, columns=columns, height=width / columns + 0.2)
        for axes, (name, front) in zip(panels, named.items(), strict=True):
            _draw_pairs(axes, front, 0.75 * width / columns)
            order_KK = metrics.pair_order(front.preferences_KN, front.rewards_KN)
            right_Q = order_KK[np.triu_indices(len(front), k=1)] == 1.0
            count = f"{right_Q.sum()} of {len(right_Q)} pairs: {right_Q.mean():.3f}"
            title = f"{wrap(name, 0.75 * width / columns, font_size(width))}\n{count}" if name else count
            axes.set_title(title)
        add_legend(figure, [Patch(facecolor=c, edgecolor="0.6") for c in OUTCOMES.values()], list(OUTCOMES))
        return save(figure, path)


def _draw_pairs(axes: Axes, front: Front, inches: float) -> None:
    k = len(front)
    order = np.lexsort(tuple(-front.preferences_KN[:, ::-1].T))
    share_KK = metrics.pair_order(front.preferences_KN[order], front.rewards_KN[order])
    outcome_KK = np.select([share_KK == 1.0, share_KK > 0.0], [0, 1], 2)
    below_KK = np.tril(np.ones((k, k), dtype=bool), k=-1)
    edges = {"edgecolors": "white", "linewidth": 0.6} if k <= MOST_CELLS else {"rasterized": True}
    axes.pcolormesh(
        np.ma.masked_array(outcome_KK, mask=~below_KK), cmap=ListedColormap(list(OUTCOMES.values())), vmin=-0.5,
        vmax=2.5, **edges,
    )  # fmt: skip
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.grid(False)
    weights_K = front.preferences_KN[order, 0]
    starts = np.flatnonzero(np.diff(weights_K, prepend=np.inf) < -metrics.SAME_PREFERENCE)
    shown = _spread_out(starts, k * TICK_INCHES / inches)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(shown + 0.5, [f"{weight:.2g}" for weight in weights_K[shown]])
    axes.set_xlabel(f"weight of {front.objectives[0]}")
    axes.set_ylabel(f"weight of {front.objectives[0]}")


def _spread_out(places: Iterable[int], distance: float) -> NDArray[np.int64]:
    """Return the places that are at least so far from the one before, with the first and without crowding."""
    kept: list[int] = []
    for place in places:
        if not kept or place - kept[-1] >= distance:
            kept.append(place)
    return np.array(kept)

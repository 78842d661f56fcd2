"""Each objective's reward against its weight in the preference: whether asking for more gives more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from trl_bonesoup.front.front import BASE_LABEL, Front
from trl_bonesoup.front.plots.style import (
    INK,
    NARROW,
    PALE,
    Fronts,
    MethodStyle,
    add_legend,
    by_method,
    check_highlight,
    columns_of,
    error_bars,
    is_narrow,
    method_styles,
    new_panels,
    ring,
    ringed_name,
    save,
    sequential,
    styled,
)
from trl_bonesoup.weights import FloatArray

__all__ = ["plot_rewards_by_preference"]


def plot_rewards_by_preference(
    fronts: Fronts, path: str | Path | None = None, *, width: float | None = None, highlight: int | None = None
) -> Figure:
    """Draw, for each objective, its mean reward against its weight in the preference.

    Steering works if every panel rises. Each point is a preference with its 95 % interval; the line joins
    the means over preferences with equal weight (left out where hardly any are equal), the dashed
    line is the base. For several methods and more than 2 objectives, a bar goes from the lowest to
    the highest of the preferences with equal weight.

    Args, returns and raises are those of `plot_front`; the default width is 2.8 inches per objective.
    """
    named = by_method(fronts)
    check_highlight(fronts, highlight)
    objectives = next(iter(named.values())).objectives
    width = width if width is not None else max(3.0, 2.8 * columns_of(len(objectives), 11.2, least=2.8))
    with styled(width):
        columns = columns_of(len(objectives), width, least=1.6 if len(objectives) == 2 else 2.1)
        figure, panels = new_panels(len(objectives), width, columns=columns, height=2.2 if width < NARROW else 2.9)
        styles = method_styles(list(named))
        for i, axes in enumerate(panels):
            for m, (name, front) in enumerate(named.items()):
                if isinstance(fronts, Front):
                    _draw_one(axes, front, i)
                else:
                    _draw_method(axes, front, i, styles[name], 0.006 * (m - (len(named) - 1) / 2))
                if highlight is not None:
                    at = np.array([front.preferences_KN[highlight, i], front.rewards_KN[highlight, i]])
                    ring(axes, at, ringed_name(front))
            _draw_bases(axes, named, i, styles)
            axes.set_xlim(-0.06, 1.06)
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
            axes.set_xlabel(f"weight of {objectives[i]}")
            axes.set_ylabel(f"mean {objectives[i]}")
        if not isinstance(fronts, Front):
            handles = [
                Line2D([], [], color=s.colour, marker=s.shape, linestyle=s.dashes, markersize=5)
                for s in styles.values()
            ]
            add_legend(figure, handles, list(styles))
        elif highlight is not None:
            add_legend(figure, *panels[0].get_legend_handles_labels())
        return save(figure, path)


def _draw_one(axes: Axes, front: Front, i: int) -> None:
    weights_K, rewards_K = front.preferences_KN[:, i], front.rewards_KN[:, i]
    levels = _levels(front, i)
    if levels:
        axes.plot(list(levels), [rewards.mean() for rewards in levels.values()], color=PALE, linewidth=1.0, zorder=1)
    axes.errorbar(weights_K, rewards_K, yerr=error_bars(front, i), fmt="none", ecolor="0.75", elinewidth=0.9, zorder=2)
    style: dict[str, Any] = {"cmap": sequential(), "norm": Normalize(0.0, 1.0), "edgecolors": INK, "linewidths": 0.6}
    axes.scatter(weights_K, rewards_K, c=weights_K, s=34, zorder=3, **style)


def _draw_method(axes: Axes, front: Front, i: int, style: MethodStyle, aside: float) -> None:
    """Draw one of several methods, its bars moved a little aside so that they do not cover each other's."""
    weights_K, rewards_K = front.preferences_KN[:, i], front.rewards_KN[:, i]
    levels = _levels(front, i)
    look: dict[str, Any] = {"color": style.colour, "marker": style.shape, "markersize": 4.5, "zorder": 3}
    if not levels:
        axes.plot(weights_K, rewards_K, linestyle="none", **look)
        return
    at = np.array(list(levels)) + aside
    means = np.array([rewards.mean() for rewards in levels.values()])
    if len(front.objectives) == 2:
        down, up = error_bars(front, i)[:, [int(np.abs(weights_K - level).argmin()) for level in levels]]
    else:
        down = means - [rewards.min() for rewards in levels.values()]
        up = np.array([rewards.max() for rewards in levels.values()]) - means
    bars = np.maximum(0.0, [down, up])
    axes.errorbar(at, means, yerr=bars, fmt="none", ecolor=style.colour, elinewidth=0.8, alpha=0.45, zorder=2)
    axes.plot(at, means, linestyle=style.dashes, linewidth=1.2, **look)


def _draw_bases(axes: Axes, fronts: Mapping[str, Front], i: int, styles: Mapping[str, MethodStyle]) -> None:
    bases = {
        name: front.markers[BASE_LABEL].rewards_N[i] for name, front in fronts.items() if BASE_LABEL in front.markers
    }
    shared = len(set(bases.values())) == 1
    for name, base in list(bases.items())[: 1 if shared else None]:
        colour = INK if shared else styles[name].colour
        axes.axhline(base, color=colour, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            BASE_LABEL, (1.0, base), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
            ha="right", va="bottom", fontsize=7 if is_narrow(axes) else 9, color=colour,
        )  # fmt: skip


def _levels(front: Front, i: int) -> dict[float, FloatArray]:
    """Return the rewards of objective i by its weight, or nothing if hardly any preferences share one."""
    weights_K, rewards_K = front.preferences_KN[:, i], front.rewards_KN[:, i]
    levels = [float(level) for level in np.unique(weights_K.round(9))]
    if len(front.objectives) > 2 and len(levels) > len(front) / 2:
        return {}
    return {level: rewards_K[np.isclose(weights_K, level, atol=1e-9)] for level in levels}

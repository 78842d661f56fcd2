"""Fronts as rewards against rewards: one front coloured by preference, or several methods in colours of their own."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from trl_bonesoup.front.front import BACKBONE_PREFIX, BASE_LABEL, Front
from trl_bonesoup.front.plots.labels import place_labels, points_along, points_around
from trl_bonesoup.front.plots.steering import plot_rewards_by_preference
from trl_bonesoup.front.plots.style import (
    INK,
    PALE,
    Fronts,
    MethodStyle,
    add_colour_bar,
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
    settle,
    shade,
    styled,
)
from trl_bonesoup.weights import FloatArray

Pair = tuple[int, int]

__all__ = ["plot_front"]


def plot_front(
    fronts: Fronts, path: str | Path | None = None, *, width: float | None = None, highlight: int | None = None
) -> Figure:
    """Draw mean reward against mean reward, with 95 % intervals.

    One front is coloured by preference, with its base and backbones labelled. Several methods have a
    colour, a shape and a line each; the darker a point, the more weight its preference has on the
    first objective of the axes. Their base is drawn once if it is the same model, and their backbones are not.

    Two objectives make one panel, joined in preference order. Three make a panel per pair: the line
    is the front of the two objectives alone, and the points around it give weight to the third. More
    are drawn by `plot_rewards_by_preference`.

    Args:
        fronts: what to draw: a front, or several by the name of their method.
        path: where to write it: SVG, PDF or PNG by its ending.
        width: inches, 3.3 for a column of a paper. By default 6, or 10.5 for three objectives.
        highlight: row of the one preference that the figure is about, which is ringed. For one front only.

    Returns:
        The figure, which belongs to no pyplot state.

    Raises:
        FrontError: for another file ending, fronts of different objectives, or a ring among several fronts.
    """
    n = len(next(iter(by_method(fronts).values())).objectives)
    if n > 3:
        return plot_rewards_by_preference(fronts, path, width=width, highlight=highlight)
    check_highlight(fronts, highlight)
    width = width if width is not None else (6.0 if n == 2 else 10.5)
    with styled(width):
        if isinstance(fronts, Front):
            figure = _draw_two(fronts, width, highlight) if n == 2 else _draw_three(fronts, width, highlight)
        else:
            figure = _draw_methods(by_method(fronts), width)
        return save(figure, path)


def _draw_two(front: Front, width: float, highlight: int | None) -> Figure:
    figure = Figure(figsize=(width, 0.73 * width), layout="constrained")
    axes = figure.subplots()
    order = np.argsort(-front.preferences_KN[:, 0])
    axes.plot(*front.rewards_KN[order].T, color=PALE, linewidth=1.0, zorder=1)
    colours, norm = sequential(), Normalize(0.0, 1.0)
    _draw_points(axes, front, (0, 1), front.preferences_KN[:, 0], colours, norm, intervals=True)
    title = f"weight of {front.objectives[0]} in the preference"
    add_colour_bar(figure, axes, colours, norm, title).set_ticks([0, 0.5, 1], labels=["0", "0.5", "1"])
    _draw_markers(axes, front, (0, 1))
    labels = [(label, marker.rewards_N, "normal") for label, marker in front.markers.items()]
    ends = {order[0]: 0, order[-1]: 1} if len(front) > 1 else {}
    for row, i in ends.items():
        if front.preferences_KN[row, i] == 1.0 and row != highlight:
            labels.append((f"all {front.objectives[i]}", front.rewards_KN[row], "bold"))
    _name_axes(axes, front, (0, 1))
    axes.margins(0.08)
    inked = _inked(front, order)
    if highlight is not None:
        at = front.rewards_KN[highlight]
        ring(axes, at, ringed_name(front))
        labels.append((ringed_name(front), at, "bold"))
        settle(figure)  # so that data and pixels correspond
        inked = np.vstack([inked, points_around(axes, at, 9.0)])
    place_labels(figure, axes, labels, inked)
    return figure


def _draw_three(front: Front, width: float, highlight: int | None) -> Figure:
    columns = columns_of(3, width, least=3.0)
    figure, panels = new_panels(3, width, columns=columns, height=3.9 if columns > 1 else 3.2)
    colours, norm = sequential(), Normalize(0.0, 1.0)
    for axes, pair in zip(panels, combinations(range(3), 2), strict=True):
        (hidden,) = set(range(3)) - set(pair)
        axes.plot(*_rim(front, pair).T, color=PALE, linewidth=1.0, zorder=1)
        _draw_points(axes, front, pair, front.preferences_KN[:, hidden], colours, norm)
        title = f"weight of {front.objectives[hidden]}"
        bar = add_colour_bar(figure, axes, colours, norm, title, location="top")
        bar.set_ticks([0, 0.5, 1], labels=["0", "0.5", "1"])
        _draw_markers(axes, front, pair, filled=True)
        if highlight is not None:
            ring(axes, front.rewards_KN[highlight, pair], ringed_name(front))
        _name_axes(axes, front, pair)
    if front.markers or highlight is not None:
        add_legend(figure, *panels[0].get_legend_handles_labels())
    return figure


def _draw_methods(fronts: Mapping[str, Front], width: float) -> Figure:
    styles = method_styles(list(fronts))
    first = next(iter(fronts.values()))
    pairs = list(combinations(range(len(first.objectives)), 2))
    columns = columns_of(len(pairs), width, least=3.0)
    height = 0.73 * width if len(pairs) == 1 else (3.4 if columns > 1 else 3.0)
    figure, panels = new_panels(len(pairs), width, columns=columns, height=height)
    for axes, pair in zip(panels, pairs, strict=True):
        for name, front in fronts.items():
            _draw_method(axes, front, pair, styles[name])
        _draw_compared_markers(axes, fronts, pair, styles)
        _name_axes(axes, first, pair)
        axes.margins(0.06)
    handles = [
        Line2D([], [], color=s.colour, marker=s.shape, linestyle=s.dashes, markersize=5) for s in styles.values()
    ]
    extra, labels = panels[0].get_legend_handles_labels()
    title = "darker: more weight on " + (
        "the objective of the horizontal axis" if len(pairs) > 1 else first.objectives[0]
    )
    add_legend(figure, [*handles, *extra], [*styles, *labels], title=title)
    return figure


def _draw_method(axes: Axes, front: Front, pair: Pair, style: MethodStyle) -> None:
    """Draw the preferences between two objectives as a line with intervals, and the others faintly behind it."""
    hidden = [i for i in range(len(front.objectives)) if i not in pair]
    on_rim = (front.preferences_KN[:, hidden] == 0.0).all(axis=1)
    if not on_rim.all():
        x, y = front.rewards_KN[~on_rim][:, pair].T
        axes.scatter(x, y, s=7, marker=style.shape, color=style.colour, alpha=0.25, linewidths=0)
    rim = np.flatnonzero(on_rim)
    rim = rim[np.argsort(-front.preferences_KN[rim, pair[0]])]
    x, y = front.rewards_KN[rim][:, pair].T
    across, up = (error_bars(front, i)[:, rim] for i in pair)
    axes.errorbar(x, y, up, across, fmt="none", ecolor=style.colour, elinewidth=0.7, alpha=0.35, zorder=1.5)
    axes.plot(x, y, color=style.colour, linestyle=style.dashes, linewidth=1.2, zorder=2)
    axes.scatter(
        x, y, marker=style.shape, s=20 if is_narrow(axes) else 36, edgecolors=style.colour, linewidths=1.0, zorder=3,
        c=[shade(style.colour, weight) for weight in front.preferences_KN[rim, pair[0]]],
    )  # fmt: skip


def _draw_compared_markers(
    axes: Axes, fronts: Mapping[str, Front], pair: Pair, styles: Mapping[str, MethodStyle]
) -> None:
    """Draw the markers that are no backbones: in ink if a label means one place, else in the methods' colours."""
    shapes = {BASE_LABEL: "x"}
    size = 6.0 if is_narrow(axes) else 8.0
    for method, front in fronts.items():
        for label, marker in front.markers.items():
            if label.startswith(BACKBONE_PREFIX):
                continue
            others = [other.markers[label].rewards_N for other in fronts.values() if label in other.markers]
            shared = all(np.array_equal(place_N, marker.rewards_N) for place_N in others)
            name = label if shared else f"{label} ({method})"
            if name in axes.get_legend_handles_labels()[1]:
                continue
            shape = shapes.setdefault(label, "*ph8"[(len(shapes) - 1) % 4])
            axes.plot(
                *marker.rewards_N[list(pair)], linestyle="none", marker=shape, markersize=size, markeredgewidth=2.0,
                color=INK if shared else styles[method].colour, zorder=4, label=name,
            )  # fmt: skip


def _rim(front: Front, pair: Pair) -> FloatArray:
    """Return the rewards (·, 2) of the preferences that weigh no objective but these two, in preference order."""
    hidden = [i for i in range(len(front.objectives)) if i not in pair]
    rows = np.flatnonzero((front.preferences_KN[:, hidden] == 0.0).all(axis=1))
    return front.rewards_KN[rows[np.argsort(-front.preferences_KN[rows, pair[0]])]][:, pair]


def _draw_points(
    axes: Axes, front: Front, pair: Pair, weights_K: FloatArray, colours: Colormap, norm: Normalize,
    *, intervals: bool = False,
) -> None:  # fmt: skip
    x, y = front.rewards_KN[:, pair].T
    if intervals:
        across, up = (error_bars(front, i) for i in pair)
        axes.errorbar(x, y, up, across, fmt="none", ecolor="0.8", elinewidth=0.9, zorder=1.5)
    size = 48 if intervals and not is_narrow(axes) else 26
    axes.scatter(x, y, c=weights_K, cmap=colours, norm=norm, s=size, edgecolors=INK, linewidths=0.7, zorder=3)


def _draw_markers(axes: Axes, front: Front, pair: Pair, *, filled: bool = False) -> None:
    """Draw the base as ×, backbones as ◇ △ ▽ and other markers as squares and other polygons.

    Unfilled, a backbone does not hide the soup at the same place: the one whose preference is its
    column of B. Filled, it stands out from many points.
    """
    backbones, others = cycle("D^v"), cycle("sph8")
    size = 6.0 if is_narrow(axes) else 8.0
    for label, marker in front.markers.items():
        style: dict[str, Any] = {"markersize": size, "markeredgewidth": 1.2, "markerfacecolor": "white"}
        if label == BASE_LABEL:
            style |= {"marker": "x", "markeredgewidth": 2.2}
        elif label.startswith(BACKBONE_PREFIX):
            style |= {"marker": next(backbones)} if filled else {"marker": "D", "markersize": 1.3 * size}
        else:
            style["marker"] = next(others)
        if not filled:
            style["markerfacecolor"] = "none"
        x, y = marker.rewards_N[list(pair)]
        axes.plot(x, y, linestyle="none", color=INK, markeredgecolor=INK, zorder=4, label=label, **style)


def _name_axes(axes: Axes, front: Front, pair: Pair) -> None:
    axes.set_xlabel(f"mean {front.objectives[pair[0]]} (higher is better)")
    axes.set_ylabel(f"mean {front.objectives[pair[1]]} (higher is better)")


def _inked(front: Front, order: NDArray[np.int64]) -> FloatArray:
    """Return places (·, 2) in data units along the line and the error bars of a front of two objectives."""
    path_K2 = front.rewards_KN[order]
    places: list[FloatArray] = [path_K2, *(points_along(a, b, 20) for a, b in pairwise(path_K2))]
    for mean, ends in zip(front.rewards_KN, front.intervals_KN2, strict=True):
        for i in range(2):
            bar = np.repeat(mean[None], 5, axis=0)
            bar[:, i] = np.linspace(ends[i, 0], ends[i, 1], 5)
            places.append(bar)
    return np.vstack(places)

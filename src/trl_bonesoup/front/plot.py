"""Pictures of a front that can go straight into a README or a paper."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import combinations, cycle, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trl_bonesoup.errors import FrontError
from trl_bonesoup.front.front import BACKBONE_PREFIX, BASE_LABEL, Front
from trl_bonesoup.weights import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

FORMATS = (".pdf", ".png", ".svg")

PNG_DPI = 200
"""A figure 6 inches wide has 1200 pixels, twice the width at which a README shows it."""

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.labelsize": 10,
    "axes.edgecolor": "0.3",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.grid": True,
    "grid.color": "0.92",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "pdf.fonttype": 42,
}

INK = "0.25"

LEADER_DISTANCE = 16.0
"""Points from which a label is tied to its place by a thin line."""

__all__ = ["plot_front", "plot_rewards_by_preference"]


def plot_front(front: Front, path: str | Path | None = None) -> Figure:
    """Draw mean reward against mean reward, coloured by preference, with intervals, base and backbones.

    Two objectives make one panel, joined in preference order and coloured by the weight of the first
    objective. Three make a panel per pair, coloured by the weight of the third one that the panel
    does not show: its two-objective front is the line. More are drawn by
    `plot_rewards_by_preference`.

    Args:
        front: what to draw.
        path: where to write it: SVG, PDF or PNG by its ending.

    Returns:
        The figure, which belongs to no pyplot state.

    Raises:
        FrontError: for another file ending.
    """
    from matplotlib import rc_context

    n = len(front.objectives)
    if n > 3:
        return plot_rewards_by_preference(front, path)
    with rc_context(STYLE):
        figure = _draw_two(front) if n == 2 else _draw_three(front)
        return _finish(figure, path)


def plot_rewards_by_preference(front: Front, path: str | Path | None = None) -> Figure:
    """Draw, for each objective, its mean reward against its weight in the preference.

    Steering works if every panel rises. Each dot is a preference with its interval; the line joins
    the means over preferences with equal weight (left out where hardly any are equal), the dashed
    line is the base.

    Args and returns are those of `plot_front`.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    n = len(front.objectives)
    columns = n if n <= 4 else math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(max(3.0, 2.8 * columns), 2.9 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel in panels[n:]:
            panel.remove()
        for i, panel in enumerate(panels[:n]):
            _draw_steering(panel, front, i)
        return _finish(figure, path)


def _draw_two(front: Front) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 4.4), layout="constrained")
    axes = figure.subplots()
    order = np.argsort(-front.preferences_KN[:, 0])
    axes.plot(*front.rewards_KN[order].T, color="0.6", linewidth=1.0, zorder=1)
    colours, norm = _colours()
    _draw_points(axes, front, (0, 1), front.preferences_KN[:, 0], colours, norm)
    _add_colour_bar(figure, axes, colours, norm, f"weight of {front.objectives[0]} in the preference")
    _draw_markers(axes, front, (0, 1))
    labels = [(label, marker.rewards_N, "normal") for label, marker in front.markers.items()]
    if len(front) > 1:
        for i, row in enumerate((order[0], order[-1])):
            if front.preferences_KN[row, i] == 1.0:
                labels.append((f"all {front.objectives[i]}", front.rewards_KN[row], "bold"))
    _label_axes(axes, front, (0, 1))
    axes.margins(0.08)
    _place_labels(figure, axes, labels, front, order)
    return figure


def _draw_three(front: Front) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 3.9), layout="constrained")
    panels = figure.subplots(1, 3)
    colours, norm = _colours()
    for axes, pair in zip(panels, combinations(range(3), 2), strict=True):
        (hidden,) = set(range(3)) - set(pair)
        rim = np.flatnonzero(front.preferences_KN[:, hidden] == 0.0)
        rim = rim[np.argsort(-front.preferences_KN[rim, pair[0]])]
        axes.plot(*front.rewards_KN[rim][:, pair].T, color="0.6", linewidth=1.0, zorder=1)
        _draw_points(axes, front, pair, front.preferences_KN[:, hidden], colours, norm, intervals=False)
        _add_colour_bar(figure, axes, colours, norm, f"weight of {front.objectives[hidden]}", location="top")
        _draw_markers(axes, front, pair, filled=True)
        _label_axes(axes, front, pair)
    if front.markers:
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    return figure


def _draw_steering(axes: Axes, front: Front, i: int) -> None:
    weights_K, rewards_K = front.preferences_KN[:, i], front.rewards_KN[:, i]
    levels = np.unique(weights_K.round(9))
    means = [rewards_K[np.isclose(weights_K, level, atol=1e-9)].mean() for level in levels]
    if len(front.objectives) == 2 or len(levels) <= len(front) / 2:
        axes.plot(levels, means, color="0.6", linewidth=1.0, zorder=1)
    colours, norm = _colours()
    axes.errorbar(weights_K, rewards_K, yerr=_bars(front, i), fmt="none", ecolor="0.75", elinewidth=0.9, zorder=2)
    axes.scatter(
        weights_K, rewards_K, c=weights_K, cmap=colours, norm=norm, s=34, edgecolors=INK, linewidths=0.6, zorder=3
    )
    if BASE_LABEL in front.markers:
        base = front.markers[BASE_LABEL].rewards_N[i]
        axes.axhline(base, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            BASE_LABEL,
            (1.0, base),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=9,
            color=INK,
        )
    axes.set_xlim(-0.06, 1.06)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    axes.set_xlabel(f"weight of {front.objectives[i]}")
    axes.set_ylabel(f"mean {front.objectives[i]}")


def _draw_points(
    axes: Axes,
    front: Front,
    pair: tuple[int, int],
    weights_K: FloatArray,
    colours: Colormap,
    norm: Normalize,
    *,
    intervals: bool = True,
) -> None:
    x, y = front.rewards_KN[:, pair].T
    if intervals:
        axes.errorbar(
            x,
            y,
            xerr=_bars(front, pair[0]),
            yerr=_bars(front, pair[1]),
            fmt="none",
            ecolor="0.8",
            elinewidth=0.9,
            zorder=1.5,
        )
    axes.scatter(
        x, y, c=weights_K, cmap=colours, norm=norm, s=48 if intervals else 26, edgecolors=INK, linewidths=0.7, zorder=3
    )


def _draw_markers(axes: Axes, front: Front, pair: tuple[int, int], *, filled: bool = False) -> None:
    """Draw the base as ×, backbones as ◇ △ ▽ and other markers as squares and other polygons.

    Unfilled, a backbone does not hide the soup at the same place: the one whose preference is its
    column of B. Filled, it stands out from many points.
    """
    backbones, others = cycle("D^v"), cycle("sph8")
    for label, marker in front.markers.items():
        style: dict[str, Any] = {"markersize": 8, "markeredgewidth": 1.2, "markerfacecolor": "white"}
        if label == BASE_LABEL:
            style |= {"marker": "x", "markeredgewidth": 2.2}
        elif label.startswith(BACKBONE_PREFIX):
            style |= {"marker": next(backbones)} if filled else {"marker": "D", "markersize": 10.5}
        else:
            style["marker"] = next(others)
        if not filled:
            style["markerfacecolor"] = "none"
        x, y = marker.rewards_N[list(pair)]
        axes.plot(x, y, linestyle="none", color=INK, markeredgecolor=INK, zorder=4, label=label, **style)


def _colours() -> tuple[Colormap, Normalize]:
    """Return a sequential map that reads the same with every kind of colour vision, over weights 0 to 1."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    return colormaps["viridis"].reversed(), Normalize(0.0, 1.0)


def _add_colour_bar(
    figure: Figure, axes: Axes, colours: Colormap, norm: Normalize, label: str, location: str = "right"
) -> None:
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, label=label, location=location, aspect=30, pad=0.02)
    bar.set_ticks([0, 0.5, 1], labels=["0", "0.5", "1"])
    bar.outline.set_visible(False)


def _label_axes(axes: Axes, front: Front, pair: tuple[int, int]) -> None:
    axes.set_xlabel(f"mean {front.objectives[pair[0]]} (higher is better)")
    axes.set_ylabel(f"mean {front.objectives[pair[1]]} (higher is better)")


def _bars(front: Front, i: int) -> FloatArray:
    """Return the lengths (2, K) of the error bars of objective i, down and up from the mean."""
    means_K, ends_K2 = front.rewards_KN[:, i], front.intervals_KN2[:, i]
    return np.maximum(0.0, np.stack([means_K - ends_K2[:, 0], ends_K2[:, 1] - means_K]))


def _place_labels(
    figure: Figure,
    axes: Axes,
    labels: Sequence[tuple[str, FloatArray, str]],
    front: Front,
    order: NDArray[np.int64],
) -> None:
    """Write each label (text, place, font weight) where it covers no point, other label or line, if it can."""
    from matplotlib.patheffects import withStroke

    figure.draw_without_rendering()  # settles the layout, so that data and pixels correspond
    point = figure.dpi / 72.0
    obstacles = axes.transData.transform(_inked(labels, front, order))
    frame = axes.get_window_extent()
    taken: list[Bbox] = []
    for text, at, weight in labels:
        note = axes.annotate(
            text, (at[0], at[1]), xytext=(0, 0), textcoords="offset points", va="center", fontsize=9,
            fontweight=weight, color=INK, zorder=5, path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
        note.set_in_layout(False)
        size = note.get_window_extent()
        anchor = axes.transData.transform(at)
        boxes = _label_boxes(anchor, size.width, size.height, point)
        costs = [_label_cost(box, obstacles, taken, frame, point) + 0.25 * distance for box, distance in boxes]
        box, distance = boxes[int(np.argmin(costs))]
        note.set_position(((box.x0 - anchor[0]) / point, ((box.y0 + box.y1) / 2 - anchor[1]) / point))
        taken.append(box)
        if distance > LEADER_DISTANCE:
            start = (min(max(anchor[0], box.x0), box.x1), min(max(anchor[1], box.y0), box.y1))
            ends = axes.transData.inverted().transform(np.array([start, anchor]))
            axes.plot(*ends.T, color="0.6", linewidth=0.7, zorder=2, scalex=False, scaley=False)


def _inked(labels: Sequence[tuple[str, FloatArray, str]], front: Front, order: NDArray[np.int64]) -> FloatArray:
    """Return places (·, 2) in data units that a label should not cover: points, and dots along lines and bars."""
    steps = np.linspace(0.0, 1.0, 20)[:, None]
    path_K2 = front.rewards_KN[order]
    places = [path_K2, *(at[None] for _, at, _ in labels)]
    places += [a + steps * (b - a) for a, b in pairwise(path_K2)]
    for mean, ends in zip(front.rewards_KN, front.intervals_KN2, strict=True):
        for i in range(2):
            bar = np.repeat(mean[None], 5, axis=0)
            bar[:, i] = np.linspace(ends[i, 0], ends[i, 1], 5)
            places.append(bar)
    return np.vstack(places)


def _label_boxes(anchor: FloatArray, width: float, height: float, point: float) -> list[tuple[Bbox, float]]:
    """Return the boxes around a point where its label may go, the preferred first, each with its distance in points."""
    from matplotlib.transforms import Bbox

    boxes = []
    for distance in (9.0, 14.0, 20.0, 28.0, 38.0, 50.0):
        for angle in np.deg2rad([0, 180, 90, 270, 45, 135, 315, 225, 20, 160, 340, 200]):
            across, up = math.cos(angle), math.sin(angle)
            x = anchor[0] + across * (distance * point + width / 2)
            y = anchor[1] + up * (distance * point + height / 2)
            box = Bbox.from_extents(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            boxes.append((box, distance))
    return boxes


def _label_cost(box: Bbox, obstacles: FloatArray, taken: Sequence[Bbox], frame: Bbox, point: float) -> float:
    margin = 4.0 * point
    x, y = obstacles.T
    hits = (x > box.x0 - margin) & (x < box.x1 + margin) & (y > box.y0 - margin) & (y < box.y1 + margin)
    outside = max(0.0, frame.x0 - box.x0, box.x1 - frame.x1) + max(0.0, frame.y0 - box.y0, box.y1 - frame.y1)
    covered = sum(box.overlaps(other) for other in taken)
    return 1000.0 * covered + 10.0 * outside + float(hits.sum())


def _finish(figure: Figure, path: str | Path | None) -> Figure:
    if path is None:
        return figure
    from matplotlib import rc_context

    target = Path(path)
    ending = target.suffix.lower()
    if ending not in FORMATS:
        raise FrontError(f"A plot is written as one of {', '.join(FORMATS)}; got {target.name!r}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    undated: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}
    beside = target.with_name(f".{os.getpid()}.{target.name}")
    with rc_context({"svg.hashsalt": "trl-bonesoup"}):
        figure.savefig(beside, dpi=PNG_DPI, metadata=undated[ending])
    beside.replace(target)
    return figure

"""Three objectives at once: rewards over the triangle of preferences, and fronts in three dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.tri import Triangulation

from trl_bonesoup.errors import FrontError
from trl_bonesoup.front.front import BASE_LABEL, Front
from trl_bonesoup.front.plots.style import (
    INK,
    NARROW,
    Fronts,
    add_colour_bar,
    add_legend,
    by_method,
    font_size,
    is_narrow,
    method_styles,
    save,
    sequential,
    styled,
    wrap,
)
from trl_bonesoup.weights import FloatArray

CORNERS = np.array([[0.5, np.sqrt(0.75)], [0.0, 0.0], [1.0, 0.0]])
"""Where the preference for one objective alone lies: at the top, on the left, on the right."""

LEVELS = 12

__all__ = ["plot_front_3d", "plot_ternary"]


def plot_ternary(fronts: Fronts, path: str | Path | None = None, *, width: float | None = None) -> Figure:
    """Draw the mean reward of each of three objectives over the triangle of preferences.

    Each corner is the preference for one objective alone. Dots are the preferences that were
    measured; between them the reward is interpolated linearly. The star is the highest: for an
    objective that can be steered it lies in that objective's corner. Several methods share the
    colours of an objective.

    Args, returns and raises are those of `plot_front`; the default width is 9 inches. Other numbers
    of objectives than three are an error.
    """
    named = _three_objectives(fronts)
    width = width if width is not None else 9.0
    with styled(width):
        cells = [(m, i) for m in range(len(named)) for i in range(3)]
        sideways = width < NARROW  # then objectives are rows and methods are columns
        rows, columns = (3, len(named)) if sideways else (len(named), 3)
        figure = Figure(figsize=(width, rows * (0.8 * width / max(columns, 2) + 0.3)), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        grid = grid.T if sideways else grid
        scales = [_scale([front.rewards_KN[:, i] for front in named.values()]) for i in range(3)]
        for (m, i), (name, front) in zip(cells, [item for item in named.items() for _ in range(3)], strict=True):
            _draw_triangle(grid[m, i], front, i, scales[i])
            if name and i == 0:
                _name_method(grid[m, i], wrap(name, 0.8 * width / max(columns, 2), font_size(width)), sideways)
        for i, objective in enumerate(next(iter(named.values())).objectives):
            where = {"location": "right"} if sideways else {"location": "top", "shrink": 0.8}
            bar = add_colour_bar(figure, list(grid[:, i]), sequential(), scales[i], f"mean {objective}", **where)
            bar.ax.locator_params(nbins=4)
        return save(figure, path)


def plot_front_3d(fronts: Fronts, path: str | Path | None = None, *, width: float | None = None) -> Figure:
    """Draw the front of three objectives in three dimensions, seen from where every reward is highest.

    The surface joins neighbouring preferences. A single front is coloured by the weight of its first
    objective, and casts a shadow on the plane of the first two.

    Args, returns and raises are those of `plot_front`; the default width is 6 inches. Other numbers
    of objectives than three are an error.
    """
    named = _three_objectives(fronts)
    width = width if width is not None else 6.0
    with styled(width):
        figure = Figure(figsize=(width, 0.8 * width), layout="constrained")
        axes: Any = figure.add_subplot(projection="3d", elev=24, azim=40)
        axes.set_box_aspect(None, zoom=0.86)
        for set_label, name in zip(
            (axes.set_xlabel, axes.set_ylabel, axes.set_zlabel), next(iter(named.values())).objectives, strict=True
        ):
            set_label(wrap(f"mean {name}", 0.3 * width, font_size(width)))
        if is_narrow(axes):
            axes.locator_params(nbins=4)
        if isinstance(fronts, Front):
            _draw_solid(figure, axes, fronts)
        else:
            _draw_solids(figure, axes, named)
        return save(figure, path)


def _name_method(axes: Axes, name: str, above: bool) -> None:
    if above:
        axes.set_title(name, pad=18, fontweight="bold")
    else:
        axes.text(-0.12, 0.5, name, transform=axes.transAxes, rotation=90, ha="right", va="center", fontweight="bold")


def _draw_triangle(axes: Axes, front: Front, i: int, scale: Normalize) -> None:
    x_K, y_K = (front.preferences_KN @ CORNERS).T
    rewards_K = front.rewards_KN[:, i]
    if _spans_a_plane(front):
        levels = np.linspace(scale.vmin or 0.0, scale.vmax or 1.0, LEVELS + 1)
        axes.tricontourf(Triangulation(x_K, y_K), rewards_K, levels=levels, cmap=sequential(), norm=scale)
    small = is_narrow(axes)
    axes.scatter(
        x_K, y_K, c=rewards_K, cmap=sequential(), norm=scale, s=8 if small else 16,
        edgecolors=INK, linewidths=0.5, zorder=3, clip_on=False,
    )  # fmt: skip
    highest = int(rewards_K.argmax())
    star: dict[str, Any] = {
        "marker": "*",
        "markersize": 9 if small else 14,
        "markerfacecolor": "white",
        "markeredgecolor": "black",
    }
    axes.plot(x_K[highest], y_K[highest], zorder=4, clip_on=False, **star)
    axes.plot(*np.vstack([CORNERS, CORNERS[:1]]).T, color=INK, linewidth=0.8, zorder=2, clip_on=False)
    for objective, (x, y), place in zip(front.objectives, CORNERS, ("bottom", "top", "top"), strict=True):
        short = objective if len(objective) <= 14 else f"{objective[:13]}…"
        up = 8 if place == "bottom" else -7
        axes.annotate(
            short, (x, y), xytext=(0, up), textcoords="offset points", ha="center", va=place,
            fontsize=7 if small else 9, color=INK,
        )  # fmt: skip
    axes.set_aspect("equal")
    axes.set_xlim(-0.12, 1.12)
    axes.set_axis_off()


def _draw_solid(figure: Figure, axes: Any, front: Front) -> None:
    x, y, z = front.rewards_KN.T
    floor = z.min() - 0.08 * (np.ptp(z) or 1.0)
    axes.scatter(x, y, np.full(len(front), floor), s=8, color="0.8", linewidths=0, depthshade=False)
    _draw_surface(axes, front, "0.6")
    scale = Normalize(0.0, 1.0)
    axes.scatter(
        x, y, z, c=front.preferences_KN[:, 0], cmap=sequential(), norm=scale, s=26, edgecolors=INK, linewidths=0.6,
        depthshade=False,
    )  # fmt: skip
    if BASE_LABEL in front.markers:
        axes.plot(*front.markers[BASE_LABEL].rewards_N[:, None], "x", color=INK, markeredgewidth=2, label=BASE_LABEL)
        add_legend(figure, *axes.get_legend_handles_labels())
    bar = figure.colorbar(
        axes.collections[-1], ax=axes, shrink=0.6, pad=0.12, label=f"weight of {front.objectives[0]}", aspect=24
    )
    bar.set_ticks([0, 0.5, 1], labels=["0", "0.5", "1"])
    bar.outline.set_visible(False)


def _draw_solids(figure: Figure, axes: Any, fronts: Mapping[str, Front]) -> None:
    styles = method_styles(list(fronts))
    for name, front in fronts.items():
        _draw_surface(axes, front, styles[name].colour)
        axes.scatter(
            *front.rewards_KN.T, s=18, marker=styles[name].shape, color=styles[name].colour, edgecolors="white",
            linewidths=0.4, depthshade=False,
        )  # fmt: skip
    handles = [Line2D([], [], color=s.colour, marker=s.shape, linestyle="none", markersize=5) for s in styles.values()]
    add_legend(figure, handles, list(styles))


def _draw_surface(axes: Any, front: Front, colour: str) -> None:
    """Join the points whose preferences are neighbours, if the preferences span a plane."""
    if _spans_a_plane(front):
        triangles = Triangulation(*(front.preferences_KN @ CORNERS).T).triangles
        x, y, z = front.rewards_KN.T
        surface = {"color": colour, "alpha": 0.2, "edgecolor": colour, "linewidth": 0.3, "shade": False}
        axes.plot_trisurf(x, y, z, triangles=triangles, **surface)


def _spans_a_plane(front: Front) -> bool:
    return np.linalg.matrix_rank(front.preferences_KN - front.preferences_KN[0], tol=1e-6) == 2


def _scale(rewards: list[FloatArray]) -> Normalize:
    values = np.concatenate(rewards)
    spread = np.ptp(values) or 1.0
    return Normalize(values.min() - 1e-9 * spread, max(values.max(), values.min() + 1e-9) + 1e-9 * spread)


def _three_objectives(fronts: Fronts) -> dict[str, Front]:
    named = by_method(fronts)
    objectives = next(iter(named.values())).objectives
    if len(objectives) != 3:
        raise FrontError(
            f"This figure is for three objectives; the front has {len(objectives)}: {list(objectives)}. Draw it with "
            'the kind "front" or "preference".'
        )
    return named

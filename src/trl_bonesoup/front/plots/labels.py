"""Labels beside points, placed where they cover no point, line or other label, if that is possible."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from trl_bonesoup.front.plots.style import INK, PALE, font_size, settle, wrap
from trl_bonesoup.weights import FloatArray

LEADER_DISTANCE = 16.0
"""Points from which a label is tied to its place by a thin line."""

LONGEST = 28
"""Characters of a label; axes and legends hold whole names."""

_Label = tuple[str, FloatArray, str]

__all__ = ["place_labels", "points_along", "points_around"]


def place_labels(figure: Figure, axes: Axes, labels: Sequence[_Label], drawn: FloatArray) -> None:
    """Write labels into axes whose contents and limits are complete.

    Args:
        figure: the axes' figure, whose layout is settled here.
        axes: where to write.
        labels: of each, the text, the place (2,) in data units, and the font weight.
        drawn: places (·, 2) in data units that a label should not cover, besides those of the labels.
    """
    settle(figure)  # so that data and pixels correspond
    point = figure.dpi / 72.0
    places = [drawn, *(np.asarray(at)[None] for _, at, _ in labels)]
    obstacles = axes.transData.transform(np.vstack(places))
    frame = axes.get_window_extent()
    size = font_size(figure.get_figwidth()) - 1
    taken: list[Bbox] = []
    for text, at, weight in labels:
        short = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
        note = axes.annotate(
            wrap(short, 0.5 * frame.width / figure.dpi, size), (at[0], at[1]), xytext=(0, 0),
            textcoords="offset points", va="center", fontsize=size, fontweight=weight, color=INK, zorder=5,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
        note.set_in_layout(False)
        extent = note.get_window_extent()
        anchor = axes.transData.transform(at)
        boxes = _boxes(anchor, extent.width, extent.height, point)
        costs = [_cost(box, obstacles, taken, frame, point) + 0.25 * distance for box, distance in boxes]
        box, distance = boxes[int(np.argmin(costs))]
        note.set_position(((box.x0 - anchor[0]) / point, ((box.y0 + box.y1) / 2 - anchor[1]) / point))
        taken.append(box)
        if distance > LEADER_DISTANCE:
            start = (min(max(anchor[0], box.x0), box.x1), min(max(anchor[1], box.y0), box.y1))
            ends = axes.transData.inverted().transform(np.array([start, anchor]))
            axes.plot(*ends.T, color=PALE, linewidth=0.7, zorder=2, scalex=False, scaley=False)


def points_along(start: FloatArray, end: FloatArray, count: int) -> FloatArray:
    """Return `count` places (·, 2) on the line from start to end."""
    return start + np.linspace(0.0, 1.0, count)[:, None] * (end - start)


def points_around(axes: Axes, at: FloatArray, radius: float) -> FloatArray:
    """Return places (·, 2) in data units on a circle of `radius` points, in axes that are laid out."""
    angles = np.linspace(0.0, 2.0 * np.pi, 16, endpoint=False)
    pixels = radius * axes.figure.dpi / 72.0 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return axes.transData.inverted().transform(axes.transData.transform(at) + pixels)


def _boxes(anchor: FloatArray, width: float, height: float, point: float) -> list[tuple[Bbox, float]]:
    """Return the boxes around a point where its label may go, the preferred first, each with its distance in points."""
    boxes = []
    for distance in (9.0, 14.0, 20.0, 28.0, 38.0, 50.0):
        for angle in np.deg2rad([0, 180, 90, 270, 45, 135, 315, 225, 20, 160, 340, 200]):
            across, up = math.cos(angle), math.sin(angle)
            x = anchor[0] + across * (distance * point + width / 2)
            y = anchor[1] + up * (distance * point + height / 2)
            box = Bbox.from_extents(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            boxes.append((box, distance))
    return boxes


def _cost(box: Bbox, obstacles: FloatArray, taken: Sequence[Bbox], frame: Bbox, point: float) -> float:
    margin = 4.0 * point
    x, y = obstacles.T
    hits = (x > box.x0 - margin) & (x < box.x1 + margin) & (y > box.y0 - margin) & (y < box.y1 + margin)
    outside = max(0.0, frame.x0 - box.x0, box.x1 - frame.x1) + max(0.0, frame.y0 - box.y0, box.y1 - frame.y1)
    covered = sum(box.overlaps(other) for other in taken)
    return 1000.0 * covered + 10.0 * outside + float(hits.sum())

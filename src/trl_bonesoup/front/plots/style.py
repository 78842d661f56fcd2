"""What every figure shares: sizes, fonts, colours for every kind of colour vision, layout, and how it is saved."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from trl_bonesoup.errors import FrontError
from trl_bonesoup.front.front import Front
from trl_bonesoup.weights import FloatArray

FORMATS = (".pdf", ".png", ".svg")

PNG_PIXELS = 1200
"""Least width of a PNG: twice the width at which a README shows it."""

PNG_DPI = 200
"""Least resolution of a PNG."""

NARROW = 4.5
"""Figures narrower than this, in inches, are for a column of a paper, whose captions are set in 8 to 9 points."""

INK = "0.25"
PALE = "0.6"

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe & Ito (2008), without their yellow, which white paper hides."""

RING = COLOURS[1]
"""Of the ring around the point that a figure is about: a colour that `sequential` has not."""

SHAPES = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))

Fronts = Front | Mapping[str, Front]
"""One front, or those of several methods by name."""


@dataclass(frozen=True)
class MethodStyle:
    """How one method looks, in every figure in which it has the same place among the methods."""

    colour: str
    shape: str
    dashes: Any


def method_styles(names: Sequence[str]) -> dict[str, MethodStyle]:
    """Return a style for each name; colour, shape and dashes differ between any two of the first seven."""
    return {
        name: MethodStyle(COLOURS[i % len(COLOURS)], SHAPES[i % len(SHAPES)], DASHES[i % len(DASHES)])
        for i, name in enumerate(names)
    }


def by_method(fronts: Fronts) -> dict[str, Front]:
    """Return fronts by name; a single one has none.

    Raises:
        FrontError: for no fronts, or fronts whose objectives are not the same in the same order.
    """
    named = {"": fronts} if isinstance(fronts, Front) else dict(fronts)
    objectives = {front.objectives for front in named.values()}
    if len(objectives) != 1:
        raise FrontError(
            "A figure needs at least one front, and the same objectives in the same order in all of them; "
            f"got {sorted(map(list, objectives))}."
        )
    return named


def check_highlight(fronts: Fronts, highlight: int | None) -> None:
    """Check that a point can be ringed.

    Raises:
        FrontError: for several fronts.
    """
    if highlight is not None and not isinstance(fronts, Front):
        raise FrontError("A preference is highlighted in a figure of one front; this one compares several methods.")


def shade(colour: str, weight: float) -> tuple[float, float, float]:
    """Return a colour between white (weight 0) and `colour` (weight 1)."""
    red, green, blue = (1.0 - weight * (1.0 - channel) for channel in to_rgb(colour))
    return red, green, blue


def sequential() -> Colormap:
    """Return a map from light to dark that reads the same with every kind of colour vision."""
    return colormaps["viridis"].reversed()


@contextmanager
def styled(width: float) -> Iterator[None]:
    """Apply the fonts and lines of a figure that is `width` inches wide."""
    if not 1.5 <= width <= 40.0:
        raise FrontError(f"width is in inches, from 1.5 to 40; got {width!r}. A column of a paper is about 3.3.")
    size = font_size(width)
    settings: dict[Any, Any] = {
        "font.size": size,
        "axes.labelsize": size,
        "axes.titlesize": size,
        "legend.fontsize": size - 1,
        "axes.edgecolor": "0.3",
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.labelsize": size - 1,
        "ytick.labelsize": size - 1,
        "axes.grid": True,
        "grid.color": "0.92",
        "grid.linewidth": 0.8,
        "axes.axisbelow": True,
        "pdf.fonttype": 42,
    }
    with rc_context(settings):
        yield


def font_size(width: float) -> float:
    """Return the points of the text in a figure that is `width` inches wide."""
    return 8.0 if width < NARROW else 10.0


def is_narrow(axes: Axes) -> bool:
    """Whether the figure of these axes is for a column of a paper."""
    return axes.figure.bbox.width / axes.figure.dpi < NARROW


def columns_of(panels: int, width: float, least: float = 2.1) -> int:
    """Return in how many columns to set panels, each at least `least` inches wide."""
    columns = max(1, min(panels, int(width / least + 1e-9)))
    return math.ceil(panels / math.ceil(panels / columns))


def new_panels(panels: int, width: float, *, columns: int, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels of `height` inches in rows of `columns`; the last row may be short."""
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **options).ravel()
    for unused in grid[panels:]:
        unused.remove()
    return figure, list(grid[:panels])


def wrap(text: str, inches: float, size: float, lines: int = 3) -> str:
    """Break a text into at most so many lines that fit a length, at spaces, after underscores, or else within words.

    What does not fit is replaced by an ellipsis.
    """
    characters = max(6, int(inches * 72.0 / (0.55 * size)))
    broken = [""]
    for space, piece in re.findall(r"(\s*)([^\s_]*_+|[^\s_]+)", text):
        joined = f"{broken[-1]}{' ' if space else ''}{piece}"
        if not broken[-1] or len(joined) <= characters:
            broken[-1] = joined.lstrip()
        else:
            broken.append(piece)
        while len(broken[-1]) > characters:
            broken[-1:] = [broken[-1][:characters], broken[-1][characters:]]
    if len(broken) > lines:
        broken = [*broken[: lines - 1], f"{broken[lines - 1][: characters - 1]}…"]
    return "\n".join(broken)


def settle(figure: Figure) -> None:
    """Break the labels of axes that are longer than their axis, and lay the figure out."""
    figure.draw_without_rendering()
    size = font_size(figure.get_figwidth())
    labels = [(axes, label) for axes in figure.axes for label in (axes.xaxis.label, axes.yaxis.label)]
    whole = {label: label.get_text() for _, label in labels if "\n" not in label.get_text()}
    for _ in range(2):  # a broken label takes room from the axes, which may break another
        broken = False
        for axes, label in labels:
            frame, extent = axes.get_window_extent(), label.get_window_extent()
            pixels = frame.width if label is axes.xaxis.label else frame.height
            if label in whole and max(extent.width, extent.height) > 1.05 * pixels:
                label.set_text(wrap(whole[label], pixels / figure.dpi, size))
                broken = True
        if not broken:
            return
        figure.draw_without_rendering()


def add_legend(figure: Figure, handles: Sequence[Artist], names: Sequence[str], title: str | None = None) -> Legend:
    """Put one legend below the panels, in as many columns as fit, and make the figure higher by it."""
    size = font_size(figure.get_figwidth()) - 1
    names = [wrap(name, 0.8 * figure.get_figwidth(), size) for name in names]
    for columns in range(min(len(names), 6), 0, -1):
        legend = figure.legend(
            list(handles), names, loc="outside lower center", ncols=columns, frameon=False, columnspacing=1.5,
            handletextpad=0.5, title=title and wrap(title, 0.9 * figure.get_figwidth(), size),
            title_fontproperties={"size": size},
        )  # fmt: skip
        figure.draw_without_rendering()
        extent = legend.get_window_extent()
        if columns == 1 or extent.width <= figure.bbox.width:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)
    return legend


def add_colour_bar(
    figure: Figure, axes: Axes | Sequence[Axes], colours: Colormap, norm: Normalize, label: str, **options: Any
) -> Any:
    """Explain colours beside the axes."""
    options = {"aspect": 30, "pad": 0.02, **options}
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, label=label, **options)
    bar.outline.set_visible(False)
    return bar


def ring(axes: Axes, at: FloatArray, label: str) -> None:
    """Ring the place (2,) in data units of the point that a figure is about."""
    axes.plot(
        *at, linestyle="none", marker="o", markersize=12.0 if is_narrow(axes) else 16.0, markerfacecolor="none",
        markeredgecolor=RING, markeredgewidth=2.2, zorder=4.5, label=label,
    )  # fmt: skip


def ringed_name(front: Front) -> str:
    """Return what the ringed point of a front is called."""
    return "this soup" if front.coefficients_KN is not None else "this policy"


def error_bars(front: Front, i: int) -> FloatArray:
    """Return the lengths (2, K) of the error bars of objective i, down and up from the mean."""
    means_K, ends_K2 = front.rewards_KN[:, i], front.intervals_KN2[:, i]
    return np.maximum(0.0, np.stack([means_K - ends_K2[:, 0], ends_K2[:, 1] - means_K]))


def save(figure: Figure, path: str | Path | None) -> Figure:
    """Lay a figure out and, if a path is given, write it: completely or not at all, the same bytes each time.

    Raises:
        FrontError: for a file ending other than .pdf, .png or .svg.
    """
    settle(figure)
    if path is None:
        return figure
    target = Path(path)
    ending = target.suffix.lower()
    if ending not in FORMATS:
        raise FrontError(f"A plot is written as one of {', '.join(FORMATS)}; got {target.name!r}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    undated: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}
    beside = target.with_name(f".{os.getpid()}.{target.name}")
    dpi = max(PNG_DPI, PNG_PIXELS / figure.get_figwidth())
    with rc_context({"svg.hashsalt": "trl-bonesoup", "pdf.fonttype": 42}):
        figure.savefig(beside, dpi=dpi, metadata=undated[ending])
    beside.replace(target)
    return figure

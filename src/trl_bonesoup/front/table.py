"""Tables in Markdown: a front row by row, means with half their interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trl_bonesoup.weights import FloatArray

if TYPE_CHECKING:
    from trl_bonesoup.front.front import Front

__all__ = ["front_table", "markdown_table"]


def front_table(front: Front) -> str:
    """Return a front as an aligned Markdown table; see `Front.table`."""
    decimals = _decimals(front)
    header = ["", *(f"μ {name}" for name in front.objectives)]
    if front.coefficients_KN is not None:
        header += [f"λ {name}" for name in front.objectives]
    kind = "policy" if front.coefficients_KN is None else "soup"
    rows = [[*header, *front.objectives]]
    for k in range(len(front)):
        cells = [kind, *(f"{weight:.6g}" for weight in front.preferences_KN[k])]
        if front.coefficients_KN is not None:
            cells += [f"{coefficient + 0.0:+.3f}" for coefficient in front.coefficients_KN[k].round(3)]
        rows.append([*cells, *_mean_cells(front.rewards_KN[k], front.intervals_KN2[k], decimals)])
    for label, marker in front.markers.items():
        blanks = [""] * (len(header) - 1)
        rows.append([label, *blanks, *_mean_cells(marker.rewards_N, marker.intervals_N2, decimals)])
    return markdown_table(rows)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as an aligned Markdown table: the first is the header, the first column is left-aligned."""
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(3, *(len(row[column]) for row in escaped)) for column in range(len(escaped[0]))]
    lines = []
    for row in escaped:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("| " + " | ".join(cells) + " |")
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([lines[0], "| " + " | ".join(rule) + " |", *lines[1:]])


def _decimals(front: Front) -> list[int]:
    """Return, per objective, the decimals that show its range of means to three digits."""
    spans = np.ptp(np.vstack([front.rewards_KN, *(m.rewards_N for m in front.markers.values())]), axis=0)
    return [min(6, max(0, 2 - math.floor(math.log10(span)))) if span > 0.0 else 3 for span in spans]


def _mean_cells(rewards_N: FloatArray, intervals_N2: FloatArray | None, decimals: Sequence[int]) -> list[str]:
    cells = [f"{reward:.{places}f}" for reward, places in zip(rewards_N, decimals, strict=True)]
    if intervals_N2 is None:
        return cells
    halves = (intervals_N2[:, 1] - intervals_N2[:, 0]) / 2.0
    return [f"{cell} ± {half:.{places}f}" for cell, half, places in zip(cells, halves, decimals, strict=True)]

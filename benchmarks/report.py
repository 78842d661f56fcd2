"""What the benchmarks share: the machine's name, tables, and a median with its range."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median


def machine() -> str:
    """Return the processor, the number of its cores that may be used, and the system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {cores} cores, {platform.system()} {platform.machine()}"


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of installed packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Return the median and, if there are several values, their range."""
    middle = format(median(values), form)
    return f"{middle} ({format(min(values), form)} to {format(max(values), form)})" if len(values) > 1 else middle


def table(header: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool) -> str:
    """Lay out cells as Markdown or as plain columns."""
    if markdown:
        return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in [header, *rows]
    )

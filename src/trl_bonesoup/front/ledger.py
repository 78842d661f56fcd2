"""What pieces of work took, kept in a file, so that costs can be reported and the rest be estimated."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Ledger"]


class Ledger:
    """Seconds and units of work by kind, one JSON line per piece; interrupted pieces count with what they did.

    Args:
        file: where to keep it; it need not exist yet.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    @contextmanager
    def piece(self, kind: str, done: Callable[[], int]) -> Iterator[None]:
        """Note what the block takes, also if it ends in an exception.

        Args:
            kind: such as "steps" of training or "answers".
            done: returns how many units are done, before the block and after it.
        """
        before, started = done(), time.monotonic()
        try:
            yield
        finally:
            entry = {"kind": kind, "units": done() - before, "seconds": round(time.monotonic() - started, 3)}
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(entry) + "\n")

    def seconds(self, kind: str) -> float:
        """Return what all pieces of a kind took together."""
        return sum(seconds for _, seconds in self._entries(kind))

    def rate(self, kind: str) -> float | None:
        """Return the seconds of one unit, with everything around it, or `None` if there was none yet."""
        entries = self._entries(kind)
        units = sum(count for count, _ in entries)
        return sum(seconds for _, seconds in entries) / units if units else None

    def _entries(self, kind: str) -> list[tuple[int, float]]:
        if not self.file.is_file():
            return []
        lines = self.file.read_text(encoding="utf-8").splitlines()
        entries = [entry for line in lines if (entry := _parsed(line)) is not None]
        return [(entry["units"], entry["seconds"]) for entry in entries if entry["kind"] == kind]


def _parsed(line: str) -> dict | None:
    try:
        return json.loads(line)
    except ValueError:
        return None  # the process was killed while it wrote this line

"""What is known of a saved soup: a small file beside its weights, from which a card is written later."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trl_bonesoup.weights import FloatArray

FILE_NAME = "soup_export.json"
_SWEEP_FILE = "sweep_point.json"

__all__ = ["SavedSoup"]


@dataclass(frozen=True)
class SavedSoup:
    """How a soup was saved, and what of its effect that lost.

    Attributes:
        coefficients: λ of the soup, shape (N,).
        full: a full checkpoint rather than an adapter.
        rounding_loss: ‖rounded - exact‖ / ‖exact - base‖ of the weights of a full checkpoint; None if
            it was not measured.
        rank: to which the adapter was compressed; None if it was not.
        compression_error: ‖ΔW_r - ΔW‖ / ‖ΔW‖ of a compressed adapter.
    """

    coefficients: FloatArray
    full: bool
    rounding_loss: float | None = None
    rank: int | None = None
    compression_error: float | None = None

    @property
    def lost(self) -> float | None:
        """The share of the soup's effect that saving it lost; None if that was not measured."""
        return self.rounding_loss if self.rank is None else self.compression_error

    def write(self, folder: Path) -> None:
        """Write it into the folder of the soup."""
        record = {
            "coefficients": self.coefficients.tolist(),
            "full": self.full,
            "rounding_loss": self.rounding_loss,
            "rank": self.rank,
            "compression_error": self.compression_error,
        }
        (folder / FILE_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> SavedSoup | None:
        """Read it from the folder of a soup that `merge` or `sweep` wrote; None if there is none to be read."""
        for name in (FILE_NAME, _SWEEP_FILE):
            try:
                record = json.loads((folder / name).read_text(encoding="utf-8"))
                coefficients = np.array(record["coefficients"], dtype=np.float64)
                loss, rank, error = (_number(record.get(key)) for key in ("rounding_loss", "rank", "compression_error"))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
            return cls(coefficients, record.get("full") is True, loss, None if rank is None else int(rank), error)
        return None


def _number(value: object) -> float | None:
    """Return what a file gives as a number, None for anything that is none or negative."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0.0 <= value < math.inf else None  # type: ignore[arg-type, operator]

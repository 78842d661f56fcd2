"""Every single score behind a front, read back from the file of its answers: what bootstraps of metrics start from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trl_bonesoup.errors import FrontError
from trl_bonesoup.weights import FloatArray

__all__ = ["read_scores"]


def read_scores(path: str | Path, objectives: tuple[str, ...]) -> FloatArray:
    """Return the scores of the answers that `evaluate_policies` wrote, without those of the markers.

    Args:
        path: its `samples_path`, .jsonl or .parquet.
        objectives: whose scores to read, in the order of the result.

    Returns:
        Shape (K, P, S, N): preferences, prompts, samples, objectives; NaN where a reward function declined.

    Raises:
        FrontError: if it cannot be read, lacks an objective, or is not complete.
    """
    file = Path(path)
    try:
        records = [record for record in _records(file) if record["preference_index"] is not None]
        places = np.array(
            [[record[f"{axis}_index"] for axis in ("preference", "prompt", "sample")] for record in records]
        )
        values = [[record["scores"][name] for name in objectives] for record in records]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FrontError(
            f"{file} does not hold the answers of a front with the objectives {list(objectives)} "
            f"({type(error).__name__}: {error})."
        ) from error
    if not len(places) or len(records) != np.prod(shape := tuple(places.max(axis=0) + 1)):
        raise FrontError(f"{file} lacks some answers of a front; evaluate it again.")
    scores_KPSN = np.full((*shape, len(objectives)), np.nan)
    scores_KPSN[tuple(places.T)] = np.array(values, dtype=np.float64)  # None becomes NaN
    return scores_KPSN


def _records(file: Path) -> Iterator[dict[str, Any]]:
    if file.suffix == ".parquet":
        import pyarrow.parquet

        yield from pyarrow.parquet.read_table(file).to_pylist()
        return
    with file.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)

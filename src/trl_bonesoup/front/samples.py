"""The answers behind a front: collected with their scores, summarised per model, and written to a file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trl_bonesoup.errors import ConfigurationError, FrontError
from trl_bonesoup.front.bootstrap import bootstrap_intervals
from trl_bonesoup.front.policies import Answer, Row
from trl_bonesoup.weights import FloatArray

FORMATS = (".jsonl", ".parquet")

_FIELDS = {"preference_index", "preference", "marker", "prompt_index", "sample_index", "prompt", "completion", "scores"}

__all__ = ["Answers", "check_samples_path", "read_samples"]


class Answers:
    """Completions and scores of M models, P prompts, S samples of each, and N objectives.

    Args:
        models: what identifies each model: a soup's preference, or a marker's label.
        prompts: P.
        samples: S.
        objectives: their names.
    """

    def __init__(
        self, models: Sequence[list[float] | str], prompts: int, samples: int, objectives: tuple[str, ...]
    ) -> None:
        self.models = list(models)
        self.objectives = objectives
        shape = (len(self.models), prompts, samples)
        self.completions_MPS: NDArray[np.object_] = np.full(shape, None, dtype=object)
        self.token_ids_MPS: NDArray[np.object_] = np.full(shape, None, dtype=object)
        self.scores_MPSN: FloatArray = np.full((*shape, len(objectives)), np.nan)

    @property
    def total(self) -> int:
        """How many answers there are when all have been added."""
        return self.completions_MPS.size

    @property
    def counts_MN(self) -> NDArray[np.int64]:
        """How many scores each model has for each objective; a declined one (None) does not count."""
        return (~np.isnan(self.scores_MPSN)).sum(axis=(1, 2))

    def add(self, batch: Sequence[Row], answers: Sequence[Answer], scores: Sequence[Sequence[float | None]]) -> None:
        """Add a batch of answers; `scores` holds, for each objective, one score or None per answer."""
        for row, answer, *values in zip(batch, answers, *scores, strict=True):
            place = row.model, row.prompt, row.sample
            self.completions_MPS[place] = answer.text
            self.token_ids_MPS[place] = answer.token_ids
            self.scores_MPSN[place] = [np.nan if value is None else value for value in values]

    def summary(self, seed: int) -> tuple[FloatArray, FloatArray]:
        """Return mean rewards (M, N) and their 95 % intervals (M, N, 2), resampling the same prompts for all.

        Raises:
            FrontError: if a model has no score at all for an objective.
        """
        unscored = np.argwhere(self.counts_MN == 0)
        if len(unscored):
            m, i = unscored[0]
            raise FrontError(
                f"The reward function of '{self.objectives[i]}' returned None for every answer of {self.models[m]}, so "
                "there is no mean. Choose prompts to which the objective applies."
            )
        intervals = [bootstrap_intervals(scores_PSN, seed=seed) for scores_PSN in self.scores_MPSN]
        return np.nanmean(self.scores_MPSN, axis=(1, 2)), np.stack(intervals)

    def write(self, file: Path, prompt_texts: Sequence[str]) -> None:
        """Write one record per answer, ordered by model, prompt and sample, completely or not at all."""
        records = [self._record(Row(*place), prompt_texts) for place in np.ndindex(*self.completions_MPS.shape)]
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f".{file.name}.{os.getpid()}")
        if file.suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), beside)
        else:
            lines = (json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records)
            beside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        beside.replace(file)

    def _record(self, row: Row, prompt_texts: Sequence[str]) -> dict[str, Any]:
        model = self.models[row.model]
        values = self.scores_MPSN[row.model, row.prompt, row.sample]
        soup = not isinstance(model, str)
        return {
            "preference_index": row.model if soup else None,
            "preference": model if soup else None,
            "marker": None if soup else model,
            "prompt_index": row.prompt,
            "sample_index": row.sample,
            "prompt": prompt_texts[row.prompt],
            "completion": self.completions_MPS[row.model, row.prompt, row.sample],
            "completion_ids": self.token_ids_MPS[row.model, row.prompt, row.sample],
            "scores": {
                name: None if np.isnan(v) else float(v) for name, v in zip(self.objectives, values, strict=True)
            },
        }


def check_samples_path(path: str | Path | None) -> Path | None:
    """Return where to write the answers, before any are generated.

    Raises:
        ConfigurationError: for a file ending other than .jsonl or .parquet.
    """
    if path is None:
        return None
    if Path(path).suffix not in FORMATS:
        raise ConfigurationError(f"samples_path must end in {' or '.join(FORMATS)}; got {str(path)!r}.")
    return Path(path)


def read_samples(path: str | Path) -> list[dict[str, Any]]:
    """Return what an evaluation wrote to its `samples_path`: a record for each answer.

    Raises:
        ConfigurationError: if it cannot be read, or holds something else.
    """
    file = check_samples_path(path)
    assert file is not None
    try:
        if file.suffix == ".parquet":
            import pyarrow.parquet

            records = pyarrow.parquet.read_table(file).to_pylist()
        else:
            with file.open(encoding="utf-8") as lines:  # not splitlines, which cuts at more than "\n"
                records = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"The answers in {file} cannot be read: {error}") from error
    if not records or not all(isinstance(record, dict) and record.keys() >= _FIELDS for record in records):
        raise ConfigurationError(f"{file} does not hold answers; each needs the fields {sorted(_FIELDS)}.")
    return records

"""front.json: the numbers of a front with how they came about, read strictly and written completely or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from trl_bonesoup.errors import FrontError
from trl_bonesoup.manifest import MAX_OBJECTIVES
from trl_bonesoup.strict_json import problems, read_json, shown

FORMAT_VERSION = 1
MAX_BYTES = 50_000_000
MAX_PREFERENCES = 10_000
"""More than anyone measures; checks that compare every pair of them take seconds."""
MAX_MARKERS = 1_000

__all__ = ["FORMAT_VERSION", "FrontRecord", "MarkerRecord", "as_json", "read_record", "write_json"]


class MarkerRecord(BaseModel):
    """A marker: mean rewards, and their intervals if known."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    rewards: list[float]
    intervals: list[list[float]] | None


class FrontRecord(BaseModel):
    """What front.json holds; `Front` says what each field means."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    format_version: int
    objectives: Annotated[list[str], Field(max_length=MAX_OBJECTIVES)]
    preferences: Annotated[list[list[float]], Field(max_length=MAX_PREFERENCES)]
    coefficients: list[list[float]] | None
    rewards: Annotated[list[list[float]], Field(max_length=MAX_PREFERENCES)]
    intervals: list[list[list[float]]]
    n_samples: list[list[int]]
    markers: Annotated[dict[str, MarkerRecord], Field(max_length=MAX_MARKERS)]
    provenance: dict[str, JsonValue]


def read_record(path: str | Path) -> FrontRecord:
    """Read a front.json.

    Raises:
        FrontError: if there is no such file, or it is not a complete front of this format version.
    """
    file = Path(path)
    data = read_json(file, FrontError, MAX_BYTES)
    version = data.get("format_version") if isinstance(data, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        raise FrontError(
            f"{file} has format version {shown(repr(version))}; this version of trl-bonesoup reads fronts of version "
            f"{FORMAT_VERSION}. A newer file needs a newer trl-bonesoup."
        )
    try:
        return FrontRecord.model_validate(data)
    except ValidationError as error:
        raise FrontError(f"{file} is not a valid front: {problems(error, 'front')}.") from error


def write_json(record: Mapping[str, Any], path: str | Path) -> Path:
    """Write a record to a JSON file, completely or not at all, and return its path."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    beside.write_text(text + "\n", encoding="utf-8")
    beside.replace(target)
    return target


def as_json(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return a provenance as JSON would give it back.

    Raises:
        FrontError: if it holds anything that JSON cannot.
    """
    try:
        return json.loads(json.dumps(dict(provenance), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise FrontError(f"The provenance must hold only what JSON can: {error}.") from error

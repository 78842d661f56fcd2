"""What to make of a data set, as settings: which rows, how they are read, and the texts put together from them."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from trl_bonesoup.data.readers import READERS
from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.strict_json import problems

_SLICE = re.compile(r"(-?\d+)?:(-?\d+)?(?::([1-9]\d*))?")
_SHARED = ("source", "subset", "revision", "reader")
_FILE_NAME = r"^[\w-][\w.-]*\.jsonl$"


def _checked(template: str) -> str:
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"{template!r} is no template: {error}; braces that are no field are doubled") from error
    if any(not name or name[0].isdigit() for name in names):
        raise ValueError(f"{template!r} has a field without a name; braces that are no field are doubled")
    return template


Template = Annotated[str, AfterValidator(_checked)]
"""Text with fields of a row, in Python's format syntax: "question: {question}", "{answers[0]}"."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Length(_Settings):
    """How long a text of a row may be, or the row is left out."""

    text: Template
    between: tuple[int, int]
    """The shortest and the longest that stay."""
    tokenizer: str | None = None
    """Count in tokens of this tokenizer, with the special ones that it adds; by default in characters."""

    @field_validator("between")
    @classmethod
    def _in_order(cls, between: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= between[0] <= between[1]:
            raise ValueError("must be the shortest and the longest length, in this order")
        return between


class FilePlan(_Settings):
    """How one file comes out of a data set."""

    source: str
    """A data set on the Hub, a folder, or a .json, .jsonl, .csv or .parquet file."""
    columns: dict[str, Template]
    """What each line of the file holds, by name; one is called "prompt"."""
    split: str = "train"
    subset: str | None = None
    revision: str | None = None
    reader: str = "columns"
    """One of `READERS`, which says what fields a row has."""
    lengths: tuple[Length, ...] = ()
    one_per: Template | None = None
    """Of rows that give the same text the first one stays; they are then sorted by it."""
    rows: str | None = None
    """Which rows, as a slice: "::4" is every fourth, ":2000" the first 2000."""
    without: tuple[str, ...] = ()
    """Files before this one; a row whose prompt is in one of them is left out."""

    @field_validator("columns")
    @classmethod
    def _with_prompt(cls, columns: dict[str, str]) -> dict[str, str]:
        if "prompt" not in columns:
            raise ValueError('must have a "prompt"')
        return columns

    @field_validator("reader")
    @classmethod
    def _known(cls, reader: str) -> str:
        if reader not in READERS:
            raise ValueError(f"must be one of {', '.join(READERS)}")
        return reader

    @field_validator("rows")
    @classmethod
    def _a_slice(cls, rows: str | None) -> str | None:
        if rows is not None and not _SLICE.fullmatch(rows):
            raise ValueError('must be a slice such as "::4" (every fourth) or ":2000" (the first 2000)')
        return rows

    @property
    def chosen(self) -> slice:
        """`rows` as a slice."""
        found = _SLICE.fullmatch(self.rows or ":")
        assert found is not None
        return slice(*(None if part is None else int(part) for part in found.groups()))


class DataPlan(_Settings):
    """All files of a task, in the order in which they are made."""

    files: Annotated[dict[Annotated[str, Field(pattern=_FILE_NAME)], FilePlan], Field(min_length=1)]

    @model_validator(mode="after")
    def _only_earlier_files(self) -> DataPlan:
        earlier: set[str] = set()
        for name, file in self.files.items():
            if unknown := set(file.without) - earlier:
                raise ValueError(f"{name} is to be without {', '.join(sorted(unknown))}, which no file before it is")
            earlier.add(name)
        return self


def read_plan(files: Any, **shared: str | None) -> DataPlan:
    """Return a plan from settings as YAML gives them.

    Args:
        files: the settings of each file, by its name.
        shared: `source`, `subset`, `revision` and `reader` of all files that have none of their own.

    Raises:
        ConfigurationError: if a setting is unknown, missing, or not of its form; the message names it.
    """
    if unknown := set(shared) - set(_SHARED):
        raise TypeError(f"read_plan shares {', '.join(_SHARED)}, not {', '.join(sorted(unknown))}.")
    given = {name: value for name, value in shared.items() if value is not None}
    if isinstance(files, Mapping):
        files = {name: {**given, **file} if isinstance(file, Mapping) else file for name, file in files.items()}
    try:
        return DataPlan(files=files)
    except ValidationError as error:
        raise ConfigurationError(f"The plan of the files cannot be used: {problems(error, 'files')}.") from error

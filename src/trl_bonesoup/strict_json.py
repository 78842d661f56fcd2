"""JSON that may come from a stranger: read within a size, and refused where two readers could disagree about it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trl_bonesoup.errors import BoneSoupError

MAX_DEPTH = 64
"""Lists and objects inside one another; what works through a file goes as deep as the file does."""
_PROBLEMS = 5
"""How many problems of a file a message names."""
_LENGTH = 300
"""Characters to which text from a file is cut in a message."""

__all__ = ["MAX_DEPTH", "parse_json", "problems", "read_json", "shown"]


def read_json(file: Path, error: type[BoneSoupError], max_bytes: int) -> Any:
    """Return what a JSON file holds.

    Raises:
        error: if it cannot be read, is larger than `max_bytes`, or `parse_json` refuses it.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(max_bytes + 1)
    except OSError as problem:
        raise error(f"{file} cannot be read: {problem.strerror}.") from problem
    if len(content) > max_bytes:
        raise error(f"{file} is too large: a {file.name} has at most {max_bytes} bytes.")
    return parse_json(content, str(file), error)


def parse_json(content: bytes, where: str, error: type[BoneSoupError]) -> Any:
    """Return what JSON text in UTF-8 holds.

    Refused are, besides what is no JSON: a key given twice, numbers that are not finite (`NaN`, `1e999`),
    text that no file can hold (lone surrogates), and what is nested deeper than `MAX_DEPTH`.

    Raises:
        error: saying what is wrong in `where`.
    """
    try:
        data = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_without_repetition,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
        _check_depth(data, MAX_DEPTH)
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as problem:
        raise error(f"{where} is not valid JSON: {shown(str(problem))}.") from problem
    return data


def problems(error: ValidationError, whole: str) -> str:
    """Return in one line what pydantic found wrong, and where; `whole` is what the file as such is called."""
    found = [
        f"{shown('.'.join(map(str, item['loc'])) or whole)}: {shown(item['msg'].rstrip('.'))}"
        for item in error.errors(include_url=False, include_input=False)
    ]
    more = [f"and {len(found) - _PROBLEMS} more"] if len(found) > _PROBLEMS else []
    return "; ".join(found[:_PROBLEMS] + more)


def shown(text: str) -> str:
    """Return text from a file as a message can show it: cut to a length, control characters escaped."""
    cut = text if len(text) <= _LENGTH else f"{text[:_LENGTH]}…"
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in cut)


def _check_depth(data: Any, left: int) -> None:
    if not isinstance(data, (dict, list)):
        return
    if not left:
        raise ValueError(f"it has more than {MAX_DEPTH} lists or objects inside one another")
    for child in data.values() if isinstance(data, dict) else data:
        _check_depth(child, left - 1)


def _without_repetition(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is given twice")
        found[key] = value
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a finite number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number

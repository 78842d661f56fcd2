"""What commands and YAML files say as text: preferences, extrapolations, rewards and prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.manifest import SoupManifest


def parse_preference(text: Any, manifest: SoupManifest) -> Any:
    """Return μ, shape (N,), from "name=share,…", "share,…", the name of a preset, or a YAML mapping or list."""
    return manifest.preference(read_preference(text))


def read_preference(text: Any) -> Any:
    """Return what a preference says, unchecked: shares by name, shares in order, or a name."""
    if isinstance(text, (dict, list)):
        return text
    parts = [part.strip() for part in str(text).split(",") if part.strip()]
    if any("=" in part for part in parts):
        named: dict[str, float] = {}
        for part in parts:
            name, _, share = part.rpartition("=")
            if name.strip() in named:
                raise ConfigurationError(f"--preference {text} names {name.strip()!r} twice.")
            named[name.strip()] = _number(share, f"--preference {text}")
        return named
    if len(parts) == 1 and not _is_number(parts[0]):
        return parts[0]
    return [_number(part, f"--preference {text}") for part in parts]


def parse_extrapolation(text: Any) -> float | list[float]:
    """Return α from "0.2" or "0.1,0.3", or from what YAML made of them."""
    values = text if isinstance(text, list) else str(text).split(",")
    numbers = [_number(value, f"--extrapolation {text}") for value in values]
    return numbers[0] if len(numbers) == 1 else numbers


def parse_rewards(specs: Sequence[str], order: Sequence[str] = ()) -> tuple[list[Any], list[str]]:
    """Return reward functions and objective names from specs as `load_reward` takes, each after an optional "name=".

    Args:
        specs: once for each objective.
        order: the objectives of a soup. If the names are these in another order, both are put into this one.
    """
    from trl_bonesoup.rewards.protocol import objective_names, reward_name
    from trl_bonesoup.rewards.spec import load_reward

    functions, names = [], []
    for spec in specs:
        name, separator, source = str(spec).partition("=")
        function = load_reward(source if separator else name)
        functions.append(function)
        names.append(name if separator else reward_name(function))
    names = list(objective_names(functions, names))
    if set(names) == set(order):
        functions, names = [functions[names.index(name)] for name in order], list(order)
    return functions, names


def read_prompts(source: str, *, column: str = "prompt", limit: int | None = None) -> Any:
    """Return a data set with a column "prompt".

    Args:
        source: a .txt file with one prompt per line; a .jsonl, .json, .csv or .parquet file; or a
            data set on the Hub, as `org/name` or `org/name:split`.
        column: the column that holds the prompts.
        limit: use the first so many.

    Raises:
        ConfigurationError: if there is no such file, column or data set.
    """
    from datasets import Dataset, load_dataset

    path = Path(source)
    if path.suffix == ".txt":
        if not path.is_file():
            raise ConfigurationError(f"There is no file of prompts at {source}.")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        data = Dataset.from_dict({column: [line for line in lines if line]})
    elif path.suffix in (".jsonl", ".json", ".csv", ".parquet"):
        if not path.is_file():
            raise ConfigurationError(f"There is no file of prompts at {source}.")
        kind = "json" if path.suffix == ".jsonl" else path.suffix[1:]
        data = load_dataset(kind, data_files=str(path), split="train")
    else:
        name, _, split = source.partition(":")
        try:
            data = load_dataset(name, split=split or "train")
        except Exception as error:
            raise ConfigurationError(
                f"{source} is neither a .txt, .jsonl, .json, .csv or .parquet file nor a data set on the Hub: {error}"
            ) from error
    if column not in data.column_names:
        raise ConfigurationError(f"{source} has no column {column!r}; it has {data.column_names}.")
    if column != "prompt":
        data = data.rename_column(column, "prompt")
    return data if limit is None else data.select(range(min(limit, len(data))))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(text: Any, where: str) -> float:
    try:
        number = float(text)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigurationError(f"{where}: {text!r} is not a number.")
    return number

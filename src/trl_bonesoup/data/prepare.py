"""Carries out a plan: reads data sets, leaves rows out, and writes files of prompts as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl_bonesoup.data.plan import DataPlan, FilePlan, Length
from trl_bonesoup.data.readers import READERS
from trl_bonesoup.errors import ConfigurationError

_TABLES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_TOKENIZED_AT_ONCE = 1000

Fields = dict[str, Any]


@dataclass(frozen=True)
class PreparedFile:
    """A file that was written, and what became of the rows that are not in it."""

    path: Path
    rows: int
    """Rows of the data set."""
    left_out: dict[str, int]
    """How many of them for each reason, in the order in which the reasons were applied."""

    @property
    def written(self) -> int:
        """Lines of the file."""
        return self.rows - sum(self.left_out.values())

    def text(self) -> str:
        """Say it in one line."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items() if count)
        return f"{self.path}: {self.written} of {self.rows} rows" + (f"; left out: {reasons}" if reasons else "")


def prepare(plan: DataPlan, folder: str | Path, *, overwrite: bool = False) -> list[PreparedFile]:
    """Write the files of a plan; all of them appear, or none.

    For each file, rows that are not of the reader's kind go first, then those with too short or too
    long texts in characters; `one_per` and `rows` choose among what is left, and what they chose is
    counted in tokens, as that takes longest. Rows whose prompt is in a file of `without`, or one of
    whose columns is empty, go last.

    Args:
        plan: what to write.
        folder: where to; it is made.
        overwrite: replace files of the same names.

    Raises:
        ConfigurationError: if a file is there already, a data set or tokenizer cannot be loaded, a
            template names a field that its rows do not have, or no row is left.
    """
    folder = Path(folder)
    if (there := [str(folder / name) for name in plan.files if (folder / name).exists()]) and not overwrite:
        raise ConfigurationError(
            f"{', '.join(there)} exist already. Choose another folder, or pass overwrite to replace them."
        )
    prompts: dict[str, set[str]] = {}
    done = []
    with _all_or_none(folder, list(plan.files)) as partial:
        for name, file in plan.files.items():
            lines, rows, left_out = _lines(file, [prompts[other] for other in file.without])
            prepared = PreparedFile(folder / name, rows, left_out)
            if not lines:
                raise ConfigurationError(f"Nothing is left for {prepared.text()}.")
            prompts[name] = {line["prompt"] for line in lines}
            with partial[name].open("w", encoding="utf-8") as out:
                out.writelines(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
            done.append(prepared)
    return done


def _lines(file: FilePlan, without: Sequence[set[str]]) -> tuple[list[dict[str, str]], int, dict[str, int]]:
    """Return the lines of a file, how many rows its data set has, and how many were left out for each reason."""
    data = load_rows(file.source, file.subset, file.split, file.revision)
    left_out: dict[str, int] = {}
    kept: list[Any] = [fields for row in data if (fields := _read(row, file)) is not None]
    left_out["of another kind"] = len(data) - len(kept)

    def keep(fewer: list[Any], reason: str) -> None:
        nonlocal kept
        left_out[reason] = left_out.get(reason, 0) + len(kept) - len(fewer)
        kept = fewer

    for length in (length for length in file.lengths if length.tokenizer is None):
        keep(_of_length(kept, length), f"not of {length.between[0]} to {length.between[1]} characters")
    if file.one_per is not None:
        keep(_one_per(kept, file.one_per), "repeated")
    keep(kept[file.chosen], "not chosen")
    for length in (length for length in file.lengths if length.tokenizer is not None):
        keep(_of_length(kept, length), f"not of {length.between[0]} to {length.between[1]} tokens")
    kept = [{column: render(template, fields) for column, template in file.columns.items()} for fields in kept]
    keep([line for line in kept if not any(line["prompt"] in prompts for prompts in without)], "in another file")
    keep([line for line in kept if all(text.strip() for text in line.values())], "with an empty text")
    return kept, len(data), left_out


def _read(row: dict[str, Any], file: FilePlan) -> Fields | None:
    try:
        return READERS[file.reader](row)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ConfigurationError(
            f"The reader {file.reader} cannot read {file.source} ({type(error).__name__}: {error}), whose columns are "
            f"{', '.join(sorted(row))}. Choose another reader; `columns` reads every data set."
        ) from error


def load_rows(source: str, subset: str | None, split: str, revision: str | None) -> Any:
    """Return a split of a data set.

    Raises:
        ConfigurationError: if it cannot be loaded.
    """
    from datasets import load_dataset

    kind = _TABLES.get(Path(source).suffix)
    try:
        if kind is not None:
            return load_dataset(kind, data_files=source, split="train")
        # The cache knows some folders by their names alone, so they are read anew. On the Hub revisions differ.
        anew = {"download_mode": "reuse_cache_if_exists", "verification_mode": "no_checks"}
        settings = anew if Path(source).is_dir() else {}
        return load_dataset(source, subset, split=split, revision=revision, **settings)
    except Exception as error:
        what = ", ".join(part for part in (subset, f"split {split}") if part) if kind is None else kind
        raise ConfigurationError(f"The data set {source} ({what}) cannot be loaded: {error}") from error


def render(template: str, fields: Fields) -> str:
    """Return a template filled in; a list that is too short for it gives an empty text.

    Raises:
        ConfigurationError: if it names a field that is not there.
    """
    try:
        return template.format(**fields)
    except IndexError:
        return ""
    except (KeyError, AttributeError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{template!r} cannot be filled in ({error}); the fields of a row are {', '.join(sorted(fields))}."
        ) from error


def _of_length(rows: list[Fields], length: Length) -> list[Fields]:
    shortest, longest = length.between
    lengths = _lengths((render(length.text, fields) for fields in rows), length.tokenizer)
    return [fields for fields, found in zip(rows, lengths, strict=True) if shortest <= found <= longest]


def _lengths(texts: Iterable[str], tokenizer: str | None) -> Iterator[int]:
    if tokenizer is None:
        yield from map(len, texts)
        return
    encode, pending = _tokenizer(tokenizer), list(texts)
    for start in range(0, len(pending), _TOKENIZED_AT_ONCE):
        yield from map(len, encode(pending[start : start + _TOKENIZED_AT_ONCE])["input_ids"])


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"The tokenizer {name}, by which lengths are counted, cannot be loaded: {error}"
        ) from error


def _one_per(rows: list[Fields], template: str) -> list[Fields]:
    first: dict[str, Fields] = {}
    for fields in rows:
        first.setdefault(render(template, fields), fields)
    return [first[text] for text in sorted(first)]


@contextmanager
def _all_or_none(folder: Path, names: Sequence[str]) -> Iterator[Mapping[str, Path]]:
    """Yield a path to write each file to, beside its place; they are moved there when the block has ended."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"Nothing can be written to {folder}: {error.strerror}. Choose another one."
        ) from error
    partial = {name: folder / f".{name}.partial" for name in names}
    try:
        yield partial
        for name, path in partial.items():
            path.replace(folder / name)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)

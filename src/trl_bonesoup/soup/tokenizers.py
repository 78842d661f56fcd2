"""Whether models read the same ids for the same text: their tokenizers as files, compared without loading them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from trl_bonesoup.errors import SoupError

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.*",
)
"""What belongs to a tokenizer in the folder of a model, of any kind."""

_FAST = "tokenizer.json"
_SLOW = ("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt")
_HOW_TO_LOAD = ("version", "truncation", "padding")
"""Entries of tokenizer.json that say how it was last called and not what its ids mean."""

_OTHER_TOKENIZERS = (
    "A soup has one tokenizer. If only added tokens differ, mergekit can bring full checkpoints together with "
    "`tokenizer: {source: union}` (docs/mergekit.md)."
)

__all__ = ["TOKENIZER_FILES", "check_tokenizers", "has_tokenizer"]


def has_tokenizer(folder: Path) -> bool:
    """Return whether a model was saved with its tokenizer."""
    return any((folder / name).is_file() for name in ("tokenizer_config.json", _FAST, *_SLOW[:-1]))


def check_tokenizers(backbones: Sequence[Path], base: Path | None) -> None:
    """Check that the backbones have the same tokenizer and chat template, and that the base knows no other ids.

    Models without a tokenizer of their own are passed over. The base model may lack tokens that were
    added for training.

    Raises:
        SoupError: showing both sides.
    """
    with_tokenizer = [folder for folder in backbones if (folder / _FAST).is_file() or _slow_files(folder)]
    for other in with_tokenizer[1:]:
        _check_same(with_tokenizer[0], other)
        _check_template(with_tokenizer[0], other)
    if base is not None and with_tokenizer and (base / _FAST).is_file():
        _check_same(with_tokenizer[0], base, whole=False)


def _check_same(first: Path, other: Path, *, whole: bool = True) -> None:
    files = [folder / _FAST for folder in (first, other)]
    if not all(file.is_file() for file in files):
        if whole:
            _check_slow(first, other)
        return
    contents = [file.read_bytes() for file in files]
    if contents[0] == contents[1]:
        return
    read = [_parse(content, file) for content, file in zip(contents, files, strict=True)]
    ids = [_ids(tokenizer) for tokenizer in read]
    tokens = ids[0].keys() | ids[1].keys() if whole else ids[0].keys() & ids[1].keys()
    for token in sorted(tokens):
        numbers = [own.get(token, "missing") for own in ids]
        if numbers[0] != numbers[1]:
            raise SoupError(
                f"The token {token!r} has id {numbers[0]} in the tokenizer of {first} but {numbers[1]} in that of "
                f"{other}. {_OTHER_TOKENIZERS}"
            )
    for key in read[0].keys() | read[1].keys() if whole else ():
        if key not in _HOW_TO_LOAD and read[0].get(key) != read[1].get(key):
            raise SoupError(f"The tokenizers of {first} and {other} differ in their {key}. {_OTHER_TOKENIZERS}")


def _check_slow(first: Path, other: Path) -> None:
    for name in sorted(_slow_files(first) & _slow_files(other)):
        if (first / name).read_bytes() != (other / name).read_bytes():
            raise SoupError(f"The tokenizers of {first} and {other} differ in {name}. {_OTHER_TOKENIZERS}")


def _check_template(first: Path, other: Path) -> None:
    templates = [_template(folder) for folder in (first, other)]
    if templates[0] != templates[1]:
        pairs = zip(templates[0] or "", templates[1] or "", strict=False)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        shown = ["none" if text is None else repr(text[max(common - 20, 0) :][:60]) for text in templates]
        raise SoupError(
            f"The chat templates differ from character {common} on: {shown[0]} in {first}, {shown[1]} in {other}. The "
            "backbones were trained on prompts written in other ways; give all of them the same template."
        )


def _template(folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    file = folder / "tokenizer_config.json"
    template = _parse(file.read_bytes(), file).get("chat_template") if file.is_file() else None
    return template if template is None else str(template)


def _slow_files(folder: Path) -> set[str]:
    return {name for name in _SLOW if (folder / name).is_file()}


def _ids(tokenizer: dict[str, Any]) -> dict[str, int]:
    """Return the ids of all tokens; Unigram models list them in their order."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):
        vocabulary = {entry[0]: i for i, entry in enumerate(vocabulary)}
    added = {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens") or ()}
    return {**(vocabulary or {}), **added}


def _parse(content: bytes, file: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except ValueError as error:
        raise SoupError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(parsed, dict):
        raise SoupError(f"{file} is no tokenizer of Hugging Face's.")
    return parsed

"""What a prompt may be: TRL takes a whole batch for what its first prompt is, a text or a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from trl_bonesoup.errors import ConfigurationError

__all__ = ["check_kinds", "check_rows", "first_rows"]


def check_kinds(prompts: Iterable[Any], *, has_template: bool) -> None:
    """Raise `ConfigurationError` unless all prompts are texts, or all are conversations that can be rendered.

    Args:
        prompts: a column "prompt".
        has_template: whether the tokenizer has a chat template.
    """
    first = None
    for row, prompt in enumerate(prompts):
        kind = _kind(prompt)
        if kind is None:
            raise ConfigurationError(
                f"The prompt in row {row} is {_shown(prompt)}; a prompt is a text, or a list of messages, each with a "
                "'role' and a 'content'."
            )
        first = first or kind
        if kind != first:
            raise ConfigurationError(
                f"The prompt in row {row} is {kind} and that in row 0 is {first}. Train on one kind: a text t is the "
                "conversation [{'role': 'user', 'content': t}]."
            )
    if first == _CONVERSATION and not has_template:
        raise ConfigurationError(
            "The prompts are conversations and the tokenizer has no chat template to render them with. Set "
            "tokenizer.chat_template and pass the tokenizer as processing_class, or give the prompts as texts."
        )


def check_rows(rows: Sequence[Any], *, has_template: bool) -> None:
    """Raise `ConfigurationError` for a batch of rows without usable prompts; see `check_kinds`."""
    for row in rows:
        if not isinstance(row, Mapping) or "prompt" not in row:
            found = list(row) if isinstance(row, Mapping) else type(row).__name__
            raise ConfigurationError(f"Every row of train_dataset needs a 'prompt'; one has {found}.")
    check_kinds((row["prompt"] for row in rows), has_template=has_template)


def first_rows(dataset: Any, count: int) -> list[Any]:
    """Return the first rows of a data set, with a length or without, from the beginning again where it is shorter.

    Raises:
        ConfigurationError: if it has none.
    """
    rows = list(islice(iter(dataset), count))
    if not rows:
        raise ConfigurationError("train_dataset has no rows.")
    return [rows[i % len(rows)] for i in range(count)]


_TEXT, _CONVERSATION = "a text", "a conversation"


def _kind(prompt: Any) -> str | None:
    if isinstance(prompt, str):
        return _TEXT
    if not isinstance(prompt, (list, tuple)) or not prompt:
        return None
    return _CONVERSATION if all(isinstance(message, Mapping) and "role" in message for message in prompt) else None


def _shown(prompt: Any) -> str:
    return "None" if prompt is None else f"{type(prompt).__name__} {str(prompt)[:60]!r}"

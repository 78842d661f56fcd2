"""What reward models and judges read: texts of prompts, columns of the data set, fields of templates."""

from __future__ import annotations

import string
from collections.abc import Iterable
from typing import Any, Protocol

from trl_bonesoup.errors import ConfigurationError, RewardError


class PromptText(Protocol):
    """What makes one text of a prompt, which is a string or a list of messages."""

    def __call__(self, prompt: Any, /) -> str:
        """Return the text."""
        ...


def last_user_message(prompt: Any) -> str:
    """Return the text of a conversation's last user message; a string stays as it is.

    >>> last_user_message([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])
    'Hi'
    """
    if isinstance(prompt, str):
        return prompt
    for message in reversed(prompt):
        if message["role"] == "user":
            return str(message["content"])
    raise RewardError(f"A conversation has no user message; its roles are {[message['role'] for message in prompt]}.")


def conversation(prompt: Any) -> str:
    """Return a whole conversation, one "role: content" per line; a string stays as it is.

    >>> conversation([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}])
    'system: Be kind.\\nuser: Hi'
    """
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def prompt_texts(prompts: list, columns: dict[str, Any], prompt_text: PromptText, column: str | None) -> list[str]:
    """Return the text of each prompt, or of another column of the data set."""
    if column is not None:
        prompts = reward_column(columns, column, "prompt_column")
    return [prompt_text(prompt) for prompt in prompts]


def reward_column(columns: dict[str, Any], column: str, setting: str) -> list:
    """Return a column of the data set, or say which ones there are."""
    if not isinstance(columns.get(column), list):
        known = sorted(key for key, value in columns.items() if isinstance(value, list))
        raise ConfigurationError(
            f"The data set has no column {column!r} ({setting}); besides the prompts it has {known}."
        )
    return columns[column]


def template_fields(templates: Iterable[str]) -> set[str]:
    """Return the names of the fields in templates."""
    return {name for text in templates for _, name, _, _ in string.Formatter().parse(text) if name is not None}

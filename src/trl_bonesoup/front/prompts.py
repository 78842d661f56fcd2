"""Prompts for an evaluation: read from lists or data sets, checked, and encoded as the model expects them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trl_bonesoup.errors import ConfigurationError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Prompt = str | Sequence[Mapping[str, Any]]
"""A text to continue, or a conversation to answer: messages with "role" and "content"."""

_RESERVED_COLUMNS = ("prompt", "prompts", "completion", "completions", "completion_ids")

__all__ = ["Prompt", "Prompts", "read_prompts"]


@dataclass(frozen=True)
class Prompts:
    """P prompts of one kind, as the caller gave them, as text, and as token ids."""

    given: list[Any]
    texts: list[str]
    token_ids: list[list[int]]
    columns: dict[str, list[Any]]
    """The data set's other columns, which reward functions receive by name."""
    conversational: bool
    tokenizer: PreTrainedTokenizerBase

    def __len__(self) -> int:
        return len(self.given)

    def completion(self, text: str) -> str | list[dict[str, str]]:
        """Return an answer in the form that TRL passes to reward functions: text, or a list with a message."""
        return [{"role": "assistant", "content": text}] if self.conversational else text

    def decode(self, token_ids: list[list[int]]) -> list[str]:
        """Return the texts of answers, without special tokens."""
        return [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in token_ids]

    def digest(self) -> str:
        """Return the SHA-256 of the prompts, which tells whether two fronts were measured on the same ones."""
        return hashlib.sha256(json.dumps(self.given, ensure_ascii=False, default=str).encode()).hexdigest()


def read_prompts(prompts: Sequence[Prompt] | Dataset, tokenizer: PreTrainedTokenizerBase | None) -> Prompts:
    """Check and encode prompts: texts as they are, conversations through the chat template.

    A conversation that ends with a message of the assistant is continued, any other is answered.

    Args:
        prompts: a list of texts, a list of conversations, or a `datasets.Dataset` with a "prompt"
            column of either.
        tokenizer: the soup's.

    Raises:
        ConfigurationError: for fewer than 2 prompts, texts mixed with conversations, anything else,
            an empty prompt, or a tokenizer or chat template that is missing.
    """
    if tokenizer is None:
        raise ConfigurationError("This soup has no tokenizer; save one beside its backbones or its base model.")
    given, columns = _columns(prompts)
    if len(given) < 2:
        raise ConfigurationError(
            f"At least 2 prompts are needed, since intervals come from the spread over prompts; got {len(given)}."
        )
    kinds = {_kind(prompt, index) for index, prompt in enumerate(given)}
    if len(kinds) > 1:
        raise ConfigurationError("The prompts mix texts and conversations; reward functions expect one kind.")
    conversational = kinds == {"conversation"}
    texts = [_chat_text(prompt, tokenizer) for prompt in given] if conversational else list(given)
    token_ids = [list(tokenizer(text, add_special_tokens=not conversational)["input_ids"]) for text in texts]
    for index, ids in enumerate(token_ids):
        if not ids:
            raise ConfigurationError(f"Prompt {index} is empty: {given[index]!r}.")
    return Prompts(given, texts, token_ids, columns, conversational, tokenizer)


def _columns(prompts: Any) -> tuple[list[Any], dict[str, list[Any]]]:
    names = getattr(prompts, "column_names", None)
    if names is None:
        if isinstance(prompts, (str, Mapping)) or not isinstance(prompts, Sequence):
            raise ConfigurationError(
                'prompts must be a list of texts or conversations, or a datasets.Dataset with a "prompt" column; '
                f"got {type(prompts).__name__}."
            )
        return list(prompts), {}
    if isinstance(names, dict) or not hasattr(prompts, "__len__"):
        raise ConfigurationError(
            f"prompts must be one split of a data set held in memory; got {type(prompts).__name__}."
        )
    if "prompt" not in names:
        raise ConfigurationError(f'The data set of prompts needs a column "prompt"; it has {list(names)}.')
    return list(prompts["prompt"]), {name: list(prompts[name]) for name in names if name not in _RESERVED_COLUMNS}


def _kind(prompt: Any, index: int) -> str:
    if isinstance(prompt, str):
        return "text"
    if (
        isinstance(prompt, Sequence)
        and len(prompt)
        and all(isinstance(message, Mapping) and {"role", "content"} <= set(message) for message in prompt)
    ):
        return "conversation"
    raise ConfigurationError(
        f'Prompt {index} must be a text or a list of messages with "role" and "content"; got {prompt!r:.200}.'
    )


def _chat_text(prompt: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.chat_template:
        raise ConfigurationError(
            "The prompts are conversations but the soup's tokenizer has no chat template; pass plain texts, or set "
            "soup.tokenizer.chat_template."
        )
    continued = prompt[-1]["role"] == "assistant"
    text = tokenizer.apply_chat_template(
        [dict(message) for message in prompt],
        tokenize=False,
        add_generation_prompt=not continued,
        continue_final_message=continued,
    )
    return str(text)

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

__all__ = ["EncodedPrompts", "Prompt", "Prompts", "encode_prompts", "read_prompts"]


@dataclass(frozen=True)
class Prompts:
    """P prompts of one kind, as the caller gave them."""

    given: list[Any]
    columns: dict[str, list[Any]]
    """The data set's other columns, which reward functions receive by name."""
    conversational: bool

    def __len__(self) -> int:
        return len(self.given)

    def completion(self, text: str) -> str | list[dict[str, str]]:
        """Return an answer in the form that TRL passes to reward functions: text, or a list with a message."""
        return [{"role": "assistant", "content": text}] if self.conversational else text

    def digest(self) -> str:
        """Return the SHA-256 of the prompts, which tells whether two fronts were measured on the same ones."""
        return hashlib.sha256(json.dumps(self.given, ensure_ascii=False, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class EncodedPrompts:
    """P prompts as one tokenizer writes them: texts as they are, conversations through its chat template."""

    texts: list[str]
    token_ids: list[list[int]]
    tokenizer: PreTrainedTokenizerBase

    def decode(self, token_ids: list[list[int]]) -> list[str]:
        """Return the texts of answers, without special tokens."""
        return [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in token_ids]

    def by_length(self) -> list[int]:
        """Return the prompts, short ones first."""
        return sorted(range(len(self.token_ids)), key=lambda prompt: len(self.token_ids[prompt]))


def read_prompts(prompts: Sequence[Prompt] | Dataset) -> Prompts:
    """Check prompts: a list of texts, a list of conversations, or a data set with a "prompt" column of either.

    Raises:
        ConfigurationError: for fewer than 2 prompts, texts mixed with conversations, or anything else.
    """
    given, columns = _columns(prompts)
    if len(given) < 2:
        raise ConfigurationError(
            f"At least 2 prompts are needed, since intervals come from the spread over prompts; got {len(given)}."
        )
    kinds = {_kind(prompt, index) for index, prompt in enumerate(given)}
    if len(kinds) > 1:
        raise ConfigurationError("The prompts mix texts and conversations; reward functions expect one kind.")
    return Prompts(given, columns, kinds == {"conversation"})


def encode_prompts(prompts: Prompts, tokenizer: PreTrainedTokenizerBase | None) -> EncodedPrompts:
    """Encode prompts for a model.

    A conversation that ends with a message of the assistant is continued, any other is answered.

    Args:
        prompts: what to encode.
        tokenizer: the model's.

    Raises:
        ConfigurationError: for an empty prompt, or a tokenizer or chat template that is missing.
    """
    if tokenizer is None:
        raise ConfigurationError("The model has no tokenizer; save one beside it, or beside its base model.")
    chat = prompts.conversational
    texts = [_chat_text(prompt, tokenizer) for prompt in prompts.given] if chat else list(prompts.given)
    token_ids = [list(tokenizer(text, add_special_tokens=not chat)["input_ids"]) for text in texts]
    for index, ids in enumerate(token_ids):
        if not ids:
            raise ConfigurationError(f"Prompt {index} is empty: {prompts.given[index]!r}.")
    return EncodedPrompts(texts, token_ids, tokenizer)


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
            "The prompts are conversations but the model's tokenizer has no chat template; pass plain texts, or set "
            "one (soup.tokenizer.chat_template)."
        )
    continued = prompt[-1]["role"] == "assistant"
    text = tokenizer.apply_chat_template(
        [dict(message) for message in prompt],
        tokenize=False,
        add_generation_prompt=not continued,
        continue_final_message=continued,
    )
    return str(text)

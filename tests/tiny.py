"""Tiny models and tokenizers, built from a config: nothing is downloaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(29))]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }} {% endfor %}{% if add_generation_prompt %}w0 {% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 32 words, one token each."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_llama(seed: int = 0, **changes: object) -> LlamaForCausalLM:
    """A random Llama with 2 layers, hidden size 16 and the vocabulary of `tiny_tokenizer`."""
    settings = {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
        "initializer_range": 0.2,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


def save_tiny(folder: Path, seed: int = 0, **changes: object) -> Path:
    """Save a tiny model with its tokenizer and return the folder."""
    tiny_llama(seed, **changes).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def count_word(word: str) -> Callable[..., list[float]]:
    """A reward function: how often the completion says a word."""

    def reward(completions: list[str], **columns: Any) -> list[float]:
        return [float(text.split().count(word)) for text in completions]

    reward.__name__ = f"says_{word}"
    return reward


def says(first: int, last: int) -> Callable[..., list[float]]:
    """A reward function: how many words of a range are in the completion."""

    def reward(completions: list[str], **columns: Any) -> list[float]:
        return [float(sum(f"w{i}" in text.split() for i in range(first, last))) for text in completions]

    reward.__name__ = reward.__qualname__ = f"says_{first}_to_{last}"
    return reward

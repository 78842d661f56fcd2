"""The tokens that all prompts of a batch begin with, run through the model once instead of once per row.

Chat templates and system prompts give every prompt the same beginning. Under causal attention its
keys and values do not depend on what follows, so one row computes them for all. Dropout, if there is
any, falls on it once. Axis letters: B sequence, L token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

FEWEST_TOKENS = 64
"""Saved tokens from which another, short pass pays."""


def shared_prefix(input_ids: Tensor, attention_mask: Tensor, num_tokens: int) -> int:
    """Return how many tokens all rows begin with, 0 if sharing them does not pay.

    Args:
        input_ids: prompts, padded on the left, and completions, (B, L).
        attention_mask: 1 for their tokens.
        num_tokens: tokens of a completion, at the end of each row. At least one token before them is
            left out of the prefix, since the first token of a completion is chosen there.
    """
    width = input_ids.shape[1] - num_tokens
    padding_B = attention_mask[:, :width].long().argmax(dim=1)
    longest = width - int(padding_B.max()) - 1
    if (len(input_ids) - 1) * longest < FEWEST_TOKENS:
        return 0
    columns_BL = padding_B.unsqueeze(1) + torch.arange(longest, device=input_ids.device)
    first_BL = input_ids.gather(1, columns_BL)
    length = int((first_BL == first_BL[0]).all(dim=0).long().cumprod(dim=0).sum())
    return length if (len(input_ids) - 1) * length >= FEWEST_TOKENS else 0


def has_plain_attention(config: Any) -> bool:
    """Whether every layer attends to all earlier tokens, which is what a shared prefix relies on."""
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    return set(layers) == {"full_attention"} and not getattr(config, "sliding_window", None)


def after_prefix(trunk: nn.Module, input_ids: Tensor, attention_mask: Tensor, length: int) -> dict[str, Any]:
    """Run the first `length` tokens once and return the model's inputs for what follows them.

    Args:
        trunk: the decoder below the language-model head; its hooks are not run.
        input_ids, attention_mask: as in `shared_prefix`.
        length: what that returned.

    Returns:
        "input_ids" (B, L - length), "attention_mask" (B, L), "position_ids" and "past_key_values",
        through which the gradient of all rows reaches the prefix.
    """
    padding_B1 = attention_mask.long().argmax(dim=1, keepdim=True)
    start = int(padding_B1[0])
    prefix = input_ids[:1, start : start + length]
    cache = trunk.forward(input_ids=prefix, use_cache=True).past_key_values
    cache.batch_repeat_interleave(len(input_ids))
    # Dropping `length` columns leaves, before what follows, as many tokens of the prefix as there were of padding.
    columns_L = torch.arange(input_ids.shape[1] - length, device=input_ids.device)
    follows_BL = (columns_L >= padding_B1) * attention_mask[:, length:]
    return {
        "input_ids": input_ids[:, length:],
        "attention_mask": torch.cat([torch.ones_like(input_ids[:, :length]), follows_BL.to(input_ids.dtype)], dim=1),
        "position_ids": (columns_L + length - padding_B1).clamp(min=0),
        "past_key_values": cache,
    }

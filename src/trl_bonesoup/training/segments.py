"""From segments of a completion's text to its tokens: where the parts of dense scores are paid.

Axis letters: B sequence, T completion token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trl_bonesoup.rewards.dense import DenseScore


def segment_rewards(
    scores: Sequence[float | None],
    token_ids: Sequence[Sequence[int]],
    decode: Callable[[Sequence[int]], str],
    width: int,
) -> Tensor:
    """Return the parts of dense scores at the tokens where their segments end, (B, width).

    Args:
        scores: one per completion; those that are not a `DenseScore` have no parts.
        token_ids: the generated tokens of each completion.
        decode: turns tokens into the text that the reward function saw.
        width: T.
    """
    parts_BT = torch.zeros(len(scores), width)
    for row, (score, ids) in enumerate(zip(scores, token_ids, strict=True)):
        if isinstance(score, DenseScore) and len(ids):
            for end, part in score.segments:
                parts_BT[row, token_of(end, ids, decode)] += part
    return parts_BT


def token_of(end: int, ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> int:
    """Return the index of the first token at which the text has reached `end` characters; at most the last one.

    Found by bisection over decoded prefixes. A prefix may break a character of several bytes, which
    decodes to a replacement mark: it does not count until it is whole.
    """
    low, high = 0, len(ids) - 1
    while low < high:
        middle = (low + high) // 2
        if len(decode(ids[: middle + 1]).rstrip("\ufffd")) >= end:
            high = middle
        else:
            low = middle + 1
    return low

"""Segments of text find their tokens, also where a character is made of several."""

from collections.abc import Sequence

import pytest
import torch

from trl_bonesoup.rewards.dense import DenseScore
from trl_bonesoup.training.segments import segment_rewards, token_of

TEXT = "Né. Ça va?"  # 10 characters, 12 bytes: N é(2) . space Ç(2) a space v a ?


def decode(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize(
    ("end", "token"),
    [(1, 0), (2, 2), (3, 3), (4, 4), (5, 6), (6, 7), (10, 11), (99, 11)],
    ids=["N", "é is whole at its second byte", ".", "space", "Ç", "a", "end", "beyond the end"],
)
def test_the_token_that_completes_a_character(end: int, token: int) -> None:
    assert token_of(end, list(TEXT.encode()), decode) == token


def test_parts_land_on_their_tokens() -> None:
    ids = list(TEXT.encode())
    scores = [DenseScore([(3, 0.5), (10, -1.0), (10, 0.25)]), 7.0, None, DenseScore([(1, 1.0)])]
    parts = segment_rewards(scores, [ids, ids, ids, []], decode, width=13)
    expected = torch.zeros(4, 13)
    expected[0, 3], expected[0, 11] = 0.5, -0.75
    assert torch.equal(parts, expected)

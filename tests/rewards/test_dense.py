"""DenseScore is its sum, and remembers its parts."""

import copy
import pickle
from typing import Any

import pytest
import torch

from trl_bonesoup.rewards.dense import DenseScore


def test_it_is_the_number() -> None:
    score = DenseScore([(3, 0.25), (9, 0.5)])
    assert score == 0.75
    assert torch.tensor([score, 2.0]).tolist() == [0.75, 2.0]
    assert DenseScore([]) == 0.0


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda score: pickle.loads(pickle.dumps(score))])
def test_copies_keep_the_segments(again: Any) -> None:
    assert again(DenseScore([(3, 0.25), (9, 0.5)])).segments == ((3, 0.25), (9, 0.5))


@pytest.mark.parametrize("segments", [[(0, 1.0)], [(5, 1.0), (4, 1.0)], [(1.5, 1.0)], [(True, 1.0)]])
def test_ends_are_positions(segments: Any) -> None:
    with pytest.raises(ValueError, match="whole numbers of characters"):
        DenseScore(segments)

"""Running statistics equal those of all scores at once; weights go to the objectives they belong to."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trl_bonesoup.rewards.normalization import (
    ScoreNormalizer,
    combine_scores,
    objective_weights,
    score_correlation,
    score_statistics,
)


@given(
    seed=st.integers(0, 10_000), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), missing=st.floats(0, 0.5)
)
def test_running_statistics_equal_one_pass(seed: int, sizes: list[int], missing: float) -> None:
    random = np.random.default_rng(seed)
    scores = random.normal(loc=[0.0, 1e3], scale=[1.0, 50.0], size=(sum(sizes), 2))
    scores[random.random(scores.shape) < missing] = np.nan
    normalizer = ScoreNormalizer(2)
    for part in np.split(scores, np.cumsum(sizes)[:-1]):
        normalizer.update(torch.tensor(part))
    for i in range(2):
        present = scores[~np.isnan(scores[:, i]), i]
        if len(present) > 1:
            assert normalizer.mean_N[i] == pytest.approx(present.mean(), rel=1e-9, abs=1e-9)
            assert normalizer.std_N[i] == pytest.approx(present.std(), rel=1e-6)


def test_normalisation_by_hand() -> None:
    fixed = ScoreNormalizer(2, "fixed", mean=[1.0, -2.0], std=[2.0, 0.5])
    fixed.update(torch.full((4, 2), 9.0))
    result = fixed(torch.tensor([[3.0, -2.5], [1.0, math.nan]]))
    assert result[0].tolist() == [1.0, -1.0]
    assert result[1, 0] == 0.0
    assert result[1, 1].isnan()
    assert ScoreNormalizer(2, "none")(torch.tensor([[3.0, -2.5]])).tolist() == [[3.0, -2.5]]


def test_a_constant_objective_is_centred_but_not_blown_up() -> None:
    normalizer = ScoreNormalizer(1)
    normalizer.update(torch.full((8, 1), 0.1))
    assert abs(normalizer(torch.tensor([[0.1]])).item()) < 1e-6
    assert normalizer.std_N.tolist() == [1.0]


@pytest.mark.parametrize("constant", [0.1, 1e-9, -3e12, 0.0])
def test_equal_scores_of_any_size_have_no_scale(constant: float) -> None:
    """What rounding leaves of the differences between equal numbers is not divided by: 1 is taken instead."""
    scores_BN = torch.full((7, 1), constant, dtype=torch.float32)
    normalizer = ScoreNormalizer(1)
    for _ in range(5):
        normalizer.update(scores_BN)
    assert normalizer.std_N.tolist() == [1.0]
    assert normalizer(scores_BN).abs().max() <= 1e-7 * abs(constant)


@pytest.mark.parametrize("unit", [1e-12, 1e6, 1e30])
def test_the_unit_of_a_score_does_not_matter(unit: float) -> None:
    """1, 2, 6 have mean 3 and variance 14/3, in whatever unit they are given."""
    normalizer = ScoreNormalizer(1)
    scores_BN = torch.tensor([[1.0], [2.0], [6.0]]) * unit
    normalizer.update(scores_BN)
    expected = [[-2 / (14 / 3) ** 0.5], [-1 / (14 / 3) ** 0.5], [3 / (14 / 3) ** 0.5]]
    torch.testing.assert_close(normalizer(scores_BN), torch.tensor(expected))


def test_state_survives() -> None:
    first, second = ScoreNormalizer(2), ScoreNormalizer(2)
    first.update(torch.randn(5, 2))
    second.load_state_dict(first.state_dict())
    batch = torch.randn(3, 2)
    first.update(batch)
    second.update(batch)
    assert torch.equal(first.std_N, second.std_N)


def test_clipping_bounds_normalised_scores() -> None:
    scores = torch.tensor([[0.0, 9.0], [4.0, 1.0], [math.nan, 3.0]])
    fixed = ScoreNormalizer(2, "fixed", [2.0, 3.0], [0.5, 2.0], clip=2.5)
    assert fixed(scores)[:2].tolist() == [[-2.5, 2.5], [2.5, -1.0]]
    assert fixed(scores)[2, 0].isnan()
    assert ScoreNormalizer(2, "none", clip=3.0)(scores)[1].tolist() == [3.0, 1.0]


def test_combination_by_hand() -> None:
    scores = torch.tensor([[1.0, 2.0], [1.0, math.nan], [math.nan, 2.0], [math.nan, math.nan]])
    weights = objective_weights(scores, torch.tensor([0.7, 0.3]))
    assert weights.tolist() == [pytest.approx([0.7, 0.3]), [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    combined = combine_scores(scores, weights)
    assert combined[:3].tolist() == pytest.approx([1.3, 1.0, 2.0])
    assert combined[3].isnan()


def test_an_objective_without_weight_need_not_score() -> None:
    scores = torch.tensor([[1.0, math.nan], [math.nan, 5.0]])
    combined = combine_scores(scores, objective_weights(scores, torch.tensor([1.0, 0.0])))
    assert combined[0] == 1.0
    assert combined[1].isnan()


def test_statistics_and_correlation_by_hand() -> None:
    scores = np.array([[1.0, 4.0, 5.0], [2.0, 2.0, 5.0], [3.0, 0.0, 5.0], [9.0, math.nan, 5.0]])
    first, second, third = score_statistics(scores)
    assert (first.mean, second.mean, third.mean) == (3.75, 2.0, 5.0)
    assert second.std == pytest.approx(math.sqrt(8 / 3))
    assert third.std == 1.0
    assert score_correlation(scores) == [
        pytest.approx([1.0, -1.0, 0.0]),
        pytest.approx([-1.0, 1.0, 0.0]),
        pytest.approx([0.0, 0.0, 1.0]),
    ]
    assert score_correlation(scores[:1]) == np.eye(3).tolist()

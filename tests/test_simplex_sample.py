import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_bonesoup.errors import WeightsError
from trl_bonesoup.weights import check_preference, simplex_sample


@given(st.integers(2, 7), st.integers(0, 30), st.integers(0, 2**32))
def test_vertices_first_then_different_preferences_on_the_simplex(n, more, seed):
    sample = simplex_sample(n, n + more, seed)
    np.testing.assert_array_equal(sample[:n], np.eye(n))
    assert sample.shape == (n + more, n)
    check_preference(sample, n)
    assert len({tuple(row) for row in sample}) == n + more
    np.testing.assert_array_equal(sample, simplex_sample(n, n + more, seed))


def test_the_seed_decides_the_others():
    assert (simplex_sample(3, 9, 1)[3:] != simplex_sample(3, 9, 2)[3:]).any()


def test_the_others_are_uniform_on_the_simplex():
    """Of the uniform density on n = 4, μ_i has mean 1/4, variance 3/80, and P(μ_i > t) = (1 - t)^3."""
    drawn = simplex_sample(4, 40_004)[4:]
    np.testing.assert_allclose(drawn.mean(axis=0), 0.25, atol=0.004)
    np.testing.assert_allclose(drawn.var(axis=0), 3 / 80, atol=0.001)
    np.testing.assert_allclose((drawn > 0.5).mean(axis=0), 0.125, atol=0.008)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((1, 5), "objectives"), ((3, 2), "at least 3; got 2"), ((2, 2.5), "preferences"), ((2, 2, -1), "seed"),
     ((True, 4), "objectives")],
)  # fmt: skip
def test_other_sizes_are_refused(arguments, message):
    with pytest.raises(WeightsError, match=message):
        simplex_sample(*arguments)

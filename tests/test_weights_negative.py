"""`allow_negative`: preferences against an objective, which sum to 1 but leave the simplex."""

import numpy as np
import pytest

from trl_bonesoup.errors import WeightsError
from trl_bonesoup.weights import check_preference, circulant_weights, merging_coefficients


def test_negative_preference_is_refused_unless_asked_for():
    weights = circulant_weights(2, beta=0.6)
    with pytest.raises(WeightsError, match="negative"):
        merging_coefficients(weights, [1.2, -0.2])
    # B⁻¹ = [[3, -2], [-2, 3]], so λ = (3·1.2 + 2·0.2, -2·1.2 - 3·0.2).
    coefficients = merging_coefficients(weights, [1.2, -0.2], allow_negative=True)
    np.testing.assert_allclose(coefficients, [4.0, -3.0], atol=1e-12)


def test_negative_preference_with_extrapolation():
    # k = 1/(1-.5) = 2 on the first objective only: k∘μ = (2.4, -.2), λ = (7.6, -5.4).
    coefficients = merging_coefficients(circulant_weights(2, beta=0.6), [1.2, -0.2], [0.5, 0.0], allow_negative=True)
    np.testing.assert_allclose(coefficients, [7.6, -5.4], atol=1e-12)


def test_a_preference_on_the_simplex_is_not_changed_by_allowing_negative_ones():
    weights = circulant_weights(3, beta=0.6)
    preference = [0.5, 0.3, 0.2]
    np.testing.assert_array_equal(
        merging_coefficients(weights, preference, allow_negative=True),
        merging_coefficients(weights, preference),
    )


@pytest.mark.parametrize("preference", [[1.2, -0.1], [1.2, float("nan")], [1.0]])
def test_the_other_checks_stay(preference):
    with pytest.raises(WeightsError):
        check_preference(preference, 2, allow_negative=True)

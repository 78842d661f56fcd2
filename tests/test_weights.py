"""Each line of the mathematics against numbers worked out by hand, brute force, and its properties."""

import itertools
import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from trl_bonesoup.errors import BoneSoupError, LargeCoefficientsWarning, WeightsError
from trl_bonesoup.weights import (
    check_column,
    check_combination_weights,
    check_preference,
    circulant_weights,
    merging_coefficients,
    simplex_grid,
)


def simplex_points(n):
    """Preferences of n objectives, vertices and faces included."""
    weights = st.lists(st.integers(0, 100), min_size=n, max_size=n).filter(any)
    return weights.map(lambda parts: np.array(parts) / sum(parts))


@st.composite
def circulant_cases(draw):
    """(n, β) with β far enough above 1/n for coefficients below about 20."""
    n = draw(st.integers(2, 6))
    share = draw(st.floats(0.05, 1.0))
    return n, 1 / n + share * (1 - 1 / n)


@st.composite
def column_stochastic(draw, n):
    """B whose columns lie on the simplex with half the mass on the diagonal at least: invertible."""
    noise = np.stack([draw(simplex_points(n)) for _ in range(n)], axis=1)
    return 0.6 * np.eye(n) + 0.4 * noise


def determinant(rows):
    """Leibniz' sum over permutations, in exact fractions."""
    n = len(rows)
    total = Fraction(0)
    for order in itertools.permutations(range(n)):
        inversions = sum(order[i] > order[j] for i in range(n) for j in range(i + 1, n))
        total += (-1) ** inversions * math.prod(rows[i][order[i]] for i in range(n))
    return total


def solve_by_cramer(matrix, target):
    """λ by Cramer's rule in exact fractions: shares no code and no rounding with a linear solver."""
    rows = [[Fraction(float(x)) for x in row] for row in matrix]
    right = [Fraction(float(x)) for x in target]
    whole = determinant(rows)
    replaced = [[[*row[:j], right[i], *row[j + 1 :]] for i, row in enumerate(rows)] for j in range(len(rows))]
    return np.array([float(determinant(one) / whole) for one in replaced])


class TestCirculantWeights:
    def test_two_objectives(self):
        np.testing.assert_allclose(circulant_weights(2, 0.7), [[0.7, 0.3], [0.3, 0.7]], atol=1e-15)

    def test_three_objectives_share_the_rest_equally(self):
        expected = [[0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.2, 0.2, 0.6]]
        np.testing.assert_allclose(circulant_weights(3, 0.6), expected, atol=1e-15)

    def test_beta_one_is_rewarded_soups(self):
        np.testing.assert_array_equal(circulant_weights(4, 1.0), np.eye(4))

    def test_is_float64(self):
        assert circulant_weights(2, 0.7).dtype == np.float64

    @pytest.mark.parametrize(
        ("n", "beta", "condition"),
        [(2, 0.6, 5.0), (2, 0.7, 2.5), (2, 0.8, 5 / 3), (3, 0.6, 2.5), (4, 0.7, 5 / 3), (5, 1.0, 1.0)],
    )
    def test_condition_number_is_one_over_a(self, n, beta, condition):
        # a = (Nβ-1)/(N-1): .2, .4, .6, .4, .6 and 1.
        assert np.linalg.cond(circulant_weights(n, beta)) == pytest.approx(condition, rel=1e-9)

    @given(circulant_cases())
    def test_satisfies_the_three_rules(self, case):
        n, beta = case
        weights = check_combination_weights(circulant_weights(n, beta), require_dominance=True)
        np.testing.assert_allclose(weights.sum(axis=0), 1.0, atol=1e-12)
        np.testing.assert_allclose(np.diag(weights), beta)
        np.testing.assert_array_equal(weights, weights.T)

    @pytest.mark.parametrize("n", [1, 0, -2, 2.0, "2", True, None])
    def test_refuses_a_number_of_objectives(self, n):
        with pytest.raises(WeightsError, match=r"at least 2; got") as caught:
            circulant_weights(n, 0.7)
        assert repr(n) in str(caught.value)

    @pytest.mark.parametrize(("n", "beta"), [(2, 0.5), (2, 0.3), (2, 1.0001), (3, 1 / 3), (2, 0), (2, -0.7)])
    def test_refuses_a_beta_outside_its_range(self, n, beta):
        with pytest.raises(WeightsError, match=rf"in \(1/{n}, 1\] for {n} objectives; got") as caught:
            circulant_weights(n, beta)
        assert str(float(beta)) in str(caught.value)

    @pytest.mark.parametrize("beta", [math.nan, math.inf, -math.inf])
    def test_refuses_a_beta_that_is_not_finite(self, beta):
        with pytest.raises(WeightsError, match="must be finite"):
            circulant_weights(2, beta)

    @pytest.mark.parametrize("beta", ["high", None, object()])
    def test_refuses_a_beta_that_is_no_number(self, beta):
        with pytest.raises(WeightsError, match="beta"):
            circulant_weights(2, beta)

    def test_refuses_one_beta_per_objective(self):
        with pytest.raises(WeightsError, match="must be one number"):
            circulant_weights(2, [0.7, 0.8])

    def test_refuses_a_beta_too_close_to_the_singular_one(self):
        with pytest.raises(WeightsError, match="choose a larger beta"):
            circulant_weights(2, 0.5 + 1e-9)


class TestCombinationWeights:
    def test_accepts_any_invertible_matrix_with_columns_on_the_simplex(self):
        weights = [[0.2, 0.9], [0.8, 0.1]]
        np.testing.assert_array_equal(check_combination_weights(weights), weights)

    def test_returns_a_copy(self):
        given_weights = np.eye(2)
        check_combination_weights(given_weights)[0, 0] = 7.0
        assert given_weights[0, 0] == 1.0

    def test_sums_are_over_columns_and_not_rows(self):
        # Rows sum to 1, columns to 1.2 and .8.
        with pytest.raises(WeightsError, match=r"column 0 .* must sum to 1; .* sums to 1\.2"):
            check_combination_weights([[0.7, 0.3], [0.5, 0.5]])
        check_combination_weights([[0.7, 0.5], [0.3, 0.5]])

    def test_names_the_column_with_a_negative_entry(self):
        with pytest.raises(WeightsError, match=r"No entry of column 1 .* may be negative; got \[-0\.5, 1\.5\]"):
            check_combination_weights([[1.0, -0.5], [0.0, 1.5]])

    @pytest.mark.parametrize("excess", [0.9e-6, -0.9e-6])
    def test_a_sum_may_be_off_by_rounding(self, excess):
        check_combination_weights([[1.0 + excess, 0.0], [0.0, 1.0]])

    @pytest.mark.parametrize("excess", [2e-6, -2e-6])
    def test_a_sum_may_not_be_off_by_more(self, excess):
        with pytest.raises(WeightsError, match="must sum to 1"):
            check_combination_weights([[1.0 + excess, 0.0], [0.0, 1.0]])

    @pytest.mark.parametrize(
        "weights", [[[0.5, 0.5], [0.5, 0.5]], [[0.2, 0.5, 0.35], [0.3, 0.1, 0.2], [0.5, 0.4, 0.45]]]
    )
    def test_refuses_a_singular_matrix(self, weights):
        # In the second, column 2 is the mean of the other two.
        with pytest.raises(WeightsError, match="must be invertible; got a matrix with condition number"):
            check_combination_weights(weights)

    @pytest.mark.parametrize("weights", [0.7, [0.7, 0.3], [[1.0]], np.ones((2, 3)) / 2, np.ones((2, 2, 2)), []])
    def test_refuses_any_other_shape(self, weights):
        with pytest.raises(WeightsError, match="square matrix of at least 2 by 2") as caught:
            check_combination_weights(weights)
        assert str(np.shape(weights)) in str(caught.value)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_refuses_entries_that_are_not_finite(self, bad):
        with pytest.raises(WeightsError, match="must be finite"):
            check_combination_weights([[bad, 0.0], [0.0, 1.0]])

    @pytest.mark.parametrize("weights", [[[0.7], [0.3, 0.7]], [["a", 0], [0, 1]], None])
    def test_refuses_what_is_not_numbers(self, weights):
        with pytest.raises(WeightsError, match="combination weights must be"):
            check_combination_weights(weights)

    def test_dominance_needs_one_largest_entry(self):
        weights = [[0.4, 0.1, 0.2], [0.4, 0.8, 0.2], [0.2, 0.1, 0.6]]
        check_combination_weights(weights)
        with pytest.raises(WeightsError, match=r"column 0 is .* rows \[0, 1\] share the largest"):
            check_combination_weights(weights, require_dominance=True)

    def test_dominance_needs_a_different_objective_in_each_column(self):
        weights = [[0.9, 0.6], [0.1, 0.4]]
        check_combination_weights(weights)
        with pytest.raises(WeightsError, match=r"dominant rows are \[0, 0\]"):
            check_combination_weights(weights, require_dominance=True)

    def test_dominance_may_be_off_the_diagonal(self):
        check_combination_weights([[0.2, 0.9], [0.8, 0.1]], require_dominance=True)


class TestColumnAndPreference:
    @pytest.mark.parametrize("column", [[0.7, 0.3], [0.0, 1.0], (0.5, 0.5)])
    def test_accepts_a_column_on_the_simplex(self, column):
        np.testing.assert_array_equal(check_column(column, 2), column)

    @pytest.mark.parametrize("column", [[1.0], [0.5, 0.3, 0.2], [[0.7, 0.3]], 1.0])
    def test_refuses_a_column_of_another_length(self, column):
        with pytest.raises(WeightsError, match=r"one entry for each of the 2 objectives; got shape \("):
            check_column(column, 2)

    @pytest.mark.parametrize("column", [[0.7, 0.2], [1.3, -0.3], [math.nan, 1.0]])
    def test_refuses_a_column_off_the_simplex(self, column):
        with pytest.raises(WeightsError, match=r"column of combination weights|combination weights must be finite"):
            check_column(column, 2)

    @pytest.mark.parametrize("preference", [[0.7, 0.3], [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]])
    def test_accepts_one_preference_or_many(self, preference):
        np.testing.assert_array_equal(check_preference(preference, 2), preference)

    @pytest.mark.parametrize("preference", [[1.0], [0.5, 0.3, 0.2], 1.0, [[[0.5, 0.5]]], []])
    def test_refuses_a_preference_of_another_length(self, preference):
        with pytest.raises(WeightsError, match=r"shape \(2,\), or \(K, 2\) .* got shape \("):
            check_preference(preference, 2)

    def test_refuses_a_sum_other_than_one(self):
        with pytest.raises(WeightsError, match=r"must sum to 1; \[0\.7, 0\.2\] sums to 0\.9"):
            check_preference([0.7, 0.2], 2)

    def test_refuses_a_negative_entry(self):
        with pytest.raises(WeightsError, match=r"may be negative; got \[1\.3, -0\.3\]"):
            check_preference([1.3, -0.3], 2)

    def test_refuses_one_bad_row_among_many(self):
        with pytest.raises(WeightsError, match=r"\[0\.9, 0\.3\] sums to 1\.2"):
            check_preference([[0.7, 0.3], [0.9, 0.3]], 2)

    def test_refuses_nan(self):
        with pytest.raises(WeightsError, match="preference must be finite"):
            check_preference([math.nan, 1.0], 2)

    def test_the_error_is_also_a_value_error_and_one_of_ours(self):
        with pytest.raises(ValueError, match="preference") as caught:
            check_preference([1.0], 2)
        assert isinstance(caught.value, BoneSoupError)


class TestMergingCoefficients:
    @pytest.mark.parametrize(
        ("n", "beta", "preference", "coefficients"),
        [
            (2, 0.6, [1, 0], [3.0, -2.0]),
            (2, 0.7, [1, 0], [1.75, -0.75]),
            (2, 0.8, [1, 0], [4 / 3, -1 / 3]),
            (2, 0.6, [0, 1], [-2.0, 3.0]),
            (2, 0.7, [0.7, 0.3], [1.0, 0.0]),
            (2, 0.7, [0.5, 0.5], [0.5, 0.5]),
            (2, 0.7, [0.8, 0.2], [1.25, -0.25]),
            (3, 0.6, [1, 0, 0], [2.0, -0.5, -0.5]),
            (3, 0.6, [0, 0, 1], [-0.5, -0.5, 2.0]),
            # λ_i = (2μ_i - .4)/.8
            (3, 0.6, [0.5, 0.3, 0.2], [0.75, 0.25, 0.0]),
            (2, 1.0, [0.9, 0.1], [0.9, 0.1]),
        ],
    )
    def test_values_worked_out_by_hand(self, n, beta, preference, coefficients):
        result = merging_coefficients(circulant_weights(n, beta), preference)
        np.testing.assert_allclose(result, coefficients, atol=1e-12)

    def test_it_is_b_and_not_its_transpose_that_is_solved(self):
        # Column 0 is (.9, .1), column 1 is (.4, .6): 1.2·b_0 - .2·b_1 = (1, 0).
        # Solving with the transpose would give (1.2, -.8).
        result = merging_coefficients([[0.9, 0.4], [0.1, 0.6]], [1.0, 0.0])
        np.testing.assert_allclose(result, [1.2, -0.2], atol=1e-12)

    def test_backbone_j_is_recovered_by_asking_for_its_own_column(self):
        weights = np.array([[0.6, 0.1, 0.3], [0.3, 0.7, 0.2], [0.1, 0.2, 0.5]])
        np.testing.assert_allclose(merging_coefficients(weights, weights.T), np.eye(3), atol=1e-12)

    @pytest.mark.parametrize("n", [2, 3, 4, 5, 7])
    @pytest.mark.parametrize("beta", [0.55, 0.6, 0.65, 0.7, 0.8, 0.9])
    def test_that_backbone_has_all_and_the_others_not_even_rounding(self, n, beta):
        """1e-17 of a checkpoint would be read for nothing, and would stand in the log and on the card."""
        weights = circulant_weights(n, beta=beta)
        assert np.array_equal(merging_coefficients(weights, weights.T), np.eye(n))

    def test_a_zero_has_no_sign(self):
        result = merging_coefficients(circulant_weights(2, beta=0.7), [0.7, 0.3])
        assert result.tolist() == [1.0, 0.0]
        assert not np.signbit(result).any()

    @given(circulant_cases(), st.data())
    def test_closed_form_of_the_circulant(self, case, data):
        n, beta = case
        preference = data.draw(simplex_points(n))
        closed = ((n - 1) * preference - (1 - beta)) / (n * beta - 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LargeCoefficientsWarning)
            result = merging_coefficients(circulant_weights(n, beta), preference)
        np.testing.assert_allclose(result, closed, rtol=1e-9, atol=1e-9)

    @given(st.integers(2, 4).flatmap(lambda n: st.tuples(column_stochastic(n), simplex_points(n))))
    def test_agrees_with_exact_fractions(self, case):
        weights, preference = case
        result = merging_coefficients(weights, preference)
        np.testing.assert_allclose(result, solve_by_cramer(weights, preference), rtol=1e-10, atol=1e-10)

    @given(
        st.integers(2, 5).flatmap(
            lambda n: st.tuples(column_stochastic(n), simplex_points(n), arrays(float, n, elements=st.floats(0, 0.5)))
        )
    )
    def test_b_lambda_is_k_times_mu(self, case):
        weights, preference, alpha = case
        result = merging_coefficients(weights, preference, alpha)
        np.testing.assert_allclose(weights @ result, preference / (1 - alpha), atol=1e-10)

    @given(st.integers(2, 5).flatmap(lambda n: st.tuples(column_stochastic(n), simplex_points(n))))
    def test_coefficients_sum_to_one(self, case):
        assert merging_coefficients(*case).sum() == pytest.approx(1.0, abs=1e-10)

    @given(
        st.integers(2, 5).flatmap(
            lambda n: st.tuples(column_stochastic(n), simplex_points(n), simplex_points(n), st.floats(0, 1))
        )
    )
    def test_is_linear_in_the_preference(self, case):
        weights, one, other, share = case
        mixed = merging_coefficients(weights, share * one + (1 - share) * other)
        apart = share * merging_coefficients(weights, one) + (1 - share) * merging_coefficients(weights, other)
        np.testing.assert_allclose(mixed, apart, atol=1e-9)

    @given(circulant_cases(), st.data())
    def test_renaming_the_objectives_of_a_circulant_renames_the_coefficients(self, case, data):
        n, beta = case
        order = data.draw(st.permutations(range(n)))
        preference = data.draw(simplex_points(n))
        weights = circulant_weights(n, beta)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LargeCoefficientsWarning)
            expected = merging_coefficients(weights, preference)[order]
            result = merging_coefficients(weights, preference[order])
        np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-9)

    def test_many_preferences_at_once_are_one_row_each(self):
        weights = [[0.9, 0.4, 0.2], [0.1, 0.5, 0.1], [0.0, 0.1, 0.7]]
        preferences = simplex_grid(3, 0.25)
        result = merging_coefficients(weights, preferences)
        assert result.shape == (15, 3)
        for row, preference in zip(result, preferences, strict=True):
            np.testing.assert_allclose(row, solve_by_cramer(weights, preference), atol=1e-12)

    def test_a_square_batch_is_still_rows(self):
        weights = circulant_weights(2, 0.7)
        result = merging_coefficients(weights, [[1.0, 0.0], [0.5, 0.5]])
        np.testing.assert_allclose(result, [[1.75, -0.75], [0.5, 0.5]], atol=1e-12)

    def test_no_preferences_give_no_coefficients(self):
        assert merging_coefficients(circulant_weights(2, 0.7), np.empty((0, 2))).shape == (0, 2)

    def test_inputs_stay_as_they_were(self):
        weights, preference, alpha = circulant_weights(2, 0.7), np.array([[0.8, 0.2]]), np.array([0.1, 0.2])
        before = [array.copy() for array in (weights, preference, alpha)]
        merging_coefficients(weights, preference, alpha)
        for array, copy in zip((weights, preference, alpha), before, strict=True):
            np.testing.assert_array_equal(array, copy)

    @pytest.mark.parametrize(
        ("weights", "preference"),
        [(np.full((2, 2), 0.5), [0.5, 0.5]), (np.eye(2), [0.5, 0.4]), (np.eye(3), [1.0, 0.0])],
    )
    def test_refuses_what_the_checks_refuse(self, weights, preference):
        with pytest.raises(WeightsError):
            merging_coefficients(weights, preference)


class TestExtrapolation:
    def test_one_alpha_scales_every_coefficient(self):
        # k = 1/(1-.2) = 1.25; (1.75, -.75) becomes (2.1875, -.9375) and the SFT model gets -.25.
        result = merging_coefficients(circulant_weights(2, 0.7), [1.0, 0.0], 0.2)
        np.testing.assert_allclose(result, [2.1875, -0.9375], atol=1e-12)
        assert 1 - result.sum() == pytest.approx(-0.25)

    def test_an_alpha_per_objective_scales_the_preference_first(self):
        # k∘μ = (.5/.5, .5/.8) = (1, .625); B⁻¹ = [[1.75, -.75], [-.75, 1.75]] gives (1.28125, .34375).
        result = merging_coefficients(circulant_weights(2, 0.7), [0.5, 0.5], [0.5, 0.2])
        np.testing.assert_allclose(result, [1.28125, 0.34375], atol=1e-12)
        assert 1 - result.sum() == pytest.approx(-0.625)

    def test_the_alpha_of_an_objective_nobody_asked_for_is_without_effect(self):
        weights = circulant_weights(2, 0.7)
        np.testing.assert_allclose(
            merging_coefficients(weights, [1.0, 0.0], [0.2, 0.5]), merging_coefficients(weights, [1.0, 0.0], 0.2)
        )

    def test_equal_alphas_are_one_alpha(self):
        weights = circulant_weights(3, 0.6)
        preference = [0.2, 0.5, 0.3]
        np.testing.assert_allclose(
            merging_coefficients(weights, preference, [0.3, 0.3, 0.3]), merging_coefficients(weights, preference, 0.3)
        )

    def test_each_of_many_preferences_is_scaled(self):
        weights = circulant_weights(2, 0.7)
        preferences = [[1.0, 0.0], [0.5, 0.5], [0.2, 0.8]]
        result = merging_coefficients(weights, preferences, [0.5, 0.2])
        expected = [merging_coefficients(weights, row, [0.5, 0.2]) for row in preferences]
        np.testing.assert_allclose(result, expected, atol=1e-12)

    @pytest.mark.parametrize("alpha", [1.0, 1.5, -0.1, [0.1, 1.0], [-0.1, 0.1]])
    def test_refuses_alpha_outside_its_range(self, alpha):
        with pytest.raises(WeightsError, match=r"in \[0, 1\); got") as caught:
            merging_coefficients(np.eye(2), [0.5, 0.5], alpha)
        assert str(alpha) in str(caught.value)

    @pytest.mark.parametrize("alpha", [[0.1], [0.1, 0.1, 0.1], [[0.1, 0.1]]])
    def test_refuses_a_number_of_alphas_that_fits_no_objectives(self, alpha):
        with pytest.raises(WeightsError, match="one number or one for each of the 2 objectives; got shape"):
            merging_coefficients(np.eye(2), [0.5, 0.5], alpha)

    @pytest.mark.parametrize("alpha", [math.nan, "much", None])
    def test_refuses_alpha_that_is_no_number(self, alpha):
        with pytest.raises(WeightsError, match="extrapolation"):
            merging_coefficients(np.eye(2), [0.5, 0.5], alpha)


class TestLargeCoefficients:
    def test_warns_with_the_size_and_the_condition_number(self):
        # a = .02: λ = (.5, .5) ± .5/.02 = (25.5, -24.5), cond = 50.
        with pytest.warns(LargeCoefficientsWarning, match=r"is 25\.5 \(above 10\); .* condition number 50\. "):
            merging_coefficients(circulant_weights(2, 0.51), [1.0, 0.0])

    def test_warns_at_large_negative_ones_and_large_extrapolation(self):
        with pytest.warns(LargeCoefficientsWarning, match="smaller extrapolation"):
            merging_coefficients(circulant_weights(2, 0.7), [1.0, 0.0], 0.9)

    def test_points_at_the_caller(self):
        with pytest.warns(LargeCoefficientsWarning) as caught:
            merging_coefficients(circulant_weights(2, 0.51), [1.0, 0.0])
        assert caught[0].filename == __file__

    def test_is_silent_below(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            merging_coefficients(circulant_weights(2, 0.6), simplex_grid(2))


class TestQuadraticModel:
    """The paper's Theorem 1 on r_i = c_i - k_i·‖θ-θ_i‖² with k = (1, 4), on the segment θ₁ + t(θ₂-θ₁)."""

    CURVATURE = np.array([1.0, 4.0])

    def best_t(self, weights):
        """Where w₁·t² + 4w₂·(1-t)² is least: t = 4w₂/(w₁ + 4w₂)."""
        pull = np.asarray(weights) * self.CURVATURE
        return pull[1] / pull.sum()

    def soup_t(self, combination_weights, preference):
        backbones = np.array([self.best_t(column) for column in np.asarray(combination_weights).T])
        return merging_coefficients(combination_weights, preference) @ backbones

    def test_the_middle(self):
        preference = [0.5, 0.5]
        assert self.best_t(preference) == pytest.approx(0.8)
        assert self.soup_t(np.eye(2), preference) == pytest.approx(0.5)
        assert self.soup_t(circulant_weights(2, 0.6), preference) == pytest.approx(0.792208, abs=5e-7)

    @pytest.mark.parametrize(("first", "wins"), [(0.10566, True), (0.10564, False), (0.89434, True), (0.89436, False)])
    def test_bone_soup_wins_inside_and_loses_near_the_vertices(self, first, wins):
        preference = [first, 1 - first]
        exact = self.best_t(preference)
        bone = abs(self.soup_t(circulant_weights(2, 0.6), preference) - exact)
        rewarded = abs(self.soup_t(np.eye(2), preference) - exact)
        assert bool(bone < rewarded) == wins


class TestSimplexGrid:
    def test_two_objectives_in_order(self):
        expected = [[1 - k / 10, k / 10] for k in range(11)]
        np.testing.assert_allclose(simplex_grid(2), expected, atol=1e-15)

    def test_three_objectives_in_order(self):
        grid = simplex_grid(3)
        expected = [[i / 10, j / 10, (10 - i - j) / 10] for i in range(10, -1, -1) for j in range(10 - i, -1, -1)]
        assert grid.shape == (66, 3)
        np.testing.assert_allclose(grid, expected, atol=1e-15)

    def test_a_coarser_step(self):
        expected = [[1, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]]
        np.testing.assert_array_equal(simplex_grid(3, 0.5), expected)

    @given(st.integers(1, 4), st.integers(1, 8))
    def test_has_every_preference_once_and_each_is_valid(self, n, parts):
        grid = simplex_grid(n, 1 / parts)
        assert len(grid) == math.comb(parts + n - 1, n - 1)
        assert len({tuple(row) for row in grid.tolist()}) == len(grid)
        check_preference(grid, n)
        np.testing.assert_allclose(grid * parts, np.round(grid * parts), atol=1e-12)

    @pytest.mark.parametrize("n", [0, -1, 2.0, "2", True])
    def test_refuses_a_number_of_objectives(self, n):
        with pytest.raises(WeightsError, match="at least 1; got"):
            simplex_grid(n)

    @pytest.mark.parametrize("step", [0.3, 0.0, -0.1, 1.5, 0.0999])
    def test_refuses_a_step_that_does_not_divide_one(self, step):
        with pytest.raises(WeightsError, match=rf"must divide 1 evenly, .*; got {step}"):
            simplex_grid(2, step)

    @pytest.mark.parametrize("step", [math.nan, math.inf, "fine", [0.1, 0.2]])
    def test_refuses_a_step_that_is_no_number(self, step):
        with pytest.raises(WeightsError, match="step"):
            simplex_grid(2, step)

"""The kernel on tensors: the weighted sum, its rounding, its order, and its own refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mergekit.merge_methods import merge_state_dicts, merge_tensors

from mergekit_bonesoup import bone_soup
from mergekit_bonesoup.coefficients import MergeRefused

EPSILON = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def assert_rounded_once(merged, terms):
    """`merged` is Σ value·tensor to half a unit in the last place of its dtype, plus that of the accumulation."""
    expected = sum(value * tensor.double() for tensor, value in terms)
    size = sum(abs(value) * tensor.double().abs() for tensor, value in terms)
    # In float64 the coefficients' own error, from two ways of solving B, is as large as the accumulation's.
    accumulation = 2.0**-46 if merged.dtype == torch.float64 else (len(terms) + 1) * 2.0**-23
    bound = (
        EPSILON[merged.dtype] / 2 * expected.abs()
        + accumulation * size
        + (2.0**-25 if merged.dtype == torch.float16 else 0.0)
    )
    assert ((merged.double() - expected).abs() <= bound).all()


def constants(*values, dtype=torch.float32):
    return [torch.full((3,), value, dtype=dtype) for value in values]


@pytest.mark.parametrize(
    ("values", "preference", "beta", "expected"),
    [((1, 10), (1, 0), 0.6, -17), ((1, 10), (0, 1), 0.6, 28), ((1, 10, 100), (1, 0, 0), 0.6, -53)],
)
def test_hand_numbers_on_constants(values, preference, beta, expected):
    merged = merge_tensors(constants(*values), bone_soup, parameters={"preference": preference, "beta": beta})
    torch.testing.assert_close(merged, torch.full((3,), float(expected)))


def test_extrapolation_takes_the_rest_from_the_base():
    # λ = (3.75, -2.5), base -.25: 3.75·1 - 2.5·10 - .25·100.
    parameters = {"preference": (1, 0), "beta": 0.6, "extrapolation": 0.2}
    merged = merge_tensors(constants(1, 10, 100), bone_soup, parameters=parameters, base_index=2)
    torch.testing.assert_close(merged, torch.full((3,), -46.25))


@pytest.mark.parametrize("base_index", [0, 1, 2])
def test_the_base_may_stand_anywhere_among_the_inputs(base_index):
    values = [1, 10]
    values.insert(base_index, 100)
    parameters = {"preference": (1, 0), "beta": 0.6, "extrapolation": (0.2, 0.0)}
    merged = merge_tensors(constants(*values), bone_soup, parameters=parameters, base_index=base_index)
    torch.testing.assert_close(merged, torch.full((3,), -46.25))


def test_without_extrapolation_the_values_of_the_base_do_not_enter():
    inputs = constants(1, 10, float("nan"))
    parameters = {"preference": (0.7, 0.3), "beta": 0.6}
    merged = merge_tensors(inputs, bone_soup, parameters=parameters, base_index=2)
    alone = merge_tensors(inputs[:2], bone_soup, parameters=parameters)
    assert torch.equal(merged, alone)


@pytest.mark.parametrize("dtype", list(EPSILON))
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_soup_is_the_sum_rounded_once(dtype, data):
    n = data.draw(st.integers(2, 5))
    beta = data.draw(st.floats(1 / n + 0.1, 1.0))
    share = np.array(data.draw(st.lists(st.floats(0.01, 1.0), min_size=n, max_size=n)))
    preference = share / share.sum()
    alpha = np.array(data.draw(st.lists(st.just(0.0) | st.floats(0.01, 0.5), min_size=n, max_size=n)))
    torch.manual_seed(data.draw(st.integers(0, 9)))
    tensors = [torch.randn(4, 5, dtype=torch.float64).to(dtype) for _ in range(n + 1)]
    before = [tensor.clone() for tensor in tensors]

    merged = merge_tensors(
        tensors,
        bone_soup,
        parameters={"preference": preference.tolist(), "beta": beta, "extrapolation": alpha.tolist()},
        base_index=n,
    )

    weights = np.full((n, n), (1 - beta) / (n - 1)) + np.eye(n) * (beta - (1 - beta) / (n - 1))
    coefficients = np.linalg.inv(weights) @ (preference / (1 - alpha))
    values = [*coefficients, 1 - coefficients.sum() if alpha.any() else 0.0]
    assert merged.dtype == dtype
    assert_rounded_once(merged, list(zip(tensors, values, strict=True)))
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_bits_as_linear_with_these_coefficients(dtype):
    torch.manual_seed(0)
    tensors = [torch.randn(64, 33).to(dtype) for _ in range(3)]
    merged = merge_tensors(tensors, bone_soup, parameters={"preference": (0.5, 0.3, 0.2), "beta": 0.7})
    # λ = (2μ - .3)/1.1
    coefficients = [(2 * p - 0.3) / 1.1 for p in (0.5, 0.3, 0.2)]
    linear = merge_tensors(tensors, "linear", parameters={"weight": coefficients, "normalize": False})
    assert torch.equal(merged, linear)


def test_preferences_are_not_rounded_before_the_solve():
    # At β = .5001 the coefficients are 5000 times the preference, so a preference in float32 would show.
    tensors = [torch.zeros(1), torch.ones(1)]
    with pytest.warns(match="largest merging coefficient"):
        merged = merge_tensors(tensors, bone_soup, parameters={"preference": (0.7, 0.3), "beta": 0.5001})
    assert merged.item() == np.float32((0.3 - 0.4999) / 0.0002)


def test_state_dicts_in_memory():
    models = {"helpful": {"w": torch.tensor([1.0])}, "harmless": {"w": torch.tensor([10.0])}}
    parameters = {"preference": {"harmless": 0.0, "helpful": 1.0}, "beta": 0.7}
    merged = merge_state_dicts(models, "bone_soup", parameters=parameters)
    torch.testing.assert_close(merged["w"], torch.tensor([1.75 - 7.5]))


def test_the_kernel_refuses_on_its_own():
    for preference in [(0.7, 0.4), (1.2, -0.2)]:
        with pytest.raises(MergeRefused, match="preference"):
            merge_tensors(constants(1, 2), bone_soup, parameters={"preference": preference, "beta": 0.7})
    with pytest.raises(MergeRefused, match="beta"):
        merge_tensors(constants(1, 2), bone_soup, parameters={"preference": (0.7, 0.3), "beta": 0.4})


@pytest.mark.parametrize("value", ["0.5", True, None])
def test_the_kernel_takes_numbers_only(value):
    with pytest.raises(ValueError, match="float"):
        merge_tensors(constants(1, 2), bone_soup, parameters={"preference": (value, 0.5), "beta": 0.7})


def test_integers_are_refused():
    with pytest.raises(TypeError, match="floating-point"):
        merge_tensors(
            [torch.tensor([1]), torch.tensor([2])], bone_soup, parameters={"preference": (0.7, 0.3), "beta": 0.7}
        )

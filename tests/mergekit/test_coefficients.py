"""Parameters of one merge to coefficients: numbers worked out by hand, and what is refused."""

import click
import pytest

from mergekit_bonesoup.coefficients import MergeParameters, MergeRefused, soup_coefficients
from trl_bonesoup.errors import BoneSoupError


def solve(preference, extrapolation=None, **rest):
    models = tuple(f"run/{i}" for i in range(len(preference)))
    extrapolation = (0.0,) * len(preference) if extrapolation is None else tuple(extrapolation)
    return soup_coefficients(
        MergeParameters(models=models, preference=tuple(preference), extrapolation=extrapolation, **rest)
    )


@pytest.mark.parametrize(
    ("preference", "beta", "expected"),
    [
        ((1, 0), 0.6, (3, -2)),
        ((0, 1), 0.6, (-2, 3)),
        ((1, 0), 0.7, (1.75, -0.75)),
        ((1, 0), 0.8, (4 / 3, -1 / 3)),
        ((1, 0, 0), 0.6, (2, -0.5, -0.5)),
        ((0.7, 0.3), 1.0, (0.7, 0.3)),
        ((0.75, 0.25), 0.6, (1.75, -0.75)),
    ],
)
def test_hand_numbers_of_the_circulant(preference, beta, expected):
    coefficients, base = solve(preference, beta=beta, has_base=True)
    assert coefficients == pytest.approx(expected, abs=1e-12)
    assert base == 0.0


def test_one_extrapolation_for_all():
    # k = 1/(1-.2) = 1.25 doubles as Σλ, so the base gets 1 - 1.25.
    coefficients, base = solve((1, 0), (0.2, 0.2), beta=0.6, has_base=True)
    assert coefficients == pytest.approx((3.75, -2.5), abs=1e-12)
    assert base == pytest.approx(-0.25, abs=1e-12)


def test_one_extrapolation_per_model_belongs_to_the_objective_of_that_model():
    # k = (2, 1), k∘μ = (.5, .75), λ = (3·.5 - 2·.75, -2·.5 + 3·.75).
    coefficients, base = solve((0.25, 0.75), (0.5, 0.0), beta=0.6, has_base=True)
    assert coefficients == pytest.approx((0.0, 1.25), abs=1e-12)
    assert base == pytest.approx(-0.25, abs=1e-12)


def test_rounding_alone_gives_the_base_no_share():
    # k∘μ = (0, 1) sums to 1, the λ that B = [[.65, .35], [.35, .65]] gives for it to 1 - 1.1e-16.
    coefficients, base = solve((0, 1), (0.3, 0.0), beta=0.65, has_base=True)
    assert coefficients == pytest.approx((-0.35 / 0.3, 0.65 / 0.3), abs=1e-12)
    assert base == 0.0


def test_combination_weights_need_not_be_symmetric():
    # B = [[.9, .4], [.1, .6]], det = .5: B⁻¹ = [[1.2, -.8], [-.2, 1.8]]; rows for columns would give (1.2, -.8).
    text = "[[0.9, 0.4], [0.1, 0.6]]"
    assert solve((1, 0), combination_weights=text)[0] == pytest.approx((1.2, -0.2), abs=1e-12)
    assert solve((0, 1), combination_weights=text)[0] == pytest.approx((-0.8, 1.8), abs=1e-12)


def test_negative_preference_when_asked_for():
    assert solve((1.2, -0.2), beta=0.6, allow_negative_preference=True)[0] == pytest.approx((4, -3), abs=1e-12)


@pytest.mark.parametrize(
    ("preference", "rest", "message"),
    [
        ((1.0,), {"beta": 0.7}, "at least 2 models.*got 1"),
        ((0.7, 0.4), {"beta": 0.7}, r"run/0: 0.7, run/1: 0.4, which sum to 1\.1"),
        ((1.0, 2e-6), {"beta": 0.7}, "sum to 1"),
        ((1.2, -0.2), {"beta": 0.7}, r"run/0 must be in \[0, 1\]; got 1.2"),
        ((-0.2, 1.2), {"beta": 0.7}, "run/0.*allow_negative_preference"),
        ((float("nan"), 1.0), {"beta": 0.7}, "run/0 must be finite"),
        ((1.2, -0.1), {"beta": 0.7, "allow_negative_preference": True}, "sum to 1"),
        ((0.7, 0.3), {"beta": 0.5}, r"beta.*\(1/2, 1\].*got 0.5"),
        ((0.7, 0.3), {"beta": 1.1}, r"beta.*got 1.1"),
        ((0.7, 0.3), {}, "exactly one of beta and combination_weights.*neither"),
        ((0.7, 0.3), {"beta": 0.7, "combination_weights": "[[1, 0], [0, 1]]"}, "exactly one.*both"),
        ((0.7, 0.3), {"combination_weights": "[[0.5, 0.5], [0.5, 0.5]]"}, "invertible"),
        ((0.7, 0.3), {"combination_weights": "[[0.5, 0.5], [0.4, 0.5]]"}, "column 0"),
        ((0.7, 0.3), {"combination_weights": "0.7, 0.3"}, "as JSON text, such as .*got '0.7, 0.3': Extra data"),
        ((0.7, 0.3), {"combination_weights": "[" * 100_000}, "as JSON text"),
        ((0.7, 0.3), {"combination_weights": "9" * 5000}, "as JSON text"),
        ((0.7, 0.3), {"combination_weights": '[["a", 0], [0, 1]]'}, "must be numbers"),
        ((0.7, 0.3), {"combination_weights": "0.7"}, "square matrix"),
        ((0.7, 0.3), {"combination_weights": "[[1,0,0],[0,1,0],[0,0,1]]"}, "for 3 models; 2 are merged"),
        ((0.7, 0.3), {"beta": 0.7, "extrapolation": (0.0, 1.0)}, r"extrapolation of run/1 must be in \[0, 1\)"),
        ((0.7, 0.3), {"beta": 0.7, "extrapolation": (-0.1, 0.0)}, "extrapolation of run/0"),
        ((0.7, 0.3), {"beta": 0.7, "extrapolation": (0.1, 0.0)}, "give base_model"),
    ],
)
def test_refused(preference, rest, message):
    with pytest.raises(MergeRefused, match=message):
        solve(preference, **rest)


TRANSPOSED = "Its rows sum to 1: it may be transposed; column j belongs to model j."


@pytest.mark.parametrize(
    ("text", "transposed"),
    [
        ("[[0.9, 0.1], [0.4, 0.6]]", True),
        ("[[0.5, 0.5, 0], [0.1, 0.9, 0], [0, 0, 1]]", True),
        ("[[0.9, 0.4], [0.4, 0.6]]", False),
        ("[[0.5, 0.5], [0.5, 0.5]]", False),
        ("[[0.7, 0.3]]", False),
        ("[[0.7, 0.3], [1]]", False),
        ("[[true, false], [false, true]]", False),
        ("[[1.4, -0.4], [0.2, 0.8]]", False),
    ],
)
def test_wrong_values_of_b_are_not_blamed_on_its_format(text, transposed):
    with pytest.raises(MergeRefused) as refusal:
        solve((0.7, 0.3), combination_weights=text)
    assert refusal.value.message.startswith("bone_soup: combination_weights: ")
    assert "JSON" not in refusal.value.message
    assert refusal.value.message.endswith(TRANSPOSED) == transposed


def test_a_sum_off_by_rounding_is_accepted():
    assert sum(solve((0.3333333, 0.3333333, 0.3333333), beta=0.7)[0]) == pytest.approx(1.0, abs=1e-6)


def test_the_error_is_one_that_commands_and_callers_know():
    assert issubclass(MergeRefused, (click.ClickException,))
    assert issubclass(MergeRefused, BoneSoupError)
    assert issubclass(MergeRefused, ValueError)

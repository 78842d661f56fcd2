"""Means over seeds: intervals that hold both kinds of noise, checked by enumerating every draw."""

import itertools

import numpy as np
import pytest

from trl_bonesoup.front.bootstrap import Estimate
from trl_bonesoup.front.seeds import difference, draw_seeds, ratio, seed_mean

EVERY_DRAW = np.array(list(itertools.product(range(3), repeat=3)))


def test_without_noise_of_prompts_the_spread_is_the_standard_error_over_seeds() -> None:
    """s² of 1, 2, 6 is 7, so that of their mean 7/3; the plain bootstrap would say 2/3 of it."""
    values = [1.0, 2.0, 6.0]
    mean = seed_mean(values, np.repeat(np.array(values)[:, None], 27, axis=1), EVERY_DRAW)
    assert mean.value == 3.0
    assert mean.resampled_R.mean() == pytest.approx(3.0)
    assert mean.resampled_R.var() == pytest.approx(7 / 3)


def test_without_noise_of_seeds_the_spread_is_that_of_the_prompts() -> None:
    noise = np.linspace(-1.0, 1.0, 27)
    mean = seed_mean([5.0, 5.0, 5.0], np.tile(5.0 + noise, (3, 1)), EVERY_DRAW)
    assert mean.resampled_R == pytest.approx(5.0 + noise)


def test_one_seed_has_the_noise_of_its_prompts_alone() -> None:
    resampled = np.array([[1.0, 2.0, 4.0]])
    assert seed_mean([2.0], resampled, draw_seeds(1, 3)).resampled_R.tolist() == [1.0, 2.0, 4.0]


def test_intervals_turn_the_distribution_around_the_value() -> None:
    """Basic intervals: resamples from -1 to 100 around 0 say that the truth is between -100 and 1."""
    samples = np.concatenate([np.full(500, -1.0), np.full(500, 100.0)])
    estimate = seed_mean([0.0], samples[None], draw_seeds(1, 1000)).estimate()
    assert (estimate.value, estimate.lower, estimate.upper) == (0.0, -100.0, 1.0)


def test_an_interval_stops_at_the_least_that_is_possible() -> None:
    samples = np.concatenate([np.full(500, 1.0), np.full(500, 100.0)])
    mean = seed_mean([2.0], samples[None], draw_seeds(1, 1000))
    assert mean.estimate(least=0.0) == Estimate(2.0, 0.0, 3.0)
    half = seed_mean([4.0], np.full((1, 1000), 4.0), draw_seeds(1, 1000))
    assert ratio(mean, half) == Estimate(0.5, 0.0, 0.75)


def test_what_rounding_leaves_is_no_difference() -> None:
    draws, values = draw_seeds(1, 100), np.linspace(0.01, 0.03, 100)[None]
    mean, rounded = seed_mean([0.02], values, draws), seed_mean([0.02 + 6.6e-9], values - 5e-9, draws)
    assert difference(rounded, mean) == Estimate(0.0, 0.0, 0.0)


def test_what_a_seed_or_a_prompt_does_to_both_methods_cancels() -> None:
    generator = np.random.default_rng(0)
    draws = draw_seeds(3, 400)
    values, noise = np.array([1.0, 5.0, 9.0]), generator.normal(size=(1, 400))
    first = seed_mean(values + 0.5, values[:, None] + 0.5 + noise, draws)
    second = seed_mean(values, values[:, None] + noise, draws)
    ahead = difference(first, second)
    assert [ahead.value, ahead.lower, ahead.upper] == pytest.approx([0.5, 0.5, 0.5])
    assert difference(second, first).value == pytest.approx(-0.5)
    doubled = seed_mean(2 * values, 2 * (values[:, None] + noise), draws)
    share = ratio(doubled, second)
    assert share is not None
    assert [share.value, share.lower, share.upper] == pytest.approx([2.0, 2.0, 2.0])
    nothing = seed_mean([0.0] * 3, np.zeros((3, 400)), draws)
    assert ratio(second, nothing) is None


def test_draws_depend_on_their_seed_alone() -> None:
    assert draw_seeds(3, 50).tolist() == draw_seeds(3, 50).tolist()
    assert set(draw_seeds(3, 50).ravel()) == {0, 1, 2}

"""No card states a number that was not measured: every number in its section of rewards is one of the front's."""

import dataclasses
import re

import numpy as np
from cards import evaluated, make_front, make_manifest, section
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_bonesoup.hub.card import family_card, soup_card
from trl_bonesoup.weights import simplex_grid

NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
ALWAYS = {"95", "2502.10762"}


@st.composite
def fronts(draw):
    """A front over some preferences of a grid, with means and intervals of any size."""
    n = draw(st.sampled_from([2, 3]))
    manifest = make_manifest(("helpful", "harmless", "brief")[:n])
    grid = simplex_grid(n, 0.5)
    rows = draw(st.lists(st.sampled_from(range(len(grid))), min_size=1, unique=True))
    alpha = draw(st.sampled_from([0.0, 0.25]))
    front = make_front(manifest, grid[rows], alpha)
    numbers = st.floats(-1e6, 1e6, allow_subnormal=False)
    means = np.array(draw(st.lists(numbers, min_size=n * len(rows), max_size=n * len(rows)))).reshape(-1, n)
    below, above = (np.array(draw(st.lists(st.floats(0, 100), min_size=n, max_size=n))) for _ in range(2))
    ends = np.stack([means - below, means + above], axis=-1)
    front = dataclasses.replace(front, rewards_KN=means, intervals_KN2=ends)
    return manifest, evaluated(front, extrapolation=alpha), alpha


def stated(text):
    without_code = re.sub(r"`[^`]*`", "", section(text, "Measured rewards"))
    return set(NUMBER.findall(without_code)) - ALWAYS


def shown(*arrays):
    return {format(float(value) + 0.0, ".4g") for array in arrays for value in np.ravel(array)}


@given(fronts(), st.data())
@settings(max_examples=25)
def test_of_a_soup(measured, data):
    manifest, front, alpha = measured
    grid = simplex_grid(len(front.objectives), 0.5)
    mu_N = grid[data.draw(st.sampled_from(range(len(grid))))]
    asked = data.draw(st.sampled_from([0.0, 0.25]))
    card = soup_card(manifest, mu_N, kind="full", extrapolation=asked, front=front)
    rows = np.flatnonzero((front.preferences_KN == mu_N).all(axis=1))
    if asked != alpha or not len(rows):
        assert not stated(card.text)
        assert card.data.eval_results is None
        return
    (row,) = rows
    assert stated(card.text) <= {"64", "32"} | shown(front.rewards_KN, front.intervals_KN2, front.preferences_KN)
    assert shown(front.rewards_KN[row], front.intervals_KN2[row]) <= stated(card.text)
    assert [result.metric_value for result in card.data.eval_results] == front.rewards_KN[row].tolist()
    for result, ends in zip(card.data.eval_results, front.intervals_KN2[row], strict=True):
        assert set(NUMBER.findall(result.metric_name)) - ALWAYS == shown(ends)


@given(fronts())
@settings(max_examples=25)
def test_of_a_family(measured):
    manifest, front, alpha = measured
    card = family_card(manifest, front=front)
    allowed = {"64", "32"} | shown(front.rewards_KN, front.intervals_KN2, front.preferences_KN, alpha)
    allowed |= {format(round(value, 4) + 0.0, "+.4f") for value in np.ravel(front.coefficients_KN)}
    if len(front) > 1:
        reference_N = front.default_reference()
        allowed |= shown(reference_N, list(front.metrics(reference_N).values()), 1)
    assert stated(card.text) <= allowed
    assert shown(front.rewards_KN, front.intervals_KN2) <= stated(card.text)

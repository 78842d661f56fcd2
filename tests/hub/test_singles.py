"""What repositories of single preferences are called."""

import numpy as np
import pytest
from cards import make_manifest
from huggingface_hub.utils import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st

from trl_bonesoup.errors import ConfigurationError, WeightsError
from trl_bonesoup.hub.singles import single_soups
from trl_bonesoup.weights import simplex_grid

_NAME = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=200)
NAMES = st.lists(_NAME, min_size=2, max_size=4, unique=True)


def names_of(preferences, objectives=("helpful", "harmless"), repo="org/soup", extrapolation=0.0, full=False):
    manifest = make_manifest(objectives)
    singles = single_soups(repo, manifest, [np.array(row) for row in preferences], extrapolation, full=full)
    return [single.repo_id for single in singles]


def test_shares_in_the_order_of_the_objectives():
    assert names_of([[0.7, 0.3], [0.0, 1.0]]) == ["org/soup-helpful-0.7-harmless-0.3", "org/soup-helpful-0-harmless-1"]
    assert names_of([[0.1 + 0.2, 0.7]]) == ["org/soup-helpful-0.3-harmless-0.7"]
    assert names_of([[2 / 3, 1 / 3]]) == ["org/soup-helpful-0.6667-harmless-0.3333"]


def test_what_else_tells_two_soups_apart():
    assert names_of([[0.7, 0.3]], extrapolation=0.2) == ["org/soup-helpful-0.7-harmless-0.3-alpha-0.2"]
    assert names_of([[0.7, 0.3]], extrapolation=[0.1, 0.3], full=True) == [
        "org/soup-helpful-0.7-harmless-0.3-alpha-0.1-0.3-full"
    ]


def test_preferences_that_round_to_one_get_a_hash_each():
    first, second, other = names_of([[0.5, 0.5], [0.50001, 0.49999], [0.7, 0.3]])
    assert first != second and other == "org/soup-helpful-0.7-harmless-0.3"
    for name in (first, second):
        assert name.startswith("org/soup-helpful-0.5-harmless-0.5-")
    assert names_of([[0.50001, 0.49999]]) == ["org/soup-helpful-0.5-harmless-0.5"], "alone it needs none"


@given(NAMES, st.booleans())
def test_any_objectives_give_names_that_the_hub_takes_and_that_differ(objectives, full):
    preferences = simplex_grid(len(objectives), 0.25)
    names = names_of(preferences, tuple(objectives), full=full)
    for name in names:
        validate_repo_id(name)
    assert len(set(names)) == len(preferences)
    assert names == names_of(preferences, tuple(objectives), full=full), "the same push again finds them"


def test_refused():
    with pytest.raises(ConfigurationError, match="The same preference"):
        names_of([[0.5, 0.5], [0.5, 0.5]])
    with pytest.raises(ConfigurationError, match="too long"):
        names_of([[0.5, 0.5]], repo="org/" + "x" * 90)
    with pytest.raises(WeightsError):
        names_of([[0.5, 0.5]], extrapolation=1.0)
    assert names_of([]) == []

"""A card states numbers of a front only for what that front measured, beside only what was measured alike."""

import dataclasses

import numpy as np
import pytest
from cards import evaluated, make_front, make_manifest

from trl_bonesoup.errors import FrontError
from trl_bonesoup.hub.measured import (
    check_comparable,
    check_family_front,
    check_front,
    has_row,
    measured_point,
    neighbours,
)
from trl_bonesoup.manifest import Backbone
from trl_bonesoup.weights import simplex_grid

GRID = simplex_grid(2, 0.25)


class TestSameTraining:
    """The backbones of `make_manifest` were trained for 40 and 41 steps, without a recorded seed."""

    @pytest.mark.parametrize("recorded", [[(40, None), (41, None)], None])
    def test_a_front_of_these_backbones_passes(self, recorded):
        manifest = make_manifest()
        backbones = recorded and [{"steps": steps, "seed": seed, "path": "elsewhere"} for steps, seed in recorded]
        check_front(evaluated(make_front(manifest, GRID), backbones=backbones), manifest)

    @pytest.mark.parametrize(
        "recorded", [[(41, None), (40, None)], [(40, None)], [(40, 1), (41, None)], [(80, None)] * 2]
    )
    def test_one_of_others_does_not(self, recorded):
        manifest = make_manifest()
        backbones = [{"steps": steps, "seed": seed} for steps, seed in recorded]
        front = evaluated(make_front(manifest, GRID), backbones=backbones)
        with pytest.raises(FrontError, match=r"soup\.json names \[\(40, None\), \(41, None\)\].*not the same training"):
            measured_point(front, manifest, np.array([1.0, 0.0]), manifest.coefficients([1.0, 0.0]))

    def test_kind_and_place_may_change(self):
        front = evaluated(
            make_front(make_manifest(), GRID), backbones=[{"steps": 40, "seed": None, "kind": "adapter"}] * 2
        )
        full = make_manifest(backbones=tuple(Backbone(path=name, kind="full", steps=40) for name in "xy"))
        check_front(front, full)


class TestFamily:
    @pytest.mark.parametrize("alpha", [0.0, 0.25, [0.1, 0.3]])
    def test_soups_of_b_pass_with_their_extrapolation(self, alpha):
        manifest = make_manifest()
        front = evaluated(make_front(manifest, GRID, alpha), extrapolation=alpha)
        assert check_family_front(front, manifest) == alpha

    def test_other_ways_to_merge_do_not(self):
        manifest = make_manifest()
        averaged = dataclasses.replace(make_front(manifest, GRID), coefficients_KN=GRID)
        unmerged = dataclasses.replace(make_front(manifest, GRID), coefficients_KN=None)
        extrapolated = make_front(manifest, GRID, 0.2)
        for front in (averaged, unmerged, extrapolated):
            with pytest.raises(FrontError, match=r"not measured on soups that are merged as soup\.json says"):
                check_family_front(front, manifest)


class TestComparable:
    def fronts(self, **changes):
        manifest = make_manifest()
        return evaluated(make_front(manifest, GRID)), evaluated(make_front(manifest, GRID), **changes)

    def test_the_same_evaluation_passes(self):
        mine, theirs = self.fronts(created="later", machine={"system": "other"})
        check_comparable(mine, {"Rewarded Soups": theirs}, same_preferences=True)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("rewards", {"helpful": "rewards:0", "harmless": "rewards:2"}),
            ("prompts_sha256", "0ddba11"),
            ("samples_per_prompt", 4),
            ("seed", 1),
            ("decoding", {"max_new_tokens": 24, "temperature": 1.0}),
            ("prompts_sha256", None),
        ],
    )
    def test_another_one_is_refused_by_what_differs(self, key, value):
        for mine, theirs in (self.fronts(**{key: value}), self.fronts(**{key: value})[::-1]):
            with pytest.raises(FrontError, match=rf"'Rewarded Soups' and this soup cannot be compared: {key} is"):
                check_comparable(mine, {"Rewarded Soups": theirs})

    def test_two_fronts_that_record_nothing_are_not_the_same_evaluation(self):
        front = make_front(make_manifest(), GRID)
        with pytest.raises(FrontError, match="rewards is None in its front and None in the soup's"):
            check_comparable(front, {"Rewarded Soups": front})

    def test_other_objectives_are_refused(self):
        mine = evaluated(make_front(make_manifest(), GRID))
        theirs = evaluated(make_front(make_manifest(("harmless", "helpful")), GRID))
        with pytest.raises(FrontError, match=r"measured on the objectives \['harmless', 'helpful'\]"):
            check_comparable(mine, {"Rewarded Soups": theirs})

    def test_metrics_need_the_same_preferences_in_any_order(self):
        manifest = make_manifest()
        mine = evaluated(make_front(manifest, GRID))
        check_comparable(mine, {"x": evaluated(make_front(manifest, GRID[::-1]))}, same_preferences=True)
        for other in (simplex_grid(2, 0.5), [[1.0, 0.0], [0.7, 0.3], [0.5, 0.5], [0.25, 0.75], [0.0, 1.0]]):
            theirs = evaluated(make_front(manifest, other))
            check_comparable(mine, {"x": theirs})
            with pytest.raises(FrontError, match=rf"measured at {len(theirs)} preferences that are not the 5"):
                check_comparable(mine, {"x": theirs}, same_preferences=True)


def test_a_preference_has_a_row_only_if_it_is_that_one():
    front = make_front(make_manifest(), GRID)
    assert has_row(front, np.array([0.25, 0.75]))
    assert not has_row(front, np.array([0.26, 0.74]))


def test_neighbours_are_all_the_nearest():
    front = make_front(make_manifest(), [[1.0, 0.0], [0.6, 0.4], [0.5, 0.5], [0.4, 0.6], [0.1, 0.9]])
    assert neighbours(front, front.point([0.5, 0.5])) == [1, 3]
    assert neighbours(front, front.point([1.0, 0.0])) == [1]

"""Soups as policies: which models answer, in which batches, at which coefficients."""

import numpy as np
import pytest

from trl_bonesoup.errors import WeightsError
from trl_bonesoup.front.evaluate import evaluate_policies
from trl_bonesoup.front.policies import Row
from trl_bonesoup.front.prompts import read_prompts
from trl_bonesoup.front.settings import EvaluationSettings
from trl_bonesoup.front.soups import SoupPolicies
from trl_bonesoup.soup.lora import BoneSoup

PREFERENCES = [[0.75, 0.25], [0.25, 0.75]]


def lengths(completions, **_):
    return [float(len(text)) for text in completions]


def first_letters(completions, **_):
    return [float(ord(text[0])) if text else 0.0 for text in completions]


def test_the_identity_as_combination_weights_merges_with_the_preference_itself(soup):
    """ABA: λ = μ, where the soup's own B (β = .75) gives λ = 2μ - .5."""
    own, aba = SoupPolicies(soup, PREFERENCES), SoupPolicies(soup, PREFERENCES, combination_weights=np.eye(2))
    np.testing.assert_allclose(own.coefficients_KN, [[1.0, 0.0], [0.0, 1.0]], atol=1e-12)
    np.testing.assert_allclose(aba.coefficients_KN, PREFERENCES)
    assert aba.provenance()["combination_weights"] == [[0.75, 0.25], [0.25, 0.75]]
    assert aba.provenance()["merged_with"] == [[1.0, 0.0], [0.0, 1.0]]


def test_another_b_answers_as_the_soup_of_its_coefficients(soup):
    settings = EvaluationSettings(max_new_tokens=8, seed=3)
    prompts = ["the cat", "a sea was", "sad"]
    # B = [[.9, .3], [.1, .7]], μ = (.6, .4): λ = B⁻¹μ = (.3·.6, …)/(.6) = (.5, .5), worked out by hand
    asked = SoupPolicies(soup, [[0.6, 0.4]], combination_weights=[[0.9, 0.3], [0.1, 0.7]], include_markers=False)
    np.testing.assert_allclose(asked.coefficients_KN, [[0.5, 0.5]])
    same = SoupPolicies(soup, [[0.5, 0.5]], include_markers=False)  # 2μ - .5 = (.5, .5)
    fronts = [evaluate_policies(p, prompts, [lengths, first_letters], settings, show_progress=False)
              for p in (asked, same)]  # fmt: skip
    np.testing.assert_array_equal(fronts[0].rewards_KN, fronts[1].rewards_KN)


def test_combination_weights_are_checked(soup):
    with pytest.raises(WeightsError, match="invertible"):
        SoupPolicies(soup, PREFERENCES, combination_weights=[[0.5, 0.5], [0.5, 0.5]])


@pytest.mark.parametrize(("kind", "groups"), [("adapter", [[0, 1, 2, 3, 4]]), ("full", [[0], [1], [2], [3], [4]])])
def test_adapters_share_batches_and_full_checkpoints_do_not(soup_folder, kind, groups):
    policies = SoupPolicies(BoneSoup.from_pretrained(soup_folder(kind=kind)), PREFERENCES)
    assert policies.markers == ("base", "backbone good", "backbone brief")
    with policies.answering(read_prompts(["the cat is", "sad"]), EvaluationSettings(max_new_tokens=2)) as answering:
        assert answering.groups == groups
        assert answering.order == [1, 0]
        (answer,) = answering([Row(groups[-1][-1], 1, 0)], [7])
        assert len(answer.token_ids) <= 2

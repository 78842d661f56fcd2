"""Mixtures of logits against a plain loop in float64: no cache, no batch, one backbone after the other."""

import numpy as np
import pytest
import torch

from trl_bonesoup.errors import ConfigurationError, WeightsError
from trl_bonesoup.front.evaluate import evaluate_policies
from trl_bonesoup.front.mixture import LogitMixture, MixturePolicies
from trl_bonesoup.front.policies import Row
from trl_bonesoup.front.prompts import read_prompts
from trl_bonesoup.front.sampling import gumbel_noise
from trl_bonesoup.front.settings import EvaluationSettings
from trl_bonesoup.front.soups import SoupPolicies
from trl_bonesoup.soup.lora import BoneSoup

PROMPTS = ["the cat", "a happy dog runs and the sun is good .", "sad", "the sea was cold and bad ."]
PREFERENCES = [[1.0, 0.0], [0.7, 0.3], [0.5, 0.5], [0.0, 1.0]]
SETTINGS = EvaluationSettings(max_new_tokens=10, temperature=0.8, seed=5)
ROWS = [Row(model, prompt, 0) for prompt in range(len(PROMPTS)) for model in range(len(PREFERENCES))]
SEEDS = [100 + row.prompt for row in ROWS]


@torch.no_grad()
def by_hand(soup, weights, text, seed, settings=SETTINGS):
    """Sample from the normalised product of the backbones' distributions."""
    ids = list(soup.tokenizer(text)["input_ids"])
    start = len(ids)
    for step in range(settings.max_new_tokens):
        log_product = 0.0
        for j, weight in enumerate(weights):
            soup.set_coefficients(np.eye(2)[j])
            log_product += weight * soup.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1).numpy()
        noise = gumbel_noise(seed, step, len(log_product))
        token = int((log_product if settings.temperature == 0 else log_product / settings.temperature + noise).argmax())
        if token == soup.tokenizer.eos_token_id:
            break
        ids.append(token)
    return ids[start:]


def answers(policies, rows=ROWS, seeds=SEEDS, settings=SETTINGS):
    with policies.answering(read_prompts(PROMPTS), settings) as answering:
        return [answer.token_ids for answer in answering(rows, seeds)]


# β = .75: λ = 2μ - .5, negative at the vertices
@pytest.mark.parametrize(
    ("mix_with", "weights"),
    [("preference", PREFERENCES), ("coefficients", [[1.5, -0.5], [0.9, 0.1], [0.5, 0.5], [-0.5, 1.5]])],
)
@pytest.mark.parametrize("temperature", [0.8, 0.0])
def test_a_batch_equals_the_product_of_the_backbones_sampled_by_hand(soup_folder, mix_with, weights, temperature):
    settings = EvaluationSettings(max_new_tokens=10, temperature=temperature)
    policies = MixturePolicies(BoneSoup.from_pretrained(soup_folder()), PREFERENCES, mix_with=mix_with)
    other = BoneSoup.from_pretrained(soup_folder())
    expected = [
        by_hand(other, weights[row.model], PROMPTS[row.prompt], seed, settings)
        for row, seed in zip(ROWS, SEEDS, strict=True)
    ]
    assert answers(policies, settings=settings) == expected
    if temperature:
        assert len({len(ids) for ids in expected}) > 1  # rows that had ended were beside others that had not


def test_a_weight_of_one_is_that_backbone_exactly(soup):
    mixed = evaluate_policies(
        MixturePolicies(soup, PREFERENCES), PROMPTS, [lengths, letters], SETTINGS, show_progress=False
    )
    soups = evaluate_policies(
        SoupPolicies(soup, PREFERENCES), PROMPTS, [lengths, letters], SETTINGS, show_progress=False
    )
    np.testing.assert_array_equal(mixed.rewards_KN[0], soups.markers["backbone good"].rewards_N)
    np.testing.assert_array_equal(mixed.rewards_KN[3], soups.markers["backbone brief"].rewards_N)
    assert (mixed.rewards_KN[1] != mixed.rewards_KN[0]).any()
    assert mixed.coefficients_KN is None
    assert mixed.provenance["mixture_weights"] == PREFERENCES
    assert mixed.provenance["mixed_with"] == "preference"


def lengths(completions, **_):
    return [float(len(text)) for text in completions]


def letters(completions, **_):
    return [float(sum(map(ord, text))) for text in completions]


def test_mixing_is_not_merging(soup):
    mixed, merged = MixturePolicies(soup, [[0.5, 0.5]]), SoupPolicies(soup, [[0.5, 0.5]], include_markers=False)
    rows, seeds = [Row(0, prompt, 0) for prompt in range(4)], [1, 2, 3, 4]
    assert answers(mixed, rows, seeds) != answers(merged, rows, seeds)


def test_an_answer_does_not_depend_on_the_rows_beside_it(soup):
    policies = MixturePolicies(soup, PREFERENCES)
    together = answers(policies)
    assert answers(policies, ROWS[::-1], SEEDS[::-1]) == together[::-1]
    assert [answers(policies, [row], [seed])[0] for row, seed in zip(ROWS, SEEDS, strict=True)] == together


def test_the_soup_is_put_back(soup):
    soup.set_preference([0.3, 0.7])
    answers(MixturePolicies(soup, PREFERENCES))
    np.testing.assert_array_equal(soup.preference, [0.3, 0.7])
    np.testing.assert_allclose(soup.coefficients, [0.1, 0.9])


def test_a_backbone_without_a_say_cannot_rule_a_token_out():
    scores = torch.tensor([[1.0, 2.0], [-torch.inf, 5.0]])
    ids = torch.zeros(2, 1, dtype=torch.long)
    assert LogitMixture(np.array([[1.0, 0.0]]))(ids, scores).tolist() == [[1.0, 2.0]] * 2
    assert LogitMixture(np.array([[0.5, 0.5]]))(ids, scores).tolist() == [[-torch.inf, 3.5]] * 2


def test_what_cannot_be_mixed_is_refused(soup, soup_folder):
    with pytest.raises(ConfigurationError, match="full checkpoints"):
        MixturePolicies(BoneSoup.from_pretrained(soup_folder(kind="full")), PREFERENCES)
    with pytest.raises(ConfigurationError, match=r"one of \['preference', 'coefficients'\]; got 'logits'"):
        MixturePolicies(soup, PREFERENCES, mix_with="logits")
    with pytest.raises(WeightsError, match="sum to 1"):
        MixturePolicies(soup, [[0.5, 0.4]])
    with pytest.raises(ConfigurationError, match="weights for 1 groups of 2 rows but the batch has 3"):
        LogitMixture(np.array([[0.5, 0.5]]))(torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 4))

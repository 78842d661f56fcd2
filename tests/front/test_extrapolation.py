"""Choosing α: the arithmetic on scores made by hand, and the search on soups whose best α is known in closed form."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from small_models import make_model, make_tokenizer

from trl_bonesoup.errors import ConfigurationError, FrontError, WeightsError
from trl_bonesoup.front import extrapolation
from trl_bonesoup.front.alpha_choice import choose_alpha
from trl_bonesoup.front.evaluate import evaluate_front
from trl_bonesoup.front.extrapolation import search_extrapolation
from trl_bonesoup.front.front import Front
from trl_bonesoup.front.settings import EvaluationSettings
from trl_bonesoup.manifest import Backbone, BaseModelRef, Objective, SoupManifest
from trl_bonesoup.soup.lora import BoneSoup
from trl_bonesoup.weights import circulant_weights

NAMES = ("good", "brief")
ALPHAS = [0.0, 0.25, 0.5]


def scores_of(means_AVN, prompts=40, noise=0.0, seed=0, own=0.0):
    """Scores (A, V, P, 1, N): means, noise that a prompt adds to all alike, and noise of each answer's own."""
    means = np.asarray(means_AVN, dtype=float)[:, :, None, None]
    random = np.random.default_rng(seed)
    shared = noise * random.normal(size=(1, 1, prompts, 1, 2))
    return means + shared + own * random.normal(size=(*means.shape[:2], prompts, 1, 2))


# at vertex 0 only objective 0 counts, at vertex 1 only objective 1
MEANS = [[[1.0, 9.0], [5.0, 2.0]], [[3.0, 0.0], [7.0, 2.5]], [[2.0, 99.0], [9.0, 1.0]]]


# the choice


def test_each_objective_takes_the_best_alpha_at_its_own_vertex():
    choice = choose_alpha(scores_of(MEANS), ALPHAS, NAMES)
    assert choice.extrapolation == [0.25, 0.25]
    assert [[g.value for g in gains] for gains in choice.gains] == [[0, 0], [2, 0.5], [1, -1]]
    np.testing.assert_allclose(choice.rewards_AVN, MEANS)
    higher = scores_of(MEANS)
    higher[2, 1, :, :, 1] += 3.0
    assert choose_alpha(higher, ALPHAS, NAMES).extrapolation == [0.25, 0.5]


def test_one_alpha_weighs_the_gains_of_all_objectives_in_their_own_units():
    means = [[[0.0, 0], [0, 0.0]], [[1.0, 0], [0, -3.0]], [[-0.2, 0], [0, 4.0]]]
    scores = scores_of(means, prompts=400, noise=1.0)
    # in raw units .5 gains 3.8 and .25 loses 2; with objective 1 in units a hundred times as large, objective 0
    # gains 1 and loses .2 deviations, and objective 1 loses .03 and gains .04
    assert choose_alpha(scores, ALPHAS, NAMES, per_objective=False).extrapolation == 0.5
    spread = np.random.default_rng(5).normal(size=(1, 1, 400, 1)) * 100.0
    scores[..., 1] += spread
    assert choose_alpha(scores, ALPHAS, NAMES, per_objective=False).extrapolation == 0.25
    choice = choose_alpha(1000.0 * scores, ALPHAS, NAMES, per_objective=False)
    assert choice.extrapolation == 0.25
    deviations = [scores[0, i, :, 0, i].std() for i in range(2)]
    assert choice.joint_gains[1].value == pytest.approx((1.0 / deviations[0] - 3.0 / deviations[1]) / 2)


def test_the_unit_of_a_gain_is_the_spread_at_the_objectives_own_vertex():
    means = [[[0.0, 0], [0, 0.0]], [[1.0, 0], [0, 1.0]]]
    scores = scores_of(means, prompts=2)
    scores[:, 0, :, 0] += np.array([[-1.0, 0], [1.0, 0]])  # objective 0 at its own vertex has deviation 1
    scores[:, 1, :, 0] += np.array([[0, -5.0], [0, 5.0]])  # objective 1 at its own has 5, and 0 elsewhere
    choice = choose_alpha(scores, [0.0, 0.5], NAMES, per_objective=False)
    assert choice.joint_gains[1].value == pytest.approx((1 / 1 + 1 / 5) / 2)


def test_of_equal_alphas_the_smallest_is_taken():
    choice = choose_alpha(scores_of(np.ones((3, 2, 2)), noise=1.0), ALPHAS, NAMES)
    assert choice.extrapolation == [0.0, 0.0]
    assert choice.within_noise == (True, True)
    assert "α = 0 for good: no other is better." in choice.verdict()


def test_alphas_that_rounding_tells_apart_are_equal():
    means = np.zeros((3, 2, 2))
    means[1:, 0, 0] = 0.00058597922, 0.00058598543
    means[1:, 1, 1] = 1e-8, -1e-8
    choice = choose_alpha(scores_of(means, noise=0.3), ALPHAS, NAMES)
    assert choice.extrapolation == [0.25, 0.0]
    assert [gains[1].value for gains in choice.gains] == [0.0, 0.0, 0.0]
    assert "e-0" not in choice.table().split("brief", 2)[2]
    joint = choose_alpha(scores_of(means, noise=0.3), ALPHAS, NAMES, per_objective=False)
    assert joint.extrapolation == 0.25
    real = np.zeros((3, 2, 2))
    real[1:, 0, 0] = 0.0005, 0.0006
    assert choose_alpha(scores_of(real, noise=0.3), ALPHAS, NAMES).extrapolation == [0.5, 0.0]


def test_what_prompts_share_is_no_noise_and_what_answers_have_of_their_own_is():
    means = np.zeros((3, 2, 2))
    means[1, 0, 0], means[2, 1, 1] = 0.3, 0.3
    shared = choose_alpha(scores_of(means, noise=10.0), ALPHAS, NAMES)
    assert shared.extrapolation == [0.25, 0.5]
    assert shared.within_noise == (False, False)
    own = choose_alpha(scores_of(means, own=3.0), ALPHAS, NAMES)
    assert own.within_noise == (True, True)
    assert "within noise, α = 0 may be as good" in own.verdict()


def test_the_best_of_many_that_are_all_alike_is_rarely_called_a_gain():
    """With intervals for one α at a time, the best of five would look like a gain in every tenth search."""
    alphas = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    found = [
        choose_alpha(scores_of(np.zeros((6, 2, 2)), own=1.0, seed=s), alphas, NAMES, resamples=500).within_noise
        for s in range(60)
    ]
    assert np.mean([not quiet for pair in found for quiet in pair]) <= 0.06


def test_scores_that_were_declined_are_left_out():
    scores = np.repeat(scores_of(MEANS, noise=1.0), 2, axis=3)
    scores[:, :, :, 1] = np.nan
    whole, holes = choose_alpha(scores_of(MEANS, noise=1.0), ALPHAS, NAMES), choose_alpha(scores, ALPHAS, NAMES)
    np.testing.assert_allclose(holes.rewards_AVN, whole.rewards_AVN)
    assert holes.gains == whole.gains


def test_the_record_and_the_table_hold_what_was_measured():
    choice = choose_alpha(scores_of(MEANS), ALPHAS, NAMES)
    record = json.loads(json.dumps(choice.record()))
    assert record["extrapolation"] == [0.25, 0.25]
    assert record["vertices"]["brief"][2] == {
        "alpha": 0.5, "rewards": {"good": 9.0, "brief": 1.0}, "intervals": {"good": [9.0, 9.0], "brief": [1.0, 1.0]},
        "gain": {"value": -1.0, "lower": -1.0, "upper": -1.0},
    }  # fmt: skip
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in choice.table().splitlines()]
    assert cells[0] == ["all weight on", "α", "good", "brief", "gain", "interval"]
    assert cells[3] == ["good", "**0.25**", "3", "0", "+2", "+2 to +2"]
    assert cells[7] == ["brief", "0.5", "9", "1", "-1", "-1 to -1"]


# a soup whose answers are drawn from a known distribution: one softmax, whatever was said before

TARGET = 2
LIMIT = 8
GOOD_LOGIT, END_LOGIT = 0.8, 1.2


def constant_model(logits: dict[str, float]):
    """A model whose layers do nothing, so that every token is drawn from softmax(logits): 0, or as given."""
    model, tokenizer = make_model(0), make_tokenizer()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        model.model.embed_tokens.weight.fill_(1.0)  # normalised: every hidden number is 1
        model.lm_head.weight[[0, 2, 3, 4]] = -20.0 / model.config.hidden_size
        for token, logit in logits.items():
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(token)] = logit / model.config.hidden_size
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Backbone 0 says "good" more often, backbone 1 ends earlier; merging and extrapolation scale both logits."""
    place = tmp_path_factory.mktemp("constant")
    for name, logits in {"base": {}, "b0": {"good": GOOD_LOGIT}, "b1": {"<eos>": END_LOGIT}}.items():
        constant_model(logits).save_pretrained(place / name)
        make_tokenizer().save_pretrained(place / name)
    SoupManifest(
        base_model=BaseModelRef(id="base"),
        objectives=tuple(Objective(name=name, reward=name) for name in NAMES),
        combination_weights=circulant_weights(2, 0.75),  # λ of the vertices is (1.5, -.5) and (-.5, 1.5)
        backbones=(Backbone(path="b0", kind="full"), Backbone(path="b1", kind="full")),
    ).save(place)
    return place


@pytest.fixture
def soup(folder):
    return BoneSoup.from_pretrained(folder)


def begins_good(completions, **_):
    return [float(text.startswith("good")) for text in completions]


def near_target(completions, **_):
    return [-float((len(text.split()) - TARGET) ** 2) for text in completions]


REWARDS = [begins_good, near_target]


def expected(alpha: float, vertex: int) -> tuple[float, float]:
    """The two mean rewards in closed form: how probable "good" is as first token, and a truncated geometric length."""
    first, second = [(1.5, -0.5), (-0.5, 1.5)][vertex]
    k = 1.0 / (1.0 - alpha)
    good, end = math.exp(k * first * GOOD_LOGIT), math.exp(k * second * END_LOGIT)
    others = 15.0 + 4.0 * math.exp(-20.0)
    stop = end / (good + end + others)
    lengths = [stop * (1 - stop) ** n for n in range(LIMIT)] + [(1 - stop) ** LIMIT]
    return good / (good + end + others), -sum(p * (n - TARGET) ** 2 for n, p in enumerate(lengths))


VALIDATION = [f"the {w} {v}" for w in ("cat", "dog", "sea", "sun") for v in ("is", "was", "runs", "and", "cold")]
TEST = [f"a {w} {v}" for w in ("cat", "dog", "sea") for v in ("is", "was", "runs", "and")]
SETTINGS = EvaluationSettings(samples_per_prompt=10, max_new_tokens=LIMIT, batch_size=200, seed=1)


def search(soup, **options):
    options = {"settings": SETTINGS, "show_progress": False, **options}
    return search_extrapolation(soup, VALIDATION, REWARDS, **options)


def test_the_answer_known_by_construction_is_found(soup):
    """Saying "good" grows with α without end; an answer near 2 words has an α in between."""
    alphas = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    exact_AVN = np.array([[expected(alpha, vertex) for vertex in range(2)] for alpha in alphas])
    best = [alphas[int(exact_AVN[:, i, i].argmax())] for i in range(2)]
    assert best == [0.5, 0.4]

    found = search(soup)
    assert found.choice.alphas == tuple(alphas)
    np.testing.assert_allclose(found.choice.rewards_AVN[:, 0, 0], exact_AVN[:, 0, 0], atol=0.05)
    np.testing.assert_allclose(found.choice.rewards_AVN[:, 1, 1], exact_AVN[:, 1, 1], atol=1.0)
    assert found.extrapolation[0] == 0.5
    assert found.extrapolation[1] in (0.3, 0.4, 0.5)  # exact means -3.12, -2.86 and -3.09; that of 0 is -6.19
    assert found.choice.within_noise == (False, False)
    assert found.fronts == {} == found.differences
    with pytest.raises(FrontError, match="no test prompts"):
        found.plot()


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_every_alpha_is_measured_as_evaluate_front_does(soup, soup_folder, kind):
    soup = soup if kind == "full" else BoneSoup.from_pretrained(soup_folder())
    choice = search(soup, alphas=[0.4]).choice
    assert choice.alphas == (0.0, 0.4)
    for a, alpha in enumerate(choice.alphas):
        front = evaluate_front(
            soup, VALIDATION, REWARDS, np.eye(2), extrapolation=alpha, include_markers=False, show_progress=False,
            **dataclasses.asdict(SETTINGS),
        )  # fmt: skip
        np.testing.assert_allclose(choice.rewards_AVN[a], front.rewards_KN)


def test_the_front_before_and_after_is_on_other_prompts(soup):
    found = search(soup, alphas=[0.5], test_prompts=TEST, preferences=[[1, 0], [0.5, 0.5], [0, 1]])
    alpha = found.extrapolation
    assert alpha[0] == 0.5
    before, after = found.fronts.values()
    assert list(found.fronts) == ["α = 0", f"α = {alpha[0]:g}, {alpha[1]:g}"]
    for front, used in ((before, 0.0), (after, alpha)):
        assert front.provenance["prompts"] == len(TEST)
        assert front.provenance["extrapolation"] == used
        direct = evaluate_front(
            soup, TEST, REWARDS, before.preferences_KN, extrapolation=used, show_progress=False,
            **dataclasses.asdict(SETTINGS),
        )  # fmt: skip
        np.testing.assert_allclose(front.rewards_KN, direct.rewards_KN)
    gain = (before.preferences_KN * (after.rewards_KN - before.rewards_KN)).sum(axis=1).mean()
    assert found.differences["inner_product"].value == pytest.approx(gain)
    assert "On the test prompts" in found.text()
    figure = found.plot()
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [*found.fronts, "base"]


def test_one_alpha_for_all(soup):
    found = search(soup, alphas=[0.1, 0.5], per_objective=False)
    gains = [g.value for g in found.choice.joint_gains]
    assert found.extrapolation == found.choice.alphas[int(np.argmax(gains))]
    assert len(found.choice.chosen_gains) == 1


def test_a_reward_that_alpha_does_not_touch_stays_at_zero(soup):
    flat = [lambda completions, **_: [1.0] * len(completions)] * 2
    found = search_extrapolation(
        soup, VALIDATION, flat, settings=SETTINGS, show_progress=False, test_prompts=TEST, alphas=[0.3]
    )
    assert found.extrapolation == [0.0, 0.0]
    assert found.fronts == {}


def test_test_prompts_that_were_chosen_by_are_refused_before_anything_is_generated(soup, monkeypatch):
    monkeypatch.setattr(extrapolation, "evaluate_policies", lambda *a, **k: pytest.fail("generated"))
    with pytest.raises(ConfigurationError, match="2 of the 3 test prompts are among the validation prompts"):
        search(soup, test_prompts=[VALIDATION[3], "a sea", VALIDATION[0]])


def test_the_kept_front_says_which_soup_is_which(soup, tmp_path):
    choice = search(soup, alphas=[0.2, 0.5], folder=tmp_path).choice
    markers = Front.from_json(tmp_path / "vertices.json").markers
    assert len(markers) == 4
    np.testing.assert_array_equal(markers["all good, α = 0.5"].rewards_N, choice.rewards_AVN[2, 0])
    np.testing.assert_array_equal(markers["all brief, α = 0.2"].rewards_N, choice.rewards_AVN[1, 1])


@pytest.mark.parametrize("alpha", [1.0, -0.1])
def test_alphas_out_of_range_are_refused(soup, alpha):
    with pytest.raises(WeightsError, match="extrapolation"):
        search(soup, alphas=[alpha])


def test_a_search_goes_on_where_it_was_interrupted(soup, tmp_path, monkeypatch):
    options = {"alphas": [0.5], "test_prompts": TEST, "preferences": np.eye(2), "folder": tmp_path}
    with monkeypatch.context() as patch:

        def interrupted(policies, *args, **kwargs):
            if kwargs["front_path"].name == "after.json":
                raise KeyboardInterrupt
            return evaluate_policies(policies, *args, **kwargs)

        evaluate_policies = extrapolation.evaluate_policies
        patch.setattr(extrapolation, "evaluate_policies", interrupted)
        with pytest.raises(KeyboardInterrupt):
            search(soup, **options)
    measured = []

    def noted(policies, *args, **kwargs):
        measured.append(kwargs["front_path"].name)
        return evaluate_policies(policies, *args, **kwargs)

    monkeypatch.setattr(extrapolation, "evaluate_policies", noted)
    found = search(soup, **options)
    assert measured == ["after.json"]
    record = json.loads((tmp_path / "extrapolation.json").read_text(encoding="utf-8"))
    assert record["extrapolation"] == found.extrapolation
    assert record["differences"]["hypervolume"]["value"] == found.differences["hypervolume"].value
    with pytest.raises(ConfigurationError, match="extrapolation"):
        search(soup, **{**options, "alphas": [0.4]})

"""Methods: which policies each needs, and what a YAML file may say about them."""

from typing import Any

import numpy as np
import pytest

from trl_bonesoup.errors import ConfigurationError, WeightsError
from trl_bonesoup.front.methods import MixtureMethod, SoupMethod, random_weights, read_methods
from trl_bonesoup.weights import check_combination_weights, merging_coefficients


def mixtures(spec: Any, n: int = 2) -> list[list[list[float]]]:
    return [[mixture.tolist() for mixture in method.mixtures] for method in read_methods([spec], n)]


def test_each_method_needs_these_policies() -> None:
    assert mixtures("base") == [[]]
    assert mixtures("rewarded-soups") == [[[1, 0], [0, 1]]]
    assert mixtures("mod") == [[[1, 0], [0, 1]]]
    assert np.allclose(
        mixtures({"bone-soup": {"dominance": [0.6, 0.8]}}), [[[0.6, 0.4], [0.4, 0.6]], [[0.8, 0.2], [0.2, 0.8]]]
    )
    assert np.allclose(mixtures({"aba": {"dominance": 0.8}}, 3), [[[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]])
    assert mixtures({"morlhf": {"grid": 0.5}}) == [[[1, 0], [0.5, 0.5], [0, 1]]]
    assert mixtures({"morlhf": {"preferences": [[0.9, 0.1], [0.2, 0.8]]}}) == [[[0.9, 0.1], [0.2, 0.8]]]


def test_names_and_folders_tell_them_apart() -> None:
    specs = ["base", "rewarded-soups", {"bone-soup": {"dominance": [0.6, 0.7]}}, {"aba": None}, "mod", "morlhf",
             {"mod": {"dominance": 0.7, "mix_with": "coefficients"}}, {"random-b": {"draws": 2}}]  # fmt: skip
    methods = read_methods(specs, 2)
    assert [method.slug for method in methods] == [
        "base", "rewarded-soups", "bone-soup-0.6", "bone-soup-0.7", "aba-0.7", "mod", "morlhf", "mod-0.7-coefficients",
        "random-b-0-1", "random-b-0-2",
    ]  # fmt: skip
    assert [method.name for method in methods][2:5] == ["Bone Soup, β = 0.6", "Bone Soup, β = 0.7", "ABA, β = 0.7"]
    by_slug = {method.slug: method for method in methods}
    assert isinstance(by_slug["aba-0.7"], SoupMethod) and by_slug["aba-0.7"].averaged
    assert isinstance(by_slug["bone-soup-0.7"], SoupMethod) and not by_slug["bone-soup-0.7"].averaged
    mixed = by_slug["mod-0.7-coefficients"]
    assert isinstance(mixed, MixtureMethod) and mixed.mix_with == "coefficients"


@pytest.mark.parametrize("n", [2, 3])
def test_random_matrices_are_valid_and_the_same_for_a_seed(n: int) -> None:
    drawn = random_weights(n, 40, seed=1)
    for weights in drawn:
        check_combination_weights(weights)
        assert np.allclose(weights * 1000, np.round(weights * 1000))
        assert np.abs(merging_coefficients(weights, np.eye(n))).max() <= 10.0 + 1e-9
    assert np.array_equal(drawn, random_weights(n, 40, seed=1))
    assert not np.array_equal(drawn[0], random_weights(n, 1, seed=2)[0])
    assert np.array_equal(drawn[0], random_weights(n, 1, seed=1)[0])  # more draws keep the first
    entries = np.concatenate([weights.ravel() for weights in drawn])
    assert entries.mean() == pytest.approx(1 / n)
    assert not all((weights.argmax(axis=0) == np.arange(n)).all() for weights in drawn)  # nobody ordered the columns


@pytest.mark.parametrize(
    ("specs", "error", "message"),
    [
        (["bonesoup"], ConfigurationError, "Unknown method 'bonesoup'; a method is one of base, rewarded-soups"),
        ([{"base": {"dominance": 0.7}}], ConfigurationError, r"base takes no options; got {'dominance'}"),
        ([{"bone-soup": {"beta": 0.7}}], ConfigurationError, "bone-soup takes only the options dominance"),
        ([{"bone-soup": 0.7}], ConfigurationError, "only the options dominance; got 0.7"),
        ([{"bone-soup": {}, "aba": {}}], ConfigurationError, "Unknown method"),
        ([{"bone-soup": {"dominance": 0.4}}], WeightsError, r"\(1/2, 1\]"),
        (["base", "base"], ConfigurationError, "each of them once"),
        ([], ConfigurationError, "needs methods"),
        ([{"morlhf": {"preferences": [0.5, 0.5]}}], ConfigurationError, "at least two preferences"),
        ([{"morlhf": {"preferences": [[0.5, 0.6], [1, 0]]}}], WeightsError, "must sum to 1"),
        ([{"mod": {"mix_with": "logits"}}], ConfigurationError, "mix_with must be one of"),
        ([{"random-b": {"draws": 0}}], ConfigurationError, "at least 1; got 0"),
    ],
)  # fmt: skip
def test_mistakes_are_named(specs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_methods(specs, 2)

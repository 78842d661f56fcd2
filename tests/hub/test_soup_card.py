"""The card of a soup is parsed back: its metadata, its numbers, and what it says of what was not measured."""

import ast
import re
import warnings

import numpy as np
import pytest
from cards import RECIPE, blocks, evaluated, made_by_hand, make_front, make_manifest, read_back, section, table_with

from trl_bonesoup.errors import ConfigurationError, FrontError, WeightsError
from trl_bonesoup.front.front import Marker
from trl_bonesoup.hub.card import soup_card
from trl_bonesoup.hub.plan import BASE
from trl_bonesoup.manifest import Backbone, BaseModelRef, Objective, ScoreStatistics
from trl_bonesoup.soup.record import SavedSoup
from trl_bonesoup.training.run import library_versions
from trl_bonesoup.weights import simplex_grid


class TestMetadata:
    @pytest.mark.parametrize(
        ("kind", "library", "relation"), [("adapter", "peft", "adapter"), ("full", "transformers", "merge")]
    )
    def test_is_what_the_hub_reads(self, tmp_path, kind, library, relation):
        card = soup_card(make_manifest(), [0.8, 0.2], kind=kind, license="apache-2.0")
        metadata, loaded = read_back(card, tmp_path)
        assert metadata["library_name"] == library
        assert metadata["base_model"] == "org/sft"
        assert metadata["base_model_relation"] == relation
        assert metadata["license"] == "apache-2.0"
        assert metadata["pipeline_tag"] == "text-generation"
        assert {"bone-soup", "model-merging", "trl"} <= set(metadata["tags"])
        assert loaded.data.to_dict() == metadata

    def test_leaves_out_what_is_not_known(self, tmp_path):
        metadata, _ = read_back(soup_card(make_manifest(base="/home/ann/sft"), [0.8, 0.2], kind="full"), tmp_path)
        assert not {"license", "base_model", "base_model_relation", "model-index"} & set(metadata)

    def test_model_index_has_each_measured_mean(self, tmp_path):
        manifest = make_manifest()
        front = make_front(manifest, [[1.0, 0.0], [0.8, 0.2], [0.0, 1.0]])
        card = soup_card(manifest, [0.8, 0.2], kind="full", front=front, name="org/soup")
        metadata, loaded = read_back(card, tmp_path)
        assert metadata["model-index"][0]["name"] == "org/soup"
        assert {result.metric_type: result.metric_value for result in loaded.data.eval_results} == {
            "helpful": 10.0,
            "harmless": 11.0,
        }
        assert "9.5 to 10.5" in loaded.data.eval_results[0].metric_name

    @pytest.mark.parametrize("base", ["sft", "models/sft"])
    def test_a_folder_beside_soup_json_is_not_taken_for_a_hub_id(self, tmp_path, base):
        manifest = make_manifest(base=base)
        assert soup_card(manifest, [0.8, 0.2], kind="full", folder=tmp_path).data.base_model == base
        (tmp_path / base).mkdir(parents=True)
        card = soup_card(manifest, [0.8, 0.2], kind="full", folder=tmp_path)
        assert card.data.base_model is None
        assert "`sft`, a folder beside `soup.json`" in card.text
        assert "base_model=" not in card.text  # soup.json alone is enough

    def test_nor_is_the_folder_in_which_a_base_model_is_published(self):
        assert soup_card(make_manifest(base=BASE), [0.8, 0.2], kind="full").data.base_model is None

    def test_a_base_model_named_by_the_caller_stands_for_the_local_copy(self):
        card = soup_card(make_manifest(base="/home/ann/sft"), [0.8, 0.2], kind="full", base_model="org/sft")
        assert card.data.base_model == "org/sft"
        assert "`org/sft`" in card.text


class TestCoefficients:
    def test_preference_and_coefficients_have_their_signs_and_order(self):
        text = soup_card(make_manifest(), [0.8, 0.2], kind="full").text
        assert table_with(text, "Preference μ") == [
            ["Objective", "Preference μ"],
            ["helpful", "0.8"],
            ["harmless", "0.2"],
        ]
        assert table_with(text, "Coefficient λ")[1:] == [
            ["backbone-0", "0.7 helpful + 0.3 harmless", "+1.2500"],
            ["backbone-1", "0.3 helpful + 0.7 harmless", "-0.2500"],
        ]
        assert "A negative coefficient is meant" in text

    def test_trained_on_is_the_column_of_b(self):
        manifest = make_manifest(combination_weights=((0.9, 0.4), (0.1, 0.6)))
        rows = table_with(soup_card(manifest, {"helpful": 1.0}, kind="full").text, "Coefficient λ")
        assert rows[1] == ["backbone-0", "0.9 helpful + 0.1 harmless", "+1.2000"]
        assert rows[2] == ["backbone-1", "0.4 helpful + 0.6 harmless", "-0.2000"]

    def test_extrapolation_gives_the_sft_model_its_share(self):
        text = soup_card(make_manifest(), [1.0, 0.0], kind="full", extrapolation=0.2).text
        rows = table_with(text, "Coefficient λ")
        assert [row[2] for row in rows[1:]] == ["+2.1875", "-0.9375", "-0.2500"]
        assert rows[3][0] == "the SFT model"
        assert "α = 0.2" in text

    def test_without_extrapolation_or_negative_signs_neither_is_mentioned(self):
        text = soup_card(make_manifest(), [0.5, 0.5], kind="full").text
        assert "SFT" not in text
        assert "negative" not in text

    def test_three_objectives(self):
        manifest = make_manifest(("a", "b", "c"))
        rows = table_with(soup_card(manifest, [0.5, 0.3, 0.2], kind="full").text, "Coefficient λ")
        assert [row[2] for row in rows[1:]] == ["+0.7500", "+0.2500", "+0.0000"]


class TestMeasuredRewards:
    def test_this_soup_stands_among_its_neighbours_and_markers(self):
        manifest = make_manifest()
        markers = {"base": Marker([-3.0, -4.0], [[-3.5, -2.5], [-4.5, -3.5]]), "backbone helpful": [7.0, -7.0]}
        front = make_front(manifest, simplex_grid(2, 0.2), markers=markers)
        rows = table_with(soup_card(manifest, [0.8, 0.2], kind="full", front=front).text, "Model")
        assert rows == [
            ["Model", "Preference μ", "helpful", "harmless"],
            ["soup", "1, 0", "0 (-0.5 to 0.5)", "1 (0.5 to 1.5)"],
            ["this soup", "0.8, 0.2", "10 (9.5 to 10.5)", "11 (10.5 to 11.5)"],
            ["soup", "0.6, 0.4", "20 (19.5 to 20.5)", "21 (20.5 to 21.5)"],
            ["base", "", "-3 (-3.5 to -2.5)", "-4 (-4.5 to -3.5)"],
            ["backbone helpful", "", "7", "-7"],
        ]

    def test_a_vertex_has_one_neighbour_and_a_lone_point_none(self):
        manifest = make_manifest()
        grid = make_front(manifest, simplex_grid(2, 0.5))
        lone = make_front(manifest, [[1.0, 0.0]])
        for front, soups in [(grid, ["this soup", "soup"]), (lone, ["this soup"])]:
            rows = table_with(soup_card(manifest, [1.0, 0.0], kind="full", front=front).text, "Model")
            assert [row[0] for row in rows[1:]] == soups

    def test_three_objectives_have_a_neighbour_in_every_direction(self):
        manifest = make_manifest(("a", "b", "c"))
        front = make_front(manifest, simplex_grid(3, 0.1))
        rows = table_with(soup_card(manifest, [0.4, 0.3, 0.3], kind="full", front=front).text, "Model")
        assert [row[0] for row in rows].count("soup") == 6

    def test_over_what_the_means_are_is_said(self):
        manifest = make_manifest()
        front = make_front(manifest, [[0.8, 0.2]])
        object.__setattr__(front, "provenance", {"prompts": 32, "decoding": {"temperature": 0.7}})
        text = section(soup_card(manifest, [0.8, 0.2], kind="full", front=front).text, "Measured rewards")
        assert "each over 64 answers to 32 prompts (`temperature` `0.7`)" in text

    @pytest.mark.parametrize(
        ("preference", "extrapolation", "measured_at"),
        [([0.7, 0.3], 0.0, 0.0), ([0.8, 0.2], 0.2, 0.0), ([0.8, 0.2], 0.0, 0.2), ([0.2, 0.8], 0.0, 0.0)],
    )
    def test_no_number_is_claimed_for_a_soup_that_was_not_measured(self, preference, extrapolation, measured_at):
        manifest = make_manifest()
        front = make_front(manifest, [[1.0, 0.0], [0.8, 0.2]], measured_at, {"base": [333.0, 444.0]})
        card = soup_card(manifest, preference, kind="full", front=front, extrapolation=extrapolation)
        assert card.data.eval_results is None
        assert "were not measured at these coefficients." in section(card.text, "Measured rewards")
        assert not re.search(r"\d", section(card.text, "Measured rewards"))
        assert "333" not in str(card)
        assert "The rewards of this soup;" in section(card.text, "What was not measured")

    def test_policies_that_were_not_merged_say_nothing_about_a_soup(self):
        manifest = make_manifest()
        front = make_front(manifest, [[0.8, 0.2]])
        object.__setattr__(front, "coefficients_KN", None)
        card = soup_card(manifest, [0.8, 0.2], kind="full", front=front)
        assert "were not measured at these coefficients." in section(card.text, "Measured rewards")

    def test_without_a_front_nothing_is_claimed(self):
        card = soup_card(make_manifest(), [0.8, 0.2], kind="full")
        assert section(card.text, "Measured rewards").strip() == "The rewards of this soup were not measured."
        assert "interval" not in card.text

    def test_other_methods_stand_beside_it_where_they_measured_its_preference(self):
        manifest = make_manifest()
        front = evaluated(make_front(manifest, [[0.8, 0.2], [0.5, 0.5]], markers={"base": [-3.0, -4.0]}))
        there = evaluated(make_front(manifest, [[1.0, 0.0], [0.5, 0.5], [0.8, 0.2]]))
        elsewhere = evaluated(make_front(manifest, [[0.7, 0.3]]))
        compared = {"Rewarded Soups": there, "MORLHF": elsewhere}
        text = soup_card(manifest, [0.8, 0.2], kind="full", front=front, compared=compared).text
        assert table_with(text, "Model")[1:] == [
            ["this soup", "0.8, 0.2", "0 (-0.5 to 0.5)", "1 (0.5 to 1.5)"],
            ["soup", "0.5, 0.5", "10 (9.5 to 10.5)", "11 (10.5 to 11.5)"],
            ["Rewarded Soups", "0.8, 0.2", "20 (19.5 to 20.5)", "21 (20.5 to 21.5)"],
            ["base", "", "-3", "-4"],
        ]
        measured, gaps = section(text, "Measured rewards"), section(text, "What was not measured")
        assert "and `Rewarded Soups` at the same preference, on the same prompts with the same settings." in measured
        assert "MORLHF" not in measured
        assert "- `MORLHF` at this preference." in gaps
        assert "- Whether the methods beside this one had the same training." in gaps

    def test_other_methods_are_not_shown_beside_what_was_not_measured(self):
        manifest = make_manifest()
        front = evaluated(make_front(manifest, [[1.0, 0.0], [0.5, 0.5]]))
        there = evaluated(make_front(manifest, [[0.8, 0.2]]))
        card = soup_card(manifest, [0.8, 0.2], kind="full", front=front, compared={"Rewarded Soups": there})
        assert "Rewarded Soups" not in card.text

    def test_refuses_methods_that_were_measured_otherwise_or_without_a_front_of_its_own(self):
        manifest = make_manifest()
        front = make_front(manifest, [[0.8, 0.2]])
        others = {"Rewarded Soups": evaluated(front, seed=1)}
        with pytest.raises(FrontError, match="seed is 1 in its front and 0 in the soup's"):
            soup_card(manifest, [0.8, 0.2], kind="full", front=evaluated(front), compared=others)
        with pytest.raises(ConfigurationError, match="compared with this soup's own front"):
            soup_card(manifest, [0.8, 0.2], kind="full", compared=others)

    def test_refuses_the_front_of_other_objectives(self):
        other = make_front(make_manifest(("harmless", "helpful")), [[0.8, 0.2]])
        with pytest.raises(FrontError, match=r"\['harmless', 'helpful'\], the soup over \['helpful', 'harmless'\]"):
            soup_card(make_manifest(), [0.8, 0.2], kind="full", front=other)


def saved_soup(coefficients=(1.25, -0.25), full=True, **measured):
    return SavedSoup(np.array(coefficients), full, **measured)


class TestPrecision:
    """The soup of these cards is at μ = (.8, .2), with λ = (1.25, -.25)."""

    @pytest.mark.parametrize(
        ("loss", "shown"), [(0.0032, "0.32%"), (0.0, "less than 0.01%"), (1e-7, "less than 0.01%"), (0.0001, "0.01%")]
    )
    def test_a_small_loss_is_told(self, loss, shown):
        card = soup_card(make_manifest(), [0.8, 0.2], kind="full", saved=saved_soup(rounding_loss=loss))
        text = section(card.text, "Precision")
        assert f"Rounding the weights to their dtype loses {shown} of the soup's effect" in text
        assert "float32" not in text
        assert "rounding" not in section(card.text, "What was not measured").lower()

    def test_from_one_percent_on_what_to_do_is_said(self):
        card = soup_card(make_manifest(), [0.8, 0.2], kind="full", saved=saved_soup(rounding_loss=0.24))
        text = section(card.text, "Precision")
        assert "loses 24.00% of the soup's effect" in text
        assert "float32, or as an adapter" in text

    @pytest.mark.parametrize(("error", "remedy"), [(0.004, False), (0.13, True)])
    def test_a_compressed_adapter_tells_its_error(self, error, remedy):
        saved = saved_soup(full=False, rounding_loss=0.0, rank=16, compression_error=error)
        text = section(soup_card(make_manifest(), [0.8, 0.2], kind="adapter", saved=saved).text, "Precision")
        assert f"compressed to rank 16, layer by layer to the nearest of that rank. It loses {error:.2%}" in text
        assert ("A higher rank loses less" in text) == remedy
        assert "Rounding" not in text

    def test_an_exact_adapter_has_nothing_to_tell(self):
        saved = saved_soup(full=False, rounding_loss=0.0, compression_error=0.0)
        text = soup_card(make_manifest(), [0.8, 0.2], kind="adapter", saved=saved).text
        assert "## Precision" not in text
        assert "rounding" not in text.lower()

    @pytest.mark.parametrize(
        "saved",
        [
            None,
            saved_soup(rounding_loss=None),
            saved_soup((1.2499, -0.2499), rounding_loss=0.24),
            saved_soup((1.25, -0.25, 0.0), rounding_loss=0.24),
            saved_soup(full=False, rounding_loss=0.0),
        ],
        ids=["no record", "no base model", "another soup", "another family", "another kind"],
    )
    def test_nothing_is_claimed_that_was_not_measured_on_this_soup(self, saved):
        text = soup_card(make_manifest(), [0.8, 0.2], kind="full", saved=saved).text
        assert "## Precision" not in text
        assert "%" not in text.split("## Citation")[0]
        assert "- What rounding the weights to their dtype loses" in section(text, "What was not measured")

    def test_rewards_of_the_whole_soup_are_not_those_of_what_is_left_of_it(self):
        manifest = make_manifest()
        front = make_front(manifest, [[1.0, 0.0], [0.8, 0.2]])
        for loss, whole in [(0.009, True), (0.011, False)]:
            card = soup_card(
                manifest, [0.8, 0.2], kind="full", front=front, saved=saved_soup(rounding_loss=loss), name="org/soup"
            )
            assert (card.data.eval_results is not None) == whole
            assert ("before it was saved as this model" in section(card.text, "Measured rewards")) != whole
            assert "10 (9.5 to 10.5)" in card.text


class TestExamples:
    @pytest.mark.parametrize(
        ("kind", "library"),
        [("adapter", "peft.AutoPeftModelForCausalLM"), ("full", "transformers.AutoModelForCausalLM")],
    )
    def test_load_the_right_class_from_the_repository(self, kind, library):
        plain, adapter, _ = blocks(soup_card(make_manifest(), [0.8, 0.2], kind=kind, name="org/soup").text, "python")
        example = adapter if kind == "adapter" else plain
        module, name = library.split(".")
        assert f"from {module} import {name}" in example
        assert f'model = {name}.from_pretrained("org/soup")' in example
        assert 'tokenizer = AutoTokenizer.from_pretrained("org/soup")' in plain
        ast.parse(example)

    @pytest.mark.parametrize("name", [None, "My soup", 'org/"); import os #', "/home/ann/soup", "../x/y"])
    def test_load_from_a_placeholder_when_there_is_no_repository(self, name):
        example, *_ = blocks(soup_card(make_manifest(), [0.8, 0.2], kind="full", name=name).text, "python")
        assert 'from_pretrained("path/to/this/folder")' in example

    @pytest.mark.parametrize(
        "names", [("helpful", "harmless"), ('quo"te', "back\\slash"), ("两", "\u2028🍲"), ("`" * 4, "x")]
    )
    def test_the_other_preference_is_a_valid_one_for_this_soup(self, names):
        manifest = make_manifest(names)
        *_, example = blocks(soup_card(manifest, [0.8, 0.2], kind="full").text, "python")
        (call,) = [
            node
            for node in ast.walk(ast.parse(example))
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "set_preference"
        ]
        np.testing.assert_allclose(manifest.preference(ast.literal_eval(call.args[0])), [0.5, 0.5])

    @pytest.mark.parametrize("n", [3, 6, 7, 12])
    def test_the_other_preference_sums_to_one_for_many_objectives(self, n):
        manifest = make_manifest(tuple(f"o{i}" for i in range(n)))
        *_, example = blocks(soup_card(manifest, np.eye(n)[0], kind="full").text, "python")
        manifest.preference(ast.literal_eval(re.search(r"\{.*\}", example).group()))

    def test_the_recipe_is_shown_as_given(self):
        (recipe,) = blocks(soup_card(make_manifest(), [0.8, 0.2], kind="full", mergekit_yaml=RECIPE).text, "yaml")
        assert recipe == RECIPE

    @pytest.mark.parametrize(("kind", "needs_cache"), [("adapter", True), ("full", False)])
    def test_the_recipe_is_run_with_what_its_backbones_need(self, kind, needs_cache):
        manifest = make_manifest(backbones=tuple(Backbone(path=name, kind=kind) for name in "ab"))
        text = soup_card(manifest, [0.8, 0.2], kind="full", mergekit_yaml=RECIPE).text
        command = "mergekit-yaml recipe.yml out/" + " --lora-merge-cache cache/" * needs_cache
        assert f"run `{command}` in the folder" in text

    def test_without_a_recipe_there_is_no_section_for_it(self):
        assert "recipe" not in soup_card(make_manifest(), [0.8, 0.2], kind="full").text

    def test_refuses_a_recipe_that_is_no_yaml(self):
        with pytest.raises(ConfigurationError, match="mergekit_yaml"):
            soup_card(make_manifest(), [0.8, 0.2], kind="full", mergekit_yaml="models: [")


class TestTraining:
    def test_settings_are_those_of_the_manifest(self):
        manifest = make_manifest(
            objectives=(
                Objective(name="helpful", reward="org/rm", normalization=ScoreStatistics(mean=-0.25, std=1.5)),
                Objective(name="harmless", reward="rewards:harmless"),
            ),
            backbones=(
                Backbone(path="a", kind="adapter", steps=40, seed=7),
                Backbone(path="b", kind="adapter", steps=41),
            ),
            base_model=BaseModelRef(id="org/sft", revision="0123abc"),
            training={"kl_coef": 0.2, "bf16": False},
            versions={"trl": "1.16.0"},
        )
        text = soup_card(manifest, [0.8, 0.2], kind="full").text
        assert table_with(text, "Reward function")[1:] == [
            ["helpful", "org/rm", "(score - -0.25) / 1.5"],
            ["harmless", "rewards:harmless", "none"],
        ]
        assert table_with(text, "Seed")[1:] == [
            ["a", "0.7 helpful + 0.3 harmless", "adapter", "40", "7"],
            ["b", "0.3 helpful + 0.7 harmless", "adapter", "41", ""],
        ]
        assert table_with(text, "Setting")[1:] == [["kl_coef", "0.2"], ["bf16", "False"]]
        assert "Trained with `trl` `1.16.0`." in text
        assert "`org/sft`, revision `0123abc`" in text

    def test_a_setting_that_no_backbone_has_has_no_column(self):
        backbones = (Backbone(path="a", kind="adapter"), Backbone(path="b", kind="adapter", seed=0))
        rows = table_with(soup_card(make_manifest(backbones=backbones), [0.8, 0.2], kind="full").text, "Kind")
        assert rows == [
            ["Backbone", "Trained on", "Kind", "Seed"],
            ["a", "0.7 helpful + 0.3 harmless", "adapter", ""],
            ["b", "0.3 helpful + 0.7 harmless", "adapter", "0"],
        ]

    def test_the_paper_is_cited(self):
        (entry,) = blocks(soup_card(make_manifest(), [0.8, 0.2], kind="full").text, "bibtex")
        assert "Xie, Guofu and Zhang, Xiao and Yao, Ting and Shi, Yunsheng" in entry
        assert "Bone Soups: A Seek-and-Soup Model Merging Approach" in entry


class TestTrainedElsewhere:
    """soup.json says that trl-bonesoup trained the backbones; where it does not, nobody knows how they were."""

    def test_no_training_is_claimed(self, tmp_path):
        metadata, card = read_back(soup_card(made_by_hand(), [0.7, 0.3], kind="adapter"), tmp_path)
        assert metadata["tags"] == ["bone-soup", "model-merging", "merge", "multi-objective"]
        assert "reinforcement" not in card.text
        assert "The backbones were trained elsewhere, and how is not recorded." in card.text.split("\n## ")[0]
        mixing = section(card.text, "Preference and merging coefficients")
        assert "that backbone j was trained on, as `soup.json` states." in mixing
        training = section(card.text, "Training")
        assert table_with(training, "Kind") == [
            ["Backbone", "Trained on", "Kind"],
            ["helpful-lora", "1 helpful", "adapter"],
            ["harmless-lora", "1 harmless", "adapter"],
        ]
        assert table_with(training, "Objective")[0] == ["Objective", "Reward function"]
        assert "optimised for" not in section(card.text, "What was not measured")

    def test_what_somebody_wrote_down_is_shown_and_still_not_called_reinforcement_learning(self):
        backbones = tuple(Backbone(path=name, kind="adapter", steps=300) for name in "ab")
        manifest = made_by_hand(backbones=backbones, training={"method": "SFT"}, versions={"trl": "1.16.0"})
        card = soup_card(manifest, [0.7, 0.3], kind="adapter")
        assert "reinforcement" not in card.text
        assert "The backbones were trained elsewhere; what `soup.json` says of it is under Training." in card.text
        assert {"trl", "rlhf"}.isdisjoint(card.data.tags)
        assert [row[-1] for row in table_with(card.text, "Kind")] == ["Optimizer steps", "300", "300"]
        assert table_with(card.text, "Setting")[1:] == [["method", "SFT"]]

    def test_what_seek_trained_is_called_what_it_is(self):
        card = soup_card(make_manifest(versions=library_versions()), [0.7, 0.3], kind="adapter")
        assert "each trained with reinforcement learning on its own mixture of the rewards" in card.text
        assert {"trl", "rlhf"} <= set(card.data.tags)
        assert "elsewhere" not in card.text
        assert "states" not in card.text


class TestRefuses:
    def test_another_kind(self):
        with pytest.raises(ConfigurationError, match=r'"adapter" or "full"; got \'lora\''):
            soup_card(make_manifest(), [0.8, 0.2], kind="lora")

    def test_a_preference_off_the_simplex(self):
        with pytest.raises(WeightsError, match="must sum to 1"):
            soup_card(make_manifest(), [0.8, 0.1], kind="full")

    def test_several_preferences(self):
        with pytest.raises(ConfigurationError, match="one preference; got 2"):
            soup_card(make_manifest(), [[0.8, 0.2], [0.5, 0.5]], kind="full")


def test_an_ordinary_card_warns_of_nothing():
    manifest = make_manifest()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        soup_card(manifest, [0.8, 0.2], kind="adapter", front=make_front(manifest, simplex_grid(2)))

"""The card of a family is parsed back: what it says of B, λ, the front and its metrics, and how a soup is got."""

import ast
import dataclasses
import re
import shlex

import numpy as np
import pytest
import yaml
from cards import blocks, evaluated, made_by_hand, make_front, make_manifest, read_back, section, table_with

from trl_bonesoup.errors import ConfigurationError, FrontError
from trl_bonesoup.front.front import Marker
from trl_bonesoup.hub.card import family_card
from trl_bonesoup.manifest import Backbone
from trl_bonesoup.weights import simplex_grid


def line_front(manifest, rewards, **options):
    """A front at μ = (1, 0), (.5, .5), (0, 1) with these mean rewards, each ± .25."""
    rewards = np.array(rewards)
    front = make_front(manifest, simplex_grid(2, 0.5), **options)
    ends = np.stack([rewards - 0.25, rewards + 0.25], axis=-1)
    return evaluated(dataclasses.replace(front, rewards_KN=rewards, intervals_KN2=ends))


class TestMetadata:
    @pytest.mark.parametrize(("kind", "relation"), [("adapter", "adapter"), ("full", "finetune")])
    def test_is_that_of_a_folder_of_backbones(self, tmp_path, kind, relation):
        manifest = make_manifest(backbones=tuple(Backbone(path=name, kind=kind) for name in "ab"))
        front = evaluated(make_front(manifest, simplex_grid(2, 0.5)))
        card = family_card(manifest, front=front, license="apache-2.0", language=["en", "zh"], datasets="org/prompts")
        metadata, loaded = read_back(card, tmp_path)
        assert metadata["base_model"] == "org/sft"
        assert metadata["base_model_relation"] == relation
        assert metadata["language"] == ["en", "zh"]
        assert metadata["datasets"] == ["org/prompts"]
        assert metadata["pipeline_tag"] == "text-generation"
        assert {"bone-soup", "trl"} <= set(metadata["tags"])
        assert loaded.data.to_dict() == metadata

    def test_no_library_is_named_that_cannot_load_such_a_folder(self):
        for kind in ("adapter", "full"):
            data = family_card(make_manifest(backbones=tuple(Backbone(path=n, kind=kind) for n in "ab"))).data
            assert data.library_name not in ("peft", "transformers")

    def test_no_result_is_claimed_for_many_models_at_once(self):
        manifest = make_manifest()
        assert family_card(manifest, front=make_front(manifest, simplex_grid(2, 0.5))).data.eval_results is None


class TestWeights:
    def test_b_is_shown_row_by_row_and_its_columns_beside_the_backbones(self):
        text = family_card(make_manifest(combination_weights=((0.9, 0.4), (0.1, 0.6)))).text
        assert table_with(text, "Share of") == [
            ["Share of", "backbone 0", "backbone 1"],
            ["helpful", "0.9", "0.4"],
            ["harmless", "0.1", "0.6"],
        ]
        assert [row[:2] for row in table_with(text, "Optimizer steps")[1:]] == [
            ["backbone-0", "0.9 helpful + 0.1 harmless"],
            ["backbone-1", "0.4 helpful + 0.6 harmless"],
        ]
        assert "β" not in section(text, "How it works")

    @pytest.mark.parametrize(
        ("weights", "names", "negative"),
        [
            (np.eye(2), ("a", "b"), False),
            (((0.9, 0.4), (0.1, 0.6)), ("a", "b"), True),
            (np.eye(3), tuple("abc"), False),
        ],
    )
    def test_negative_coefficients_are_explained_where_a_preference_can_have_them(self, weights, names, negative):
        text = section(family_card(make_manifest(names, combination_weights=weights)).text, "How it works")
        assert ("A negative coefficient is meant" in text) == negative
        assert "β" not in text

    def test_beta_is_named_if_b_is_its_circulant(self):
        assert "β = 0.7" in section(family_card(make_manifest()).text, "How it works")
        assert "β = 0.6" in section(family_card(make_manifest(("a", "b", "c"))).text, "How it works")


class TestMeasuredRewards:
    def test_every_preference_has_its_coefficients_and_rewards(self):
        manifest = make_manifest()
        markers = {"base": Marker([-3.0, -4.0], [[-3.5, -2.5], [-4.5, -3.5]])}
        front = line_front(manifest, [[4.0, 0.0], [3.0, 3.0], [0.0, 4.0]], markers=markers)
        rows = table_with(family_card(manifest, front=front).text, "Coefficients λ")
        assert rows == [  # λ = B⁻¹μ for β = .7: (.7, -.3)/.4 and (.5, .5)
            ["Preference μ", "Coefficients λ", "helpful", "harmless"],
            ["1, 0", "+1.7500, -0.7500", "4 (3.75 to 4.25)", "0 (-0.25 to 0.25)"],
            ["0.5, 0.5", "+0.5000, +0.5000", "3 (2.75 to 3.25)", "3 (2.75 to 3.25)"],
            ["0, 1", "-0.7500, +1.7500", "0 (-0.25 to 0.25)", "4 (3.75 to 4.25)"],
            ["base", "", "-3 (-3.5 to -2.5)", "-4 (-4.5 to -3.5)"],
        ]

    def test_how_it_was_measured_is_said(self):
        manifest = make_manifest()
        text = section(family_card(manifest, front=line_front(manifest, np.eye(3)[:, :2])).text, "Measured rewards")
        assert "each over 64 answers to 32 prompts (`max_new_tokens` `24`, `temperature` `0.7`)" in text

    def test_metrics_stand_beside_those_of_another_method_over_one_reference(self):
        manifest = make_manifest()
        mine = line_front(manifest, [[4.0, 0.0], [3.0, 3.0], [0.0, 4.0]])
        theirs = line_front(manifest, [[4.0, -1.0], [1.0, 1.0], [-1.0, 4.0]])
        text = family_card(manifest, front=mine, compared={"Rewarded Soups": theirs}).text
        found = {row[0]: row[1:3] for row in table_with(text, "Metric")}
        assert found["Metric"] == ["This family", "Rewarded Soups"]
        # The worst of both fronts is -1, their range 5, so the reference is (-1.5, -1.5). Mine dominates 1.5 × 5.5 up
        # to x = 0, 3 × 4.5 up to 3, 1 × 1.5 up to 4; theirs .5 × 5.5 up to -1, 2 × 2.5 up to 1, 3 × .5 up to 4.
        assert "reference point `helpful` -1.5, `harmless` -1.5, which all methods share" in text
        assert found["hypervolume"] == ["23.25", "9.25"]
        assert found["inner product"] == ["3.667", "3"]  # (4 + 3 + 4)/3 and (4 + 1 + 4)/3
        assert found["controllability"] == ["1", "1"]
        assert "- Whether the methods beside this one had the same training." in section(text, "What was not measured")

    def test_alone_there_is_no_talk_of_others(self):
        manifest = make_manifest()
        text = family_card(manifest, front=line_front(manifest, np.eye(3)[:, :2])).text
        assert "which all methods share" not in text
        assert "the methods beside" not in text

    def test_one_preference_has_no_metrics(self):
        manifest = make_manifest()
        text = section(family_card(manifest, front=make_front(manifest, [[1.0, 0.0]])).text, "Measured rewards")
        assert "hypervolume" not in text
        assert "+1.7500, -0.7500" in text

    def test_extrapolation_is_said(self):
        manifest = make_manifest()
        front = evaluated(make_front(manifest, simplex_grid(2, 0.5), 0.2), extrapolation=0.2)
        assert "with the extrapolation α = 0.2" in section(family_card(manifest, front=front).text, "Measured rewards")
        plain = make_front(manifest, simplex_grid(2, 0.5))
        assert "α" not in section(family_card(manifest, front=plain).text, "Measured rewards")

    def test_without_a_front_no_number_is_claimed(self):
        text = family_card(make_manifest()).text
        assert section(text, "Measured rewards").strip() == "No rewards were measured."
        assert "interval" not in text
        assert "- The rewards of any soup" in section(text, "What was not measured")

    def test_fronts_that_say_nothing_of_this_family_are_refused(self):
        manifest = make_manifest()
        other = make_front(make_manifest(combination_weights=((0.8, 0.2), (0.2, 0.8))), simplex_grid(2, 0.5))
        with pytest.raises(FrontError, match=r"merged as soup\.json says"):
            family_card(manifest, front=other)
        with pytest.raises(ConfigurationError, match="compared with this family's own front"):
            family_card(manifest, compared={"x": other})
        with pytest.raises(FrontError, match="cannot be compared"):
            family_card(manifest, front=make_front(manifest, simplex_grid(2, 0.5)), compared={"x": other})


class TestTrainedElsewhere:
    @pytest.mark.parametrize(
        ("weights", "stated"),
        [
            (np.eye(2), "each for one of the rewards"),
            (((0.7, 0.3), (0.3, 0.7)), "each for its own mixture of the rewards"),
        ],
    )
    def test_no_training_is_claimed(self, tmp_path, weights, stated):
        metadata, card = read_back(family_card(made_by_hand(weights)), tmp_path)
        assert metadata["tags"] == ["bone-soup", "model-merging", "multi-objective", "peft"]
        assert "reinforcement" not in card.text
        first = card.text.split("\n## ")[0]
        assert f"2 adapters for `org/sft`, {stated} `helpful` and `harmless`, as `soup.json` states" in first
        assert "They were trained elsewhere, and how is not recorded." in first
        assert "steps" not in card.text

    def test_what_seek_trained_is_called_what_it_is(self):
        card = family_card(make_manifest())
        assert "each trained with reinforcement learning on its own mixture of the rewards" in card.text
        assert {"trl", "rlhf"} <= set(card.data.tags)
        assert "elsewhere" not in card.text


class TestHowToGetASoup:
    def test_it_is_loaded_from_the_repository_with_a_preference_of_this_family(self):
        manifest = make_manifest(("a", "b", "c"))
        load, rows = blocks(family_card(manifest, repo_id="org/family").text, "python")
        assert 'BoneSoup.from_pretrained("org/family")' in load
        given = ast.literal_eval(re.search(r"set_preference\((.*)\)", load)[1])
        np.testing.assert_allclose(manifest.preference(given), [1 / 3] * 3, atol=1e-6)
        mu_KN = ast.literal_eval(re.search(r"preferences\((.*)\)", rows)[1])
        np.testing.assert_array_equal(manifest.preference(mu_KN), [[1, 0, 0], [0, 1, 0]])

    def test_a_batch_is_padded_on_the_left_whatever_the_tokenizer_does(self):
        _, rows = blocks(family_card(make_manifest()).text, "python")
        assert 'padding_side="left"' in rows

    def test_the_recipe_is_run_with_a_folder_for_merged_adapters(self):
        full = make_manifest(backbones=tuple(Backbone(path=name, kind="full") for name in "ab"))
        for manifest, option in [(make_manifest(), " --lora-merge-cache cache/"), (full, "")]:
            assert f"run `mergekit-yaml recipe.yml out/{option}` in" in family_card(manifest).text

    def test_a_base_model_that_soup_json_does_not_name_is_passed_on(self):
        manifest = make_manifest(base="/home/ann/sft")
        text = family_card(manifest, repo_id="org/family", base_model="org/sft").text
        assert 'BoneSoup.from_pretrained("org/family", base_model="org/sft")' in text
        assert all("--base-model org/sft" in command for command in blocks(text, "bash"))
        (recipe,) = blocks(text, "yaml")
        assert yaml.safe_load(recipe)["models"][0]["model"] == "org/sft+backbone-0"

    def test_the_folder_that_mergekit_needs_can_be_fetched_if_it_is_on_the_hub(self):
        fetched = "`hf download org/family --local-dir family` fetches it"
        assert fetched in family_card(make_manifest(), repo_id="org/family").text
        assert "hf download" not in family_card(make_manifest()).text

    def test_a_base_model_on_one_machine_is_the_readers_to_fill_in(self):
        text = family_card(make_manifest(base="/home/ann/sft"), repo_id="org/family").text
        assert 'from_pretrained("org/family", base_model="path/to/the/base/model")' in text
        assert "after replacing its folders by yours" in text

    @pytest.mark.parametrize(
        ("names", "preference"), [(("helpful", "harmless"), "helpful=0.5,harmless=0.5"), (("a, b", "$(x)"), "0.5,0.5")]
    )
    def test_commands_are_safe_to_paste(self, names, preference):
        commands = blocks(family_card(make_manifest(names), repo_id="org/family").text, "bash")
        plain = ["bonesoup", "merge", "org/family", "out", "--preference", preference]
        assert [shlex.split(command) for command in commands] == [plain, [*plain, "--full"]]

    def test_full_backbones_give_full_models_and_no_rows(self):
        backbones = tuple(Backbone(path=name, kind="full") for name in "ab")
        text = family_card(make_manifest(backbones=backbones), repo_id="org/family").text
        assert len(blocks(text, "bash")) == 1
        assert "soup.preferences(" not in text
        assert "adapter" not in section(text, "Get one model")

    def test_presets_are_listed_with_their_shares(self):
        text = family_card(make_manifest(presets={"kind": {"helpful": 0.2, "harmless": 0.8}})).text
        assert table_with(text, "Preset") == [["Preset", "helpful", "harmless"], ["kind", "0.2", "0.8"]]
        assert "Preset" not in family_card(make_manifest()).text

    def test_a_backbone_that_mergekit_cannot_name_leaves_out_the_recipe(self):
        backbones = (Backbone(path="a+b", kind="adapter"), Backbone(path="c", kind="adapter"))
        assert "mergekit" not in family_card(make_manifest(backbones=backbones)).text

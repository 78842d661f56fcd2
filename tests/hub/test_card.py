"""A card is parsed back: its metadata, its numbers, and that users' text stays text."""

import ast
import re
import warnings

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from trl_bonesoup.errors import ConfigurationError, FrontError, WeightsError
from trl_bonesoup.front.front import Front, Marker
from trl_bonesoup.hub.card import soup_card, write_card
from trl_bonesoup.manifest import Backbone, BaseModelRef, Objective, ScoreStatistics, SoupManifest
from trl_bonesoup.soup.record import SavedSoup
from trl_bonesoup.weights import circulant_weights, simplex_grid

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")

RECIPE = """\
# the soup at (0.8, 0.2)
merge_method: bone_soup
models:
  - model: org/sft+org/helpful
    parameters: {preference: 0.8}
  - model: org/sft+org/harmless
    parameters: {preference: 0.2}
parameters: {beta: 0.7}
"""


def make_manifest(names=("helpful", "harmless"), base="org/sft", **changes):
    n = len(names)
    return SoupManifest(
        **{
            "base_model": BaseModelRef(id=base),
            "objectives": tuple(Objective(name=name, reward=f"rewards:{i}") for i, name in enumerate(names)),
            "combination_weights": circulant_weights(n, 0.7 if n == 2 else 0.6),
            "backbones": tuple(Backbone(path=f"backbone-{i}", kind="adapter", steps=40 + i) for i in range(n)),
            **changes,
        }
    )


def make_front(manifest, preferences, extrapolation=0.0, markers=None):
    """Rewards that say where they come from: row k has means 10k + i, each ± .5."""
    preferences = np.array(preferences)
    shape = preferences.shape
    rewards = 10.0 * np.arange(shape[0])[:, None] + np.arange(shape[1])
    return Front(
        objectives=manifest.objective_names,
        preferences_KN=preferences,
        coefficients_KN=manifest.coefficients(preferences, extrapolation),
        rewards_KN=rewards,
        intervals_KN2=np.stack([rewards - 0.5, rewards + 0.5], axis=-1),
        n_samples_KN=np.full(shape, 64),
        markers=markers or {},
    )


def read_back(card, tmp_path):
    """What a reader of the saved file gets: metadata as plain YAML, and the card as the Hub client loads it."""
    file = write_card(tmp_path, card)
    _, metadata, _ = file.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(metadata), ModelCard.load(file)


def tables(text):
    """Every table of a card, as a list of rows of plain cell texts."""
    found, row = [], []
    for token in MARKDOWN.parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            row = []
        elif token.type == "inline":
            row.append("".join(child.content for child in token.children))
        elif token.type == "tr_close":
            found[-1].append(row)
            row = []
    return found


def table_with(text, header):
    (found,) = [rows for rows in tables(text) if header in rows[0]]
    return found


def section(text, heading):
    return re.split(r"^## ", text.split(f"## {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def blocks(text, language):
    return [token.content for token in MARKDOWN.parse(text) if token.type == "fence" and token.info == language]


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

    @pytest.mark.parametrize("base", ["base", "models/base"])
    def test_a_folder_beside_soup_json_is_not_taken_for_a_hub_id(self, tmp_path, base):
        manifest = make_manifest(base=base)
        assert soup_card(manifest, [0.8, 0.2], kind="full", folder=tmp_path).data.base_model == base
        (tmp_path / base).mkdir(parents=True)
        card = soup_card(manifest, [0.8, 0.2], kind="full", folder=tmp_path)
        assert card.data.base_model is None
        assert "`base`" in card.text

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

    def test_the_paper_is_cited(self):
        (entry,) = blocks(soup_card(make_manifest(), [0.8, 0.2], kind="full").text, "bibtex")
        assert "Xie, Guofu and Zhang, Xiao and Yao, Ting and Shi, Yunsheng" in entry
        assert "Bone Soups: A Seek-and-Soup Model Merging Approach" in entry


HOSTILE = [
    '"}]\n---',
    "---\nlicense: mit\n---",
    "x\n---\n\n# owned",
    "{{7*7}}",
    "{% include 'x' %}{{ card_data }}",
    "[x](javascript:alert(1))",
    "![x](https://example.org/x.png)",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a ``` b ` c | d \\| e \\",
    "```\n\n# owned",
    "\u202eevil\u2066",
    "!!python/object/apply:os.system",
    "x" * 200,
    "有用性 и безопасность 🍲 مفيد",
    "/home/ann/rewards/helpful",
]


def hostile_card(hostile, **options):
    """A card with the text in every place that takes one; names in soup.json cannot hold control characters."""
    name = re.sub(r"[\x00-\x1f\x7f]", " ", hostile)[:199]
    manifest = make_manifest(
        (name, "other"),
        base=name,
        objectives=(Objective(name=name, reward=name), Objective(name="other", reward="r")),
        backbones=(Backbone(path=name, kind="adapter"), Backbone(path="b", kind="adapter")),
        training={hostile: hostile},
        versions={hostile: hostile},
    )
    front = make_front(manifest, [[0.8, 0.2], [0.7, 0.3]], markers={hostile: [1.0, 2.0]})
    object.__setattr__(front, "provenance", {"prompts": 3, "decoding": {hostile: hostile}})
    recipe = yaml.safe_dump({"merge_method": "bone_soup", "models": [{"model": hostile}]}, allow_unicode=True)
    return soup_card(
        manifest, [0.8, 0.2], kind="full", front=front, name=hostile, mergekit_yaml=recipe, license="mit", **options
    )


@pytest.mark.parametrize("hostile", HOSTILE)
class TestHostileText:
    def test_adds_nothing_to_the_metadata(self, tmp_path, hostile):
        metadata, loaded = read_back(hostile_card(hostile), tmp_path)
        assert set(metadata) <= {
            "base_model",
            "base_model_relation",
            "library_name",
            "license",
            "model-index",
            "pipeline_tag",
            "tags",
        }
        assert metadata["library_name"] == "transformers"
        assert metadata["license"] == "mit"
        assert [result.metric_value for result in loaded.data.eval_results] == [0.0, 1.0]

    def test_makes_no_link_image_html_or_heading(self, tmp_path, hostile):
        _, card = read_back(hostile_card(hostile, plot_path="front.png"), tmp_path)
        links, images, headings, kinds = [], [], 0, set()
        for token in MARKDOWN.parse(card.text):
            headings += token.type == "heading_open"
            for child in [token, *(token.children or [])]:
                kinds.add(child.type)
                links += [child.attrs["href"]] if child.type == "link_open" else []
                images += [child.attrs["src"]] if child.type == "image" else []
        assert links == ["https://arxiv.org/abs/2502.10762"]
        assert images == ["front.png"]
        assert not {"html_inline", "html_block"} & kinds
        assert headings == 8
        assert len(blocks(card.text, "yaml")) == 1
        assert all(len({len(row) for row in rows}) == 1 for rows in tables(card.text))

    def test_is_no_template(self, hostile):
        text = hostile_card(hostile).text
        assert "49" not in text
        if "7*7" in hostile:
            assert text.count("{{7*7}}") > 10

    def test_shows_no_local_folder(self, hostile):
        assert "/home" not in str(hostile_card(hostile).text)


class TestLocalPaths:
    def test_none_are_written(self, tmp_path):
        manifest = make_manifest(
            ("/home/ann/rewards/helpful", "harmless"),
            base="/home/ann/models/sft",
            objectives=(
                Objective(name="/home/ann/rewards/helpful", reward="/home/ann/my rewards/a.py:helpful"),
                Objective(name="harmless", reward="C:\\Users\\ann\\rm"),
            ),
            backbones=(
                Backbone(path="/home/ann/run/helpful", kind="adapter"),
                Backbone(path="../run/b", kind="adapter"),
            ),
            training={"output_dir": "/home/ann/my runs/1", "command": "train --data=/home/ann/data.json"},
            versions={"trl": "1.16.0 @ file:///home/ann/trl"},
        )
        recipe = RECIPE.replace("org/sft", "/home/ann/models/sft").replace("org/", "/home/ann/run/")
        front = make_front(manifest, [[0.8, 0.2]], markers={"/home/ann/other": [1.0, 2.0]})
        card = soup_card(
            manifest,
            [0.8, 0.2],
            kind="full",
            front=front,
            plot_path="/home/ann/front.png",
            mergekit_yaml=recipe,
            name="/home/ann/soup",
        )
        content = write_card(tmp_path, card).read_text(encoding="utf-8")
        assert not re.search(r"ann|home|Users|file:", content)
        assert "`sft`, a local folder" in content
        (shown,) = blocks(card.text, "yaml")
        assert [model["model"] for model in yaml.safe_load(shown)["models"]] == ["sft+helpful", "sft+harmless"]
        assert [model["parameters"] for model in yaml.safe_load(shown)["models"]] == [
            {"preference": 0.8},
            {"preference": 0.2},
        ]

    def test_nor_in_a_comment_of_the_recipe(self):
        card = soup_card(make_manifest(), [0.8, 0.2], kind="full", mergekit_yaml="# in /home/ann/run\n" + RECIPE)
        assert "ann" not in card.text


class TestWriteCard:
    def test_saves_the_picture_beside_it_under_its_own_name(self, tmp_path):
        picture = tmp_path / "Front of [x](y).PNG"
        picture.write_bytes(b"picture")
        card = soup_card(make_manifest(), [0.8, 0.2], kind="full", plot_path=picture)
        file = write_card(tmp_path / "soup", card, plot_path=picture)
        assert file == tmp_path / "soup" / "README.md"
        assert (tmp_path / "soup" / "front.png").read_bytes() == b"picture"
        assert "](front.png)" in file.read_text(encoding="utf-8")

    def test_a_picture_that_is_there_already_stays(self, tmp_path):
        picture = tmp_path / "front.svg"
        picture.write_bytes(b"picture")
        write_card(tmp_path, soup_card(make_manifest(), [0.8, 0.2], kind="full", plot_path=picture), picture)
        assert picture.read_bytes() == b"picture"

    def test_replaces_an_older_card(self, tmp_path):
        (tmp_path / "README.md").write_text("old", encoding="utf-8")
        write_card(tmp_path, soup_card(make_manifest(), [0.8, 0.2], kind="full"))
        assert ModelCard.load(tmp_path / "README.md").data.library_name == "transformers"

    def test_without_a_picture_none_is_shown(self):
        assert "![" not in soup_card(make_manifest(), [0.8, 0.2], kind="full").text

    def test_refuses_a_picture_that_is_missing(self, tmp_path):
        card = soup_card(make_manifest(), [0.8, 0.2], kind="full", plot_path="missing.png")
        with pytest.raises(ConfigurationError, match=r"no picture at missing\.png"):
            write_card(tmp_path, card, plot_path="missing.png")
        assert not (tmp_path / "README.md").exists()

    @pytest.mark.parametrize("picture", ["front.pdf", "front", "front.html"])
    def test_refuses_what_no_card_shows(self, picture):
        with pytest.raises(ConfigurationError, match=r"pictures of \.png, \.svg"):
            soup_card(make_manifest(), [0.8, 0.2], kind="full", plot_path=picture)


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

"""Text that users gave stays text in a card, and nothing of the machine that wrote it is told."""

import functools
import re

import pytest
import yaml
from cards import HOSTILE, MARKDOWN, RECIPE, blocks, evaluated, make_front, make_manifest, read_back, tables
from huggingface_hub import ModelCard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trl_bonesoup.hub.card import family_card, soup_card, write_card
from trl_bonesoup.manifest import Backbone, Objective


def hostile_card(hostile, **options):
    """A card with the text in every place that takes one; names in soup.json cannot hold control characters."""
    name = re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", hostile)[:199]
    manifest = make_manifest(
        (name, "other"),
        base=name,
        objectives=(Objective(name=name, reward=name), Objective(name="other", reward="r")),
        backbones=(Backbone(path=name, kind="adapter"), Backbone(path="b", kind="adapter")),
        training={name: name},
        versions={name: name},
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


WHITE = [" ", "    ", "\t", "\n", "\n\n", "\r", "\n# ", "\n---\n", "\n- ", "\n> ", "\u2028", "\u0000", "\x85", "\u202e"]
PIECES = r"""
    ` `` ``` ~~~ | \| \ * _ ~~ # --- === {{ }} {{card_data}} {%raw%} %} {# [ ]( ) ![x](y) < > <script> <!-- &lt; &#x3C;
    http://example.org www.example.org a@example.org javascript: " ' : !!python/object:x &a *a % $x$ ../ / // . ..
    两 ب é 🍲 a
""".split()  # noqa: SIM905 - a list of them would be quotes
TEXTS = st.lists(st.sampled_from([*PIECES, *WHITE, "\ud800"]) | st.text(max_size=6), max_size=30).map("".join)
MARK = "Zq"
"""With which every hostile text begins, by which it is found again."""


def skeleton(tokens):
    """The structure of a card: what its tokens are, without what they say."""
    return [(token.type, token.tag, [child.type for child in token.children or []]) for token in tokens]


def said_outside_code(tokens):
    spoken = []
    for token in tokens:
        spoken += [child.content for child in token.children or [] if child.type != "code_inline"]
        spoken += [token.content] if token.type not in ("inline", "fence") else []
    return "\n".join(spoken)


def hostile_cards(text):
    """The cards of a soup and of a family, with a text wherever one is taken."""
    text = MARK + text
    name = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", " ", text)[:200]
    manifest = make_manifest(
        (name, "other"),
        base=re.sub("[+@]", " ", name),  # which mergekit cannot name
        objectives=(Objective(name=name, reward=name), Objective(name="other", reward=name)),
        backbones=(Backbone(path=re.sub("[+@]", " ", name), kind="adapter"), Backbone(path="b", kind="adapter")),
        presets={f"a{name}"[:200]: {"other": 1.0}},
        training={name: name},
        versions={name: name},
    )
    front = make_front(manifest, [[1.0, 0.0], [0.8, 0.2]], markers={text: [1.0, 2.0]})
    rewards = {"rewards": {"a": "b"}, "decoding": {text: text}}
    front, other = (evaluated(front, **rewards) for _ in range(2))
    recipe = yaml.safe_dump({"merge_method": "bone_soup", "models": [{"model": text}]}, allow_unicode=True)
    shared = {"front": front, "compared": {text: other}}
    soup = soup_card(
        manifest, [0.8, 0.2], kind="adapter", name=text, family=text, mergekit_yaml=recipe, base_model=text, **shared
    )
    return soup, family_card(manifest, repo_id=text, **shared)


@functools.cache
def harmless_cards():
    return hostile_cards("")


@given(TEXTS)
@example("x" * 300)
@settings(max_examples=20)
def test_no_text_changes_what_a_card_is_made_of(text):
    for card, harmless in zip(hostile_cards(text), harmless_cards(), strict=True):
        tokens = MARKDOWN.parse(card.text)
        assert skeleton(tokens) == skeleton(MARKDOWN.parse(harmless.text))
        assert MARK not in said_outside_code(tokens)
        again = ModelCard(card.content)
        assert again.content == card.content
        assert again.data.to_dict() == card.data.to_dict()
        assert set(again.data.to_dict()) - {"base_model", "base_model_relation"} <= set(harmless.data.to_dict())
        assert again.data.eval_results == card.data.eval_results


LOCAL = st.lists(
    st.sampled_from([
        "/home/ann/x", "/home/ann", "/Users/ann/a b", "~ann/x", "~/ann/x", "C:\\Users\\ann\\x", "C:/Users/ann",
        "\\\\host\\ann\\x", "file:///home/ann/x", "/mnt/ann/x.json", "/home/ann/", "lora", "two words",
    ])
    | st.text(" =(,;:+\"'{[", min_size=1, max_size=2),
    min_size=1, max_size=8,
).map(" ".join)  # fmt: skip


@given(LOCAL)
@settings(max_examples=20)
def test_no_folder_of_this_machine_is_told(text):
    manifest = make_manifest(
        base=f"/home/ann/{text}"[:200],
        objectives=(Objective(name=text, reward=text), Objective(name="other", reward="r")),
        backbones=(Backbone(path=f"/home/ann/{text}", kind="adapter"), Backbone(path="b", kind="adapter")),
        training={"output_dir": text},
        versions={"trl": text},
    )
    for card in (
        soup_card(manifest, [0.8, 0.2], kind="adapter", name=text, mergekit_yaml=yaml.safe_dump({"model": text})),
        family_card(manifest, repo_id=text),
    ):
        assert "ann" not in card.content.replace("cannot", "").replace("channel", "")


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

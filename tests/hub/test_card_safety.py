"""Text that users gave stays text in a card, and nothing of the machine that wrote it is told."""

import re

import pytest
import yaml
from cards import HOSTILE, MARKDOWN, RECIPE, blocks, make_front, make_manifest, read_back, tables

from trl_bonesoup.hub.card import soup_card, write_card
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

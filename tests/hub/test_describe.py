"""A card in the folder of what it is about: with what was noted there, the recipe, and the picture."""

import dataclasses

import pytest
import yaml
from cards import blocks, make_front, make_manifest, section
from huggingface_hub import ModelCard

from trl_bonesoup.errors import ConfigurationError, FrontError
from trl_bonesoup.front.front import Front
from trl_bonesoup.hub.describe import describe_family, describe_soup
from trl_bonesoup.soup.record import SavedSoup
from trl_bonesoup.soup.source import SoupSource
from trl_bonesoup.weights import simplex_grid


@pytest.fixture
def drawn(monkeypatch):
    """The preferences that were ringed in the pictures drawn so far, None for a picture without a ring."""
    ringed = []

    def plot(self, path, *, highlight=None):
        ringed.append(None if highlight is None else list(highlight))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"picture")

    monkeypatch.setattr(Front, "plot", plot)
    return ringed


@pytest.fixture
def source(tmp_path):
    return SoupSource(make_manifest(), tmp_path)


def test_the_picture_rings_the_soup_if_it_was_measured(source, tmp_path, drawn):
    front = make_front(source.manifest, simplex_grid(2, 0.5))
    card = describe_soup(source, tmp_path / "a", [0.5, 0.5], full=True, front=front)
    assert "this soup ringed](front.png)" in card.read_text(encoding="utf-8")
    other = describe_soup(source, tmp_path / "b", [0.6, 0.4], full=True, front=front)
    assert "](front.png)" in other.read_text(encoding="utf-8")
    assert "ringed" not in other.read_text(encoding="utf-8")
    describe_family(source, tmp_path / "c", front=front)
    assert drawn == [[0.5, 0.5], None, None]
    assert all((tmp_path / name / "front.png").read_bytes() == b"picture" for name in "abc")


def test_without_a_front_nothing_is_drawn(source, tmp_path, drawn):
    assert describe_family(source, tmp_path / "run").read_text(encoding="utf-8").count("![") == 0
    assert drawn == []


def test_the_recipe_is_that_of_the_preference_and_of_the_named_base_model(source, tmp_path):
    local = dataclasses.replace(source, manifest=make_manifest(base="/home/ann/sft"))
    card = describe_soup(local, tmp_path / "a", [0.8, 0.2], 0.25, full=True, base_model="org/sft")
    (recipe,) = blocks(ModelCard.load(card).text, "yaml")
    recipe = yaml.safe_load(recipe)
    assert [model["model"] for model in recipe["models"]] == ["org/sft+backbone-0", "org/sft+backbone-1"]
    assert [model["parameters"]["preference"] for model in recipe["models"]] == [0.8, 0.2]
    assert recipe["parameters"] == {"beta": 0.7, "extrapolation": 0.25}


def test_what_was_noted_beside_the_soup_is_told(source, tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    SavedSoup(source.manifest.coefficients([0.8, 0.2]), False, 0.0, 4, 0.25).write(folder)
    text = ModelCard.load(describe_soup(source, folder, [0.8, 0.2], full=False)).text
    assert "loses 25.00%" in section(text, "Precision")
    assert "--rank 4" in blocks(text, "bash")[0]
    (folder / "tokenizer.json").write_text("{}")
    again = ModelCard.load(describe_soup(source, folder, [0.8, 0.2], full=False)).text
    assert 'AutoTokenizer.from_pretrained("org/sft")' in text
    assert 'AutoTokenizer.from_pretrained("path/to/this/folder")' in again


def test_nothing_is_written_if_something_does_not_fit(source, tmp_path, drawn):
    other = make_front(make_manifest(("harmless", "helpful")), [[1.0, 0.0]])
    for options, error in [({"front": other}, FrontError), ({"license": "My License"}, ConfigurationError)]:
        with pytest.raises(error):
            describe_soup(source, tmp_path / "a", [0.8, 0.2], full=True, **options)
        with pytest.raises(error):
            describe_family(source, tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()
    assert drawn == []

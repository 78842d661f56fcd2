"""How cards get into folders, and which README.md they may replace."""

import pytest
from cards import HOSTILE, evaluated, make_front, make_manifest
from huggingface_hub import ModelCard

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.hub.card import check_replaceable, family_card, soup_card, write_card


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

    def test_replaces_an_older_card_and_leaves_nothing_else(self, tmp_path):
        (tmp_path / "README.md").write_text("old", encoding="utf-8")
        write_card(tmp_path, soup_card(make_manifest(), [0.8, 0.2], kind="full"))
        assert ModelCard.load(tmp_path / "README.md").data.library_name == "transformers"
        assert [path.name for path in tmp_path.iterdir()] == ["README.md"]

    def test_without_a_picture_none_is_shown(self):
        assert "![" not in soup_card(make_manifest(), [0.8, 0.2], kind="full").text
        assert "![" not in family_card(make_manifest()).text

    def test_refuses_a_picture_that_is_missing(self, tmp_path):
        card = soup_card(make_manifest(), [0.8, 0.2], kind="full", plot_path="missing.png")
        with pytest.raises(ConfigurationError, match=r"no picture at missing\.png"):
            write_card(tmp_path, card, plot_path="missing.png")
        assert not (tmp_path / "README.md").exists()

    @pytest.mark.parametrize("picture", ["front.pdf", "front", "front.html"])
    def test_refuses_what_no_card_shows(self, picture):
        with pytest.raises(ConfigurationError, match=r"pictures of \.png, \.svg"):
            soup_card(make_manifest(), [0.8, 0.2], kind="full", plot_path=picture)
        with pytest.raises(ConfigurationError, match=r"pictures of \.png, \.svg"):
            family_card(make_manifest(), plot_path=picture)


@pytest.mark.parametrize("hostile", ["org/name", *HOSTILE])
def test_the_hub_takes_both_cards(hub, hostile):
    manifest = make_manifest()
    front = evaluated(make_front(manifest, [[0.8, 0.2], [0.5, 0.5]], markers={hostile: [1.0, 2.0]}))
    soup = soup_card(manifest, [0.8, 0.2], kind="full", front=front, name=hostile, license="mit", language="en")
    for card in (soup, family_card(manifest, front=front, repo_id=hostile, datasets="org/prompts")):
        card.validate()
    assert [request.path for request in hub.requests] == ["/api/validate-yaml"] * 2
    (index,) = soup.data.to_dict()["model-index"]
    (result,) = index["results"]
    assert index["name"]
    assert {"name", "type"} <= set(result["dataset"])
    assert result["task"]["type"] == "text-generation"
    assert all(isinstance(metric["value"], float) and metric["type"] for metric in result["metrics"])


class TestCheckReplaceable:
    def test_no_readme_and_cards_of_ours_are(self, tmp_path):
        check_replaceable(tmp_path)
        for card in (soup_card(make_manifest(), [0.8, 0.2], kind="full"), family_card(make_manifest())):
            write_card(tmp_path, card)
            check_replaceable(tmp_path)

    @pytest.mark.parametrize(
        "content",
        [
            "# My notes on bone-soup\n",
            "---\ntags: [peft, lora]\n---\n# A card\n",
            "---\n[not, a, mapping]\n---\n",
            "---\na: b: c\n---\n",
            "",
        ],
    )
    def test_what_somebody_else_wrote_is_not(self, tmp_path, content):
        (tmp_path / "README.md").write_text(content, encoding="utf-8")
        with pytest.raises(ConfigurationError, match=r"README\.md is not a card that trl-bonesoup wrote.*--overwrite"):
            check_replaceable(tmp_path)

    def test_nor_is_what_is_no_text(self, tmp_path):
        (tmp_path / "README.md").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigurationError, match="is not a card"):
            check_replaceable(tmp_path)

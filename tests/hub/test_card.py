"""How cards get into folders, and which README.md they may replace."""

import pytest
from cards import make_manifest
from huggingface_hub import ModelCard

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.hub.card import soup_card, write_card


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

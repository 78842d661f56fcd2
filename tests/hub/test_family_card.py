"""The card of a family is parsed back: what it says of B, λ and the front, and that it loads what it says."""

import pytest
from cards import make_manifest, read_back

from trl_bonesoup.hub.card import family_card
from trl_bonesoup.manifest import Backbone


class TestMetadata:
    @pytest.mark.parametrize(("kind", "relation"), [("adapter", "adapter"), ("full", "finetune")])
    def test_is_that_of_a_folder_of_backbones(self, tmp_path, kind, relation):
        manifest = make_manifest(backbones=tuple(Backbone(path=name, kind=kind) for name in "ab"))
        card = family_card(manifest, license="apache-2.0", language=["en", "zh"], datasets="org/prompts")
        metadata, loaded = read_back(card, tmp_path)
        assert metadata["base_model"] == "org/sft"
        assert metadata["base_model_relation"] == relation
        assert metadata["language"] == ["en", "zh"]
        assert metadata["datasets"] == ["org/prompts"]
        assert metadata["library_name"] not in ("peft", "transformers")  # neither loads such a folder
        assert "model-index" not in metadata
        assert loaded.data.to_dict() == metadata

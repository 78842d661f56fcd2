"""Metadata is what the Hub knows, or is left out; never a guess."""

import pytest
from cards import make_manifest

from trl_bonesoup.errors import ConfigurationError
from trl_bonesoup.hub.card import family_card, soup_card
from trl_bonesoup.hub.metadata import base_model_name

CARDS = [
    lambda **options: family_card(make_manifest(), **options),
    lambda **options: soup_card(make_manifest(), [0.8, 0.2], kind="full", **options),
]


@pytest.mark.parametrize("make", CARDS)
class TestOfBothCards:
    def test_is_left_out_if_nobody_said_it(self, make):
        assert not {"license", "language", "datasets", "model-index"} & set(make().data.to_dict())

    def test_is_what_was_said(self, make):
        data = make(license="llama3.1", language="en", datasets=["org/prompts", "imdb"]).data
        assert (data.license, data.language, data.datasets) == ("llama3.1", ["en"], ["org/prompts", "imdb"])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"license": "Apache 2.0"}, "license must be an identifier .* apache-2.0.*'Apache 2.0'"),
            ({"license": "mit\nbase_model: evil/model"}, "license must be"),
            ({"language": "english"}, "ISO 639 code such as en.*'english'"),
            ({"language": ["en", "<b>"]}, "got '<b>'"),
            ({"datasets": "/home/ann/data.jsonl"}, "by their id on the Hub.*data.jsonl"),
            ({"datasets": ["org/a", "https://example.org/x"]}, "by their id"),
        ],
    )
    def test_is_refused_if_the_hub_would_not_know_it(self, make, options, message):
        with pytest.raises(ConfigurationError, match=message):
            make(**options)


@pytest.mark.parametrize(
    ("recorded", "given", "hub_id", "shown", "argument"),
    [
        ("org/sft", None, "org/sft", "org/sft", None),
        ("gpt2", None, "gpt2", "gpt2", None),
        ("/home/ann/sft", "org/sft", "org/sft", "org/sft", "org/sft"),
        ("/home/ann/sft", None, None, "sft", "path/to/the/base/model"),
        ("a/b/c", None, None, "c", "path/to/the/base/model"),
        ("org/sft", "../sft", None, "sft", "path/to/the/base/model"),
        ("C:\\models\\sft", None, None, "sft", "path/to/the/base/model"),
    ],
)
def test_the_base_model_is_a_hub_id_or_a_folder_that_the_reader_has_to_name(recorded, given, hub_id, shown, argument):
    base = base_model_name(make_manifest(base=recorded), given, None)
    assert base == (hub_id, shown, argument)

"""What docs/mergekit.md and the README tell people to write is what mergekit and the method accept."""

import itertools
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from mergekit.config import MergeConfiguration
from mergekit.merge_methods import merge_tensors
from mergekit.options import MergeOptions

from mergekit_bonesoup import bone_soup
from mergekit_bonesoup.check import check_configuration

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "mergekit.md"


def blocks(file, language):
    tokens = MarkdownIt().parse(file.read_text(encoding="utf-8"))
    return [token.content for token in tokens if token.type == "fence" and token.info == language]


@pytest.mark.parametrize("text", [*blocks(PAGE, "yaml"), *blocks(ROOT / "README.md", "yaml")])
def test_configurations(text):
    config = MergeConfiguration.model_validate(yaml.safe_load(text))
    assert config.merge_method == "bone_soup"
    check_configuration(config)


def test_every_parameter_has_a_row():
    page = PAGE.read_text(encoding="utf-8")
    for parameter in bone_soup.spec.parameters:
        assert f"\n| `{parameter.name}` |" in page


def test_every_option_of_mergekit_has_a_row():
    spoken_of = PAGE.read_text(encoding="utf-8")
    silent = {"verbosity", "quiet", "write_model_card", "copy_tokenizer"}
    negated = {"safe_serialization"}
    for option in set(MergeOptions.model_fields) - silent:
        flag = option.replace("_", "-")
        assert f"`--{'no-' if option in negated else ''}{flag}" in spoken_of, option


def test_the_method_of_another_author(monkeypatch):
    (source,) = blocks(PAGE, "python")
    module = types.ModuleType("my_merges")
    monkeypatch.setitem(sys.modules, "my_merges", module)
    exec(source, vars(module))
    tensors = [torch.tensor([value, 0.0]) for value in (1.0, 2.0, 6.0)]
    for order in itertools.permutations(tensors):
        assert torch.equal(merge_tensors(order, module.midpoint), torch.tensor([3.5, 0.0]))

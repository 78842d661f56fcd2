"""What docs/mergekit.md and the README tell people to write is what mergekit and the method accept."""

import itertools
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from mergekit.config import MergeConfiguration
from mergekit.merge_methods import merge_tensors, registry
from mergekit.options import MergeOptions
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny_merges import assert_soup

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


def share_of(text):
    """The coefficients of a configuration, from B itself."""
    config = yaml.safe_load(text)
    parameters, models = config["parameters"], config["models"]
    n = len(models)
    weights = np.full((n, n), (1 - parameters["beta"]) / (n - 1))
    np.fill_diagonal(weights, parameters["beta"])
    preference = [model["parameters"]["preference"] for model in models]
    return np.linalg.inv(weights) @ preference / (1 - parameters["extrapolation"])


def test_the_coefficients_that_comments_state():
    first = blocks(PAGE, "yaml")[0]
    coefficients = share_of(first)
    assert "λ = {:.2f}, {:.2f} and {:.2f} for the base".format(*coefficients, 1 - coefficients.sum()) in first
    example = (ROOT / "examples" / "bonesoup.yml").read_text(encoding="utf-8")
    stated = ", ".join(f"{value:.3g}" for value in share_of(example))
    assert f"# λ = {stated}" in example


def test_merging_in_python(checkpoints, load, tmp_path, monkeypatch):
    """λ = (.7·.6 - .3·.4, .7·.4 - .3·.6) / .4 = (.75, .25); there is no Hub to ask for org/helpful."""
    (source,) = [block for block in blocks(PAGE, "python") if "run_merge" in block]
    (tmp_path / "org").mkdir()
    for name, model in (("helpful", "a"), ("harmless", "b")):
        (tmp_path / "org" / name).symlink_to(checkpoints / model, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    exec(source.replace("org/", "./org/"), {})
    assert_soup(
        load_file(tmp_path / "out" / "model.safetensors"), [(load("org/helpful"), 0.75), (load("org/harmless"), 0.25)]
    )


def test_tensors_in_python():
    """k = 1/.7 and B⁻¹ = [[1.2, -.8], [-.2, 1.8]]: λ = k·(.4, .6), and 1 - k for the base."""
    (source,) = [block for block in blocks(PAGE, "python") if "base_index" in block]
    second = source.split("parameters = ")[2]
    helpful, harmless, sft = (torch.tensor([value]) for value in (1.0, 10.0, 100.0))
    names = {"helpful": helpful, "harmless": harmless, "sft": sft}
    exec(source.removesuffix("parameters = " + second), names)
    torch.testing.assert_close(names["soup"], torch.tensor([0.75 + 2.5]))
    exec(source, names)
    torch.testing.assert_close(names["soup"], torch.tensor([(0.4 + 6.0) / 0.7 + 100 * (1 - 1 / 0.7)]))


def test_what_mergekit_says_without_the_plugin_is_in_the_troubleshooting(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", {})
    with pytest.raises(RuntimeError) as error:
        registry.get("bone_soup")
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert f"| `RuntimeError: {error.value}` (mergekit)" in page


def test_a_matrix_as_a_list_does_not_get_as_far_as_the_plugin():
    config = yaml.safe_load(blocks(PAGE, "yaml")[1])
    config["parameters"]["combination_weights"] = [[0.9, 0.4], [0.1, 0.6]]
    with pytest.raises(ValidationError) as error:
        MergeConfiguration.model_validate(config)
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    errors, where, *_ = str(error.value).splitlines()
    assert where.startswith("parameters.combination_weights")
    assert f"| `{re.sub('[0-9]+', '…', errors)}` with `parameters.combination_weights` (mergekit) |" in page


def test_the_method_of_another_author(monkeypatch):
    (source,) = [block for block in blocks(PAGE, "python") if "@merge_method" in block]
    module = types.ModuleType("my_merges")
    monkeypatch.setitem(sys.modules, "my_merges", module)
    exec(source, vars(module))
    tensors = [torch.tensor([value, 0.0]) for value in (1.0, 2.0, 6.0)]
    for order in itertools.permutations(tensors):
        assert torch.equal(merge_tensors(order, module.midpoint), torch.tensor([3.5, 0.0]))

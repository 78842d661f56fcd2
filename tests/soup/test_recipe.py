"""The mergekit YAML: its parameters mean the same λ, paths survive, and names cannot inject."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from trl_bonesoup import SoupManifest, circulant_weights, merging_coefficients
from trl_bonesoup.errors import SoupError, WeightsError
from trl_bonesoup.soup.recipe import mergekit_yaml


def manifest(
    weights, kind="adapter", base="org/sft", revision=None, paths=("helpful", "harmless", "funny")
) -> SoupManifest:
    n = len(weights)
    return SoupManifest.model_validate(
        {
            "base_model": {"id": base, "revision": revision},
            "objectives": [{"name": f"o{i}", "reward": "r"} for i in range(n)],
            "combination_weights": weights,
            "backbones": [{"path": path, "kind": kind} for path in paths[:n]],
        }
    )


def test_adapters_by_name() -> None:
    text = mergekit_yaml(
        manifest(circulant_weights(2, 0.7), revision="abc"), None, {"o1": 0.25, "o0": 0.75}, 0.5, "bfloat16"
    )
    assert yaml.safe_load(text) == {
        "merge_method": "bone_soup",
        "base_model": "org/sft@abc",
        "models": [
            {"model": "org/sft@abc+helpful", "parameters": {"preference": 0.75}},
            {"model": "org/sft@abc+harmless", "parameters": {"preference": 0.25}},
        ],
        "parameters": {"beta": 0.7, "extrapolation": 0.5},
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }


def test_the_option_that_adapters_need_stands_in_a_comment() -> None:
    weights = circulant_weights(2, 0.7)
    first = mergekit_yaml(manifest(weights), None, [0.5, 0.5]).splitlines()[0]
    assert first.startswith("# mergekit-yaml")
    assert first.endswith("--lora-merge-cache DIR")
    assert "#" not in mergekit_yaml(manifest(weights, "full"), None, [0.5, 0.5])


def test_full_checkpoints_with_one_extrapolation_each() -> None:
    config = yaml.safe_load(
        mergekit_yaml(manifest(circulant_weights(3, 0.6), "full"), None, [1, 0, 0], [0.1, 0.2, 0.0])
    )
    assert [model["model"] for model in config["models"]] == ["helpful", "harmless", "funny"]
    assert [model["parameters"] for model in config["models"]] == [
        {"preference": 1.0, "extrapolation": 0.1},
        {"preference": 0.0, "extrapolation": 0.2},
        {"preference": 0.0, "extrapolation": 0.0},
    ]
    assert config["parameters"] == {"beta": pytest.approx(0.6)}
    assert config["base_model"] == "org/sft"
    assert "dtype" not in config


def test_any_other_matrix_is_written_out() -> None:
    weights = np.array([[0.7, 0.1], [0.3, 0.9]])
    config = yaml.safe_load(mergekit_yaml(manifest(weights), None, [0.4, 0.6]))
    assert "beta" not in config["parameters"]
    read = np.array(json.loads(config["parameters"]["combination_weights"]))
    np.testing.assert_array_equal(read, weights)
    # λ solves λ₀·(.7, .3) + λ₁·(.1, .9) = (.4, .6); a transposed matrix would not give (.5, .5).
    np.testing.assert_allclose(merging_coefficients(read, [0.4, 0.6]), [0.5, 0.5])


def test_local_paths_become_absolute(tmp_path: Path) -> None:
    for name in ("base", "helpful", "harmless"):
        (tmp_path / name).mkdir()
    recipe = manifest(circulant_weights(2, 0.7), base="base")
    config = yaml.safe_load(mergekit_yaml(recipe, tmp_path, [0.5, 0.5]))
    assert config["base_model"] == str(tmp_path / "base")
    assert config["models"][0]["model"] == f"{tmp_path / 'base'}+{tmp_path / 'helpful'}"
    assert yaml.safe_load(mergekit_yaml(recipe, None, [0.5, 0.5]))["models"][0]["model"] == "base+helpful"


def test_names_cannot_inject() -> None:
    evil = 'x"\n- model: other: {a: &b "*b"}'.replace("\n", " ")
    config = yaml.safe_load(
        mergekit_yaml(manifest(circulant_weights(2, 0.7), "full", paths=(evil, "# no: comment")), None, [1, 0])
    )
    assert [model["model"] for model in config["models"]] == [evil, "# no: comment"]


@pytest.mark.parametrize("name", ["a+b", "a@b"])
def test_what_mergekit_cannot_name_is_refused(name: str) -> None:
    with pytest.raises(SoupError, match="Rename the folder"):
        mergekit_yaml(manifest(circulant_weights(2, 0.7), paths=("helpful", name)), None, [1, 0])


def test_a_bad_preference_is_refused_before_anything_is_written() -> None:
    with pytest.raises(WeightsError, match="sum to 1"):
        mergekit_yaml(manifest(circulant_weights(2, 0.7)), None, [1, 1])


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_the_stock_merge_gives_the_same_weights(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("mergekit_bonesoup.method")
    import torch
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions
    from tiny_soups import weights_of

    import mergekit_bonesoup
    from trl_bonesoup.soup.export import merge

    mergekit_bonesoup.register()
    folder = request.getfixturevalue("two_adapters" if kind == "adapter" else "two_full")
    text = mergekit_yaml(SoupManifest.load(folder), folder, [0.9, 0.1], 0.3)
    options = MergeOptions(lora_merge_cache=str(tmp_path / "cache"), quiet=True)
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(tmp_path / "mergekit"), options)
    expected = weights_of(merge(folder, tmp_path / "ours", [0.9, 0.1], extrapolation=0.3, full=True).path)
    got = weights_of(tmp_path / "mergekit")
    assert set(got) == set(expected)
    for name, value in got.items():
        if kind == "full":
            assert torch.equal(value, expected[name])
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)

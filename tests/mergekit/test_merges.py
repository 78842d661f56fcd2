"""Whole merges by mergekit: every tensor it writes against the soup computed in float64."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_merges import assert_soup, soup

PLUGIN = Path(__file__).parents[2] / "mergekit_plugin"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_two_models_with_a_negative_coefficient(checkpoints, load, merge, dtype):
    suffix = "" if dtype == "float32" else f"-{dtype}"
    a, b = checkpoints / f"a{suffix}", checkpoints / f"b{suffix}"
    merged = merge(soup({a: 1.0, b: 0.0}, {"beta": 0.6}, dtype))
    assert_soup(merged, [(load(a), 3.0), (load(b), -2.0)], dtype)


def test_the_order_of_the_models_is_the_order_of_the_objectives(checkpoints, load, merge):
    a, b, c = (checkpoints / name for name in "abc")
    # λ = (2μ - .4)/.8 = (.75, .5, -.25)
    merged = merge(soup({c: 0.5, a: 0.4, b: 0.1}, {"beta": 0.6}))
    assert_soup(merged, [(load(c), 0.75), (load(a), 0.5), (load(b), -0.25)])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_extrapolation_for_three_models(checkpoints, load, merge, dtype):
    suffix = "" if dtype == "float32" else f"-{dtype}"
    paths = [checkpoints / f"{name}{suffix}" for name in ("a", "b", "c", "base")]
    config = soup(
        {paths[0]: 1, paths[1]: 0, paths[2]: 0},
        {"beta": 0.6, "extrapolation": 0.2},
        dtype,
        base_model=str(paths[3]),
    )
    # 1.25·(2, -.5, -.5), base 1 - 1.25
    terms = [(load(path), value) for path, value in zip(paths, (2.5, -0.625, -0.625, -0.25), strict=True)]
    assert_soup(merge(config), terms, dtype)


def test_one_extrapolation_per_model(checkpoints, load, merge):
    a, b, base = (checkpoints / name for name in ("a", "b", "base"))
    config = soup(
        {a: {"preference": 0.25, "extrapolation": 0.5}, b: {"preference": 0.75}},
        {"beta": 0.6},
        base_model=str(base),
    )
    # k∘μ = (.5, .75): λ = (0, 1.25), base -.25
    assert_soup(merge(config), [(load(a), 0.0), (load(b), 1.25), (load(base), -0.25)])


def test_combination_weights_that_are_not_circulant(checkpoints, load, merge):
    a, b = checkpoints / "a", checkpoints / "b"
    merged = merge(soup({a: 0, b: 1}, {"combination_weights": "[[0.9, 0.4], [0.1, 0.6]]"}))
    assert_soup(merged, [(load(a), -0.8), (load(b), 1.8)])


def test_negative_preference_when_asked_for(checkpoints, load, merge):
    a, b = checkpoints / "a", checkpoints / "b"
    merged = merge(soup({a: 1.2, b: -0.2}, {"beta": 0.6, "allow_negative_preference": True}))
    assert_soup(merged, [(load(a), 4.0), (load(b), -3.0)])


def test_a_base_without_extrapolation_is_only_a_donor(checkpoints, merge, constant):
    models = {checkpoints / "a": 0.7, checkpoints / "b": 0.3}
    alone = merge(soup(models, {"beta": 0.7}))
    with_base = merge(soup(models, {"beta": 0.7}, base_model=constant(checkpoints, float("nan"))))
    assert all(torch.equal(with_base[name], tensor) for name, tensor in alone.items())


def test_a_base_listed_without_parameters_stays_the_base(checkpoints, merge):
    a, b, base = (str(checkpoints / name) for name in ("a", "b", "base"))
    config = soup({a: 0.7, b: 0.3}, {"beta": 0.7, "extrapolation": 0.3}, base_model=base)
    implicit = merge(config)
    config["models"].insert(0, {"model": base})
    explicit = merge(config)
    assert all(torch.equal(explicit[name], tensor) for name, tensor in implicit.items())


@pytest.mark.parametrize("n", [2, 3])
def test_adapters(checkpoints, adapters, load, merge, tmp_path, n):
    folders, deltas = adapters
    base = load(checkpoints / "base")
    backbones = [{name: tensor + delta.get(name, 0.0) for name, tensor in base.items()} for delta in deltas[:n]]
    references = [f"{checkpoints / 'base'}+{folder}" for folder in folders[:n]]
    config = soup(
        dict(zip(references, [1.0, *[0.0] * (n - 1)], strict=True)),
        {"beta": 0.6, "extrapolation": 0.2},
        base_model=str(checkpoints / "base"),
    )
    merged = merge(config, lora_merge_cache=str(tmp_path / "cache"))
    coefficients = (3.75, -2.5) if n == 2 else (2.5, -0.625, -0.625)
    # mergekit's own merge of each adapter rounds to float32 before the soup is mixed
    terms = [({k: v.float().double() for k, v in b.items()}, c) for b, c in zip(backbones, coefficients, strict=True)]
    for name, tensor in merged.items():
        expected = sum(value * tensors[name] for tensors, value in [*terms, (base, -0.25)])
        torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=1e-5)
        if name.endswith("q_proj.weight"):
            assert (tensor.double() - base[name]).abs().max() > 0.1


def test_filters_on_the_preference(checkpoints, load, merge):
    a, b = checkpoints / "a", checkpoints / "b"
    config = soup(
        {
            a: {"preference": [{"filter": "self_attn", "value": 1.0}, {"value": 0.0}]},
            b: {"preference": [{"filter": "self_attn", "value": 0.0}, {"value": 1.0}]},
        },
        {"beta": 0.6},
    )
    merged, first, second = merge(config), load(a), load(b)
    for name, tensor in merged.items():
        values = (3.0, -2.0) if "self_attn" in name else (-2.0, 3.0)
        expected = values[0] * first[name] + values[1] * second[name]
        torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=2e-6)


def test_slices_each_with_its_own_preference(checkpoints, load, merge):
    a, b = checkpoints / "a", checkpoints / "b"
    slices = [
        {
            "sources": [
                {"model": str(a), "layer_range": [i, i + 1], "parameters": {"preference": own}},
                {"model": str(b), "layer_range": [i, i + 1], "parameters": {"preference": 1 - own}},
            ]
        }
        for i, own in enumerate((1, 0))
    ]
    config = {"merge_method": "bone_soup", "slices": slices, "parameters": {"beta": 0.6}, "dtype": "float32"}
    merged, first, second = merge(config), load(a), load(b)
    for layer, values in enumerate([(3.0, -2.0), (-2.0, 3.0)]):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        expected = values[0] * first[name] + values[1] * second[name]
        torch.testing.assert_close(merged[name].double(), expected, rtol=0, atol=2e-6)


def test_modules(checkpoints, load, merge):
    a, b = checkpoints / "a", checkpoints / "b"
    config = soup({a: 1, b: 0}, {"beta": 0.6})
    config["modules"] = {"default": {"models": config.pop("models")}}
    assert_soup(merge(config), [(load(a), 3.0), (load(b), -2.0)])


def test_in_raw_pytorch_files(checkpoints, load, tmp_path):
    from click.testing import CliRunner
    from mergekit.scripts.merge_raw_pytorch import main

    for name in "ab":
        shutil.copy(checkpoints / name / "model.safetensors", tmp_path / f"{name}.safetensors")
    file, out = tmp_path / "raw.yml", tmp_path / "out"
    config = soup({tmp_path / "a.safetensors": 1, tmp_path / "b.safetensors": 0}, {"beta": 0.6})
    file.write_text(yaml.safe_dump(config))
    result = CliRunner().invoke(main, [str(file), str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    assert_soup(load_file(out / "model.safetensors"), [(load(checkpoints / "a"), 3.0), (load(checkpoints / "b"), -2.0)])


@pytest.fixture
def stock_mergekit(tmp_path):
    """Run the mergekit-yaml command in its own process, with nothing of ours but the start-up file."""
    site, boot = tmp_path / "site", tmp_path / "boot"
    site.mkdir()
    boot.mkdir()
    shutil.copy(PLUGIN / "zz_mergekit_bonesoup.pth", site)
    (boot / "sitecustomize.py").write_text(f"import site; site.addsitedir({str(site)!r})\n")
    packages = (boot, PLUGIN, PLUGIN.parent / "src", *filter(None, [os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, packages)), "HF_HUB_OFFLINE": "1"}

    def run(config, out, script="import sys; from mergekit.scripts.run_yaml import main; sys.exit(main())"):
        file = tmp_path / "bonesoup.yml"
        file.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-c", script, str(file), str(out), "--quiet"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    return run


def test_a_merge_needs_nothing_for_training_and_plots(checkpoints, stock_mergekit, tmp_path):
    """So that the package can be installed beside mergekit alone: docs/mergekit.md says so."""
    absent = ("trl", "matplotlib", "moocore")
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
        "from mergekit.scripts.run_yaml import main; sys.exit(main())"
    )
    result = stock_mergekit(soup({checkpoints / "a": 1, checkpoints / "b": 0}, {"beta": 0.6}), tmp_path / "out", script)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_stock_command_knows_the_method(checkpoints, load, stock_mergekit, tmp_path):
    a, b, base = (checkpoints / f"{name}-bfloat16" for name in ("a", "b", "base"))
    config = soup({a: 0.75, b: 0.25}, {"beta": 0.6, "extrapolation": 0.2}, "bfloat16", base_model=str(base))
    result = stock_mergekit(config, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    merged = load_file(tmp_path / "out" / "model.safetensors")
    # 1.25·(1.75, -.75), base -.25
    assert_soup(merged, [(load(a), 2.1875), (load(b), -0.9375), (load(base), -0.25)], "bfloat16")
    assert "bone_soup" in (tmp_path / "out" / "mergekit_config.yml").read_text()
    assert "Bone Soup" in (tmp_path / "out" / "README.md").read_text()


def test_the_stock_command_refuses_in_one_line(stock_mergekit, tmp_path):
    result = stock_mergekit(soup({"/no/a": 0.7, "/no/b": [0.3, 0.7]}, {"beta": 0.6}), tmp_path / "out")
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if "bone_soup" in line]
    assert line.startswith("Error: bone_soup: models[1].parameters.preference of /no/b must be one value")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()

"""What mergekit's own options make of a `bone_soup`: the bits of the plain run, or a soup computed in float64."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_merges import assert_same_bits, assert_soup, soup, tensors_of

from mergekit_bonesoup import bone_soup


@pytest.fixture
def run(command):
    """Run mergekit-yaml with options, and return the folder that it wrote."""

    def run(config, *arguments, out="out"):
        result, folder = command(config, *arguments, "--quiet", out=out)
        assert result.exit_code == 0, result.output or result.exception
        return folder

    return run


NAMES = ("a-bfloat16", "b-bfloat16", "c-bfloat16", "base-bfloat16")


def soup_of_three(folder):
    """Three bfloat16 backbones and a base with a share: 1.25·(1.25, .25, -.5), base -.25."""
    a, b, c, base = (folder / name for name in NAMES)
    parameters = {"beta": 0.6, "extrapolation": 0.2}
    return soup({a: 0.7, b: 0.3, c: 0.0}, parameters, "bfloat16", base_model=str(base))


@pytest.fixture
def extrapolated(checkpoints):
    return soup_of_three(checkpoints)


@pytest.fixture
def plain(extrapolated, run):
    return tensors_of(run(extrapolated, out="plain"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--low-cpu-memory"],
        ["--read-to-gpu", "--low-cpu-memory", "--device", "cpu"],
        ["--lazy-unpickle"],
        ["--clone-tensors"],
        ["--async-write"],
        ["--async-write", "--write-threads", "3", "--out-shard-size", "1k"],
        ["--out-shard-size", "1k"],
        ["--random-seed", "7"],
        ["--no-write-model-card", "--no-copy-tokenizer"],
    ],
    ids=" ".join,
)
def test_the_bits_of_the_plain_run(extrapolated, plain, run, arguments):
    assert_same_bits(tensors_of(run(extrapolated, *arguments)), plain)


def test_the_bits_of_the_plain_run_on_several_threads(extrapolated, plain, run, monkeypatch):
    monkeypatch.setattr(torch, "set_num_interop_threads", lambda threads: None)  # once a process, torch says
    threads = torch.get_num_threads()
    try:
        assert_same_bits(tensors_of(run(extrapolated, "--num-threads", "3")), plain)
    finally:
        torch.set_num_threads(threads)


def test_shards_hold_every_tensor_once(extrapolated, plain, run):
    out = run(extrapolated, "--out-shard-size", "1k")
    shards = {file.name: load_file(file) for file in out.glob("*.safetensors")}
    assert len(shards) > 2
    weight_map = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    assert weight_map == {name: file for file, tensors in shards.items() for name in tensors}
    assert sum(map(len, shards.values())) == len(plain)


def test_pytorch_files_hold_the_same_tensors(extrapolated, plain, run):
    out = run(extrapolated, "--no-safe-serialization")
    assert_same_bits(torch.load(out / "pytorch_model.bin", weights_only=True), plain)


@pytest.mark.parametrize("lazily", [False, True])
def test_inputs_in_pytorch_files(checkpoints, plain, run, tmp_path, monkeypatch, lazily):
    """It is mergekit that opens the pickles: here, and for every other method."""
    from mergekit.io.loader import DumbPytorchLoader, LazyPickleLoader

    seen = []
    for loader in (DumbPytorchLoader, LazyPickleLoader):
        read = loader.get_tensor
        monkeypatch.setattr(
            loader, "get_tensor", lambda self, key, read=read: seen.append(type(self)) or read(self, key)
        )
    for name in NAMES:
        folder = tmp_path / "pickled" / name
        folder.mkdir(parents=True)
        shutil.copy(checkpoints / name / "config.json", folder)
        torch.save(load_file(checkpoints / name / "model.safetensors"), folder / "pytorch_model.bin")
    arguments = ["--lazy-unpickle"] if lazily else []
    assert_same_bits(tensors_of(run(soup_of_three(tmp_path / "pickled"), *arguments)), plain)
    assert set(seen) == {LazyPickleLoader if lazily else DumbPytorchLoader}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_out_dtype_rounds_once_after_the_sum(checkpoints, load, run, dtype):
    a, b = checkpoints / "a", checkpoints / "b"
    for out, config in [
        ("alone", soup({a: 1, b: 0}, {"beta": 0.6}, dtype=None, out_dtype=dtype)),
        ("both", soup({a: 1, b: 0}, {"beta": 0.6}, dtype="float32", out_dtype=dtype)),
    ]:
        folder = run(config, out=out)
        assert_soup(tensors_of(folder), [(load(a), 3.0), (load(b), -2.0)], dtype)
        assert json.loads((folder / "config.json").read_text())["dtype"] == dtype


def test_dtype_rounds_the_inputs_too(checkpoints, load, run):
    a, b = checkpoints / "a", checkpoints / "b"
    merged = tensors_of(run(soup({a: 1, b: 0}, {"beta": 0.6}, dtype="bfloat16")))
    rounded = [{name: tensor.bfloat16().double() for name, tensor in load(path).items()} for path in (a, b)]
    assert_soup(merged, list(zip(rounded, (3.0, -2.0), strict=True)), "bfloat16")
    with pytest.raises(AssertionError):
        assert_soup(merged, [(load(a), 3.0), (load(b), -2.0)], "bfloat16")


def test_dtype_widens_half_precision_inputs_before_the_sum(checkpoints, load, run):
    a, b = checkpoints / "a-bfloat16", checkpoints / "b-bfloat16"
    merged = tensors_of(run(soup({a: 1, b: 0}, {"beta": 0.6}, dtype="float32")))
    assert_soup(merged, [(load(a), 3.0), (load(b), -2.0)], "float32")


def test_a_base_of_a_wider_dtype_widens_the_soup(checkpoints, load, run):
    """mergekit promotes all inputs to a common dtype where the configuration gives none."""
    a, b, base = checkpoints / "a-bfloat16", checkpoints / "b-bfloat16", checkpoints / "base"
    config = soup({a: 1, b: 0}, {"beta": 0.6, "extrapolation": 0.2}, dtype=None, base_model=str(base))
    assert_soup(tensors_of(run(config)), [(load(a), 3.75), (load(b), -2.5), (load(base), -0.25)], "float32")


def test_slices_that_cross_and_repeat_layers(checkpoints, load, run):
    models = [checkpoints / name for name in ("a", "b", "base")]
    # For each layer: the preference, the layer taken from each model, and 1.25·λ with the base's share.
    plan = [
        ((1.0, 0.0), (1, 0, 1), (3.75, -2.5, -0.25)),
        ((0.75, 0.25), (0, 0, 0), (2.1875, -0.9375, -0.25)),
        ((0.0, 1.0), (0, 0, 0), (-2.5, 3.75, -0.25)),
    ]
    slices = []
    for preference, layers, _ in plan:
        sources = [{"model": str(m), "layer_range": [i, i + 1]} for m, i in zip(models, layers, strict=True)]
        sources[0]["parameters"], sources[1]["parameters"] = ({"preference": share} for share in preference)
        slices.append({"sources": sources})
    config = {
        "merge_method": "bone_soup",
        "slices": slices,
        "base_model": str(models[2]),
        "parameters": {"beta": 0.6, "extrapolation": 0.2},
        "dtype": "float32",
    }
    folder = run(config)
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 3

    terms = []
    for number, tensors in enumerate(map(load, models)):
        shares = [coefficients[number] for _, _, coefficients in plan]
        # What comes before the layers has the parameters of the first slice, what comes after those of the last.
        term = {"model.embed_tokens.weight": shares[0] * tensors["model.embed_tokens.weight"]}
        term |= {name: shares[-1] * tensors[name] for name in ("model.norm.weight", "lm_head.weight")}
        for out, (_, layers, _) in enumerate(plan):
            taken = f"model.layers.{layers[number]}."
            term |= {
                n.replace(taken, f"model.layers.{out}."): shares[out] * t for n, t in tensors.items() if taken in n
            }
        terms.append((term, 1.0))
    assert_soup(tensors_of(folder), terms)


def test_a_soup_of_a_soup_in_one_file_of_mergekit_multi(checkpoints, load, tmp_path):
    from click.testing import CliRunner
    from mergekit.scripts.multimerge import main

    a, b, c = (checkpoints / name for name in "abc")
    final = soup({"half": 1, c: 0}, {"combination_weights": "[[0.9, 0.4], [0.1, 0.6]]"})
    half = {"name": "half", **soup({a: 1, b: 0}, {"beta": 0.6})}
    file = tmp_path / "multi.yml"
    file.write_text(yaml.safe_dump_all([final, half]))
    arguments = [str(file), "--out-path", str(tmp_path / "out"), "-I", str(tmp_path / "parts"), "--quiet"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert_soup(tensors_of(tmp_path / "parts" / "half"), [(load(a), 3.0), (load(b), -2.0)])
    # B⁻¹ = [[1.2, -.8], [-.2, 1.8]], see test_coefficients
    assert_soup(tensors_of(tmp_path / "out"), [(load(tmp_path / "parts" / "half"), 1.2), (load(c), -0.2)])


def test_a_document_of_mergekit_multi_is_refused_in_one_line(checkpoints, tmp_path):
    from click.testing import CliRunner
    from mergekit.scripts.multimerge import main

    file = tmp_path / "multi.yml"
    file.write_text(
        yaml.safe_dump_all([{"name": "x", **soup({checkpoints / "a": 1, checkpoints / "b": 1}, {"beta": 0.6})}])
    )
    result = CliRunner().invoke(main, [str(file), "-I", str(tmp_path / "parts"), "--quiet"])
    assert result.exit_code == 1
    assert "Error: bone_soup: the preference of all models must sum to 1" in result.output
    assert not (tmp_path / "parts" / "x").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_merged_in_float32_are_rounded_once(checkpoints, adapters, load, run, tmp_path, dtype):
    folders, deltas = adapters
    base = load(checkpoints / "base-bfloat16")
    config = soup(
        {f"{checkpoints / 'base-bfloat16'}+{folder}": share for folder, share in zip(folders, (1, 0, 0), strict=True)},
        {"beta": 0.6},
        dtype=None,
        base_model=str(checkpoints / "base-bfloat16"),
        out_dtype=dtype,
    )
    arguments = ["--lora-merge-cache", str(tmp_path / "cache"), "--lora-merge-dtype", "float32"]
    merged = tensors_of(run(config, *arguments))
    backbones = [
        {name: (tensor + delta.get(name, 0.0)).float().double() for name, tensor in base.items()} for delta in deltas
    ]
    assert_soup(merged, list(zip(backbones, (2.0, -0.5, -0.5), strict=True)), dtype)


def test_strided_weights_give_the_same_bits_and_stay_as_they_are():
    """The check of mergekit's test_merge_method_regressions.py, with the preference that it cannot know."""
    from mergekit.merge_methods import merge_state_dicts

    torch.manual_seed(0)
    tensors = [torch.randn(4, 6).T for _ in range(3)]
    before = [tensor.clone() for tensor in tensors]
    parameters = {"preference": (0.8, 0.2), "beta": 0.6, "extrapolation": 0.2}

    def merge(weights):
        return merge_state_dicts([{"w": w} for w in weights], bone_soup, base=0, parameters=parameters)["w"]

    assert torch.equal(merge(tensors), merge([tensor.contiguous() for tensor in tensors]))
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before, strict=True))
    assert not any(tensor.is_contiguous() for tensor in tensors)


def test_gradients_flow_back_with_the_merging_coefficients():
    from mergekit.merge_methods import merge_tensors

    tensors = [torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    parameters = {"preference": (1, 0), "beta": 0.6, "extrapolation": 0.2}
    merge_tensors(tensors, bone_soup, parameters=parameters, base_index=2).sum().backward()
    for tensor, coefficient in zip(tensors, (3.75, -2.5, -0.25), strict=True):
        torch.testing.assert_close(tensor.grad, torch.full_like(tensor, coefficient))

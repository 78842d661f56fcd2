"""Whole checkpoints: `merge` and `sweep` write the bits that `mergekit-yaml` writes for the YAML of the same soup."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tiny_soups import full_soup, save_base, tiny_llama, weights_of
from transformers import AutoModelForCausalLM

from trl_bonesoup import SoupManifest, sweep
from trl_bonesoup.soup import streaming
from trl_bonesoup.soup.export import merge
from trl_bonesoup.soup.recipe import mergekit_yaml

pytestmark = pytest.mark.filterwarnings("ignore::trl_bonesoup.soup.rounding.RoundingWarning")

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _many_pieces_on_two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cut every tensor of more than 97 values, so that seams at odd places are compared, too."""
    monkeypatch.setattr(streaming, "PIECE", 97)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def stock(tmp_path: Path) -> Callable[..., Tensors]:
    """Run mergekit-yaml on the YAML that this package prints for a soup, and read what it wrote."""
    from mergekit.scripts.run_yaml import main

    import mergekit_bonesoup

    mergekit_bonesoup.register()

    def stock(folder: Path, *arguments: object) -> Tensors:
        out = tmp_path / f"stock-{len(list(tmp_path.glob('stock-*')))}"
        recipe = tmp_path / "soup.yml"
        recipe.write_text(mergekit_yaml(SoupManifest.load(folder), folder, *arguments), encoding="utf-8")
        result = CliRunner().invoke(main, [str(recipe), str(out), "--quiet"])
        assert result.exit_code == 0, result.output or result.exception
        return weights_of(out)

    return stock


def assert_same_bits(ours: Tensors, theirs: Tensors) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


def reshard(folder: Path, parts: int) -> int:
    """Save a checkpoint again in shards of that part of its size at most; return how many there are."""
    size = sum(tensor.nbytes for tensor in weights_of(folder).values()) // parts
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size=size)
    return len(list(folder.glob("*.safetensors")))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [2, 3, 5])
def test_soups_of_one_pass(stock: Callable[..., Tensors], tmp_path: Path, n: int, dtype: torch.dtype) -> None:
    folder = full_soup(tmp_path / "run", n, beta=0.65, dtype=dtype)
    preferences = np.array([np.eye(n)[-1], np.arange(1, n + 1) / np.arange(1, n + 1).sum()])
    for alpha in (0.0, 0.3, [0.4, *[0.1] * (n - 1)]):
        soups = sweep(folder, tmp_path / f"soups-{alpha}", preferences, extrapolation=alpha, show_progress=False)
        for preference, soup in zip(preferences, soups, strict=True):
            theirs = stock(folder, preference, alpha)
            assert {tensor.dtype for tensor in theirs.values()} == {dtype}
            assert_same_bits(weights_of(soup), theirs)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_tied_embeddings(stock: Callable[..., Tensors], tmp_path: Path, alpha: float) -> None:
    folder = full_soup(tmp_path / "run", 3, dtype=torch.bfloat16, tied=True)
    ours = weights_of(merge(folder, tmp_path / "ours", [0.1, 0.2, 0.7], extrapolation=alpha).path)
    assert "lm_head.weight" not in ours
    assert_same_bits(ours, stock(folder, [0.1, 0.2, 0.7], alpha))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shards_that_differ_from_model_to_model(
    stock: Callable[..., Tensors], tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = full_soup(tmp_path / "run", 3, dtype=dtype)
    counts = [reshard(folder / name, parts) for name, parts in [("backbone0", 2), ("backbone2", 5), ("base", 1)]]
    assert len(set(counts)) == 3
    out = merge(folder, tmp_path / "ours", [0.1, 0.2, 0.7], extrapolation=0.3).path
    assert len(list(out.glob("*.safetensors"))) == counts[0]
    assert_same_bits(weights_of(out), stock(folder, [0.1, 0.2, 0.7], 0.3))


def test_combination_weights_that_are_not_circulant(stock: Callable[..., Tensors], tmp_path: Path) -> None:
    folder = full_soup(tmp_path / "run", 2, dtype=torch.bfloat16)
    manifest = json.loads((folder / "soup.json").read_text(encoding="utf-8"))
    manifest["combination_weights"] = [[0.9, 0.35], [0.1, 0.65]]
    (folder / "soup.json").write_text(json.dumps(manifest), encoding="utf-8")
    ours = weights_of(merge(folder, tmp_path / "ours", [0.3, 0.7], extrapolation=[0.0, 0.2]).path)
    assert_same_bits(ours, stock(folder, [0.3, 0.7], [0.0, 0.2]))


@pytest.mark.parametrize("stored", DTYPES, ids=str)
@pytest.mark.parametrize("written", DTYPES, ids=str)
def test_another_dtype_is_rounded_to_once(
    stock: Callable[..., Tensors], tmp_path: Path, stored: torch.dtype, written: torch.dtype
) -> None:
    folder = full_soup(tmp_path / "run", 2, dtype=stored)
    name = str(written).removeprefix("torch.")
    ours = weights_of(merge(folder, tmp_path / "ours", [0.9, 0.1], extrapolation=0.3, dtype=name).path)
    assert {tensor.dtype for tensor in ours.values()} == {written}
    assert_same_bits(ours, stock(folder, [0.9, 0.1], 0.3, name))


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_a_wider_base_widens_what_mergekit_writes_and_not_the_values(
    stock: Callable[..., Tensors], tmp_path: Path, alpha: float
) -> None:
    """Without a dtype mergekit promotes; this package keeps the dtype of the backbones."""
    folder = full_soup(tmp_path / "run", 2, dtype=torch.bfloat16)
    save_base(tiny_llama(), folder / "base")
    ours = weights_of(merge(folder, tmp_path / "ours", [0.9, 0.1], extrapolation=alpha).path)
    theirs = stock(folder, [0.9, 0.1], alpha)
    assert {tensor.dtype for tensor in theirs.values()} == {torch.float32}
    assert_same_bits(ours, {name: tensor.bfloat16() for name, tensor in theirs.items()})
    assert_same_bits(ours, stock(folder, [0.9, 0.1], alpha, "bfloat16"))


def test_a_tied_copy_that_one_backbone_stores_is_written_by_mergekit_alone(
    stock: Callable[..., Tensors], tmp_path: Path
) -> None:
    folder = full_soup(tmp_path / "run", 2, tied=True)
    file = folder / "backbone1" / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file, {"format": "pt"})
    ours = weights_of(merge(folder, tmp_path / "ours", [0.9, 0.1], extrapolation=0.3).path)
    assert_same_bits({**ours, "lm_head.weight": ours["model.embed_tokens.weight"]}, stock(folder, [0.9, 0.1], 0.3))

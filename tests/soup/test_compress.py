"""Compressed adapters against dense singular value decompositions: the weights, and the error that is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.numpy import load_file
from test_combine import product, write_adapter
from tiny_soups import adapter_soup, explicit_merge, logits_of, weights_of
from transformers import AutoModelForCausalLM

from trl_bonesoup import BoneSoup
from trl_bonesoup.errors import ConfigurationError, SoupError
from trl_bonesoup.soup.adapters import read_adapter
from trl_bonesoup.soup.combine import stack_adapters
from trl_bonesoup.soup.compress import CompressedAdapters
from trl_bonesoup.soup.export import merge, save_soup
from trl_bonesoup.soup.source import ModelRef

Factors = dict[str, tuple[np.ndarray, np.ndarray]]


def stack(root: Path, adapters: list[tuple[Factors, dict[str, Any]]], **allow: bool) -> Any:
    folders = [
        write_adapter(root / str(j), factors, r=rank_of(factors), **{"lora_alpha": rank_of(factors), **options})
        for j, (factors, options) in enumerate(adapters)
    ]
    (root / "out").mkdir()
    return stack_adapters([read_adapter(folder) for folder in folders], ModelRef("base"), **allow)


def rank_of(factors: Factors) -> int:
    return len(next(iter(factors.values()))[0])


@given(seed=st.integers(0, 10_000), ranks=st.lists(st.integers(1, 4), min_size=2, max_size=3), rank=st.integers(1, 9))
def test_each_layer_is_the_best_of_its_rank(tmp_path_factory, seed, ranks, rank) -> None:
    rng = np.random.default_rng(seed)
    shapes = {"x.q": (7, 5), "y.v": (3, 8)}
    adapters, expected = [], {name: np.zeros(shape) for name, shape in shapes.items()}
    coefficients = rng.uniform(-3, 3, size=len(ranks))
    for own_rank, coefficient in zip(ranks, coefficients, strict=True):
        factors = {
            name: (
                rng.normal(size=(own_rank, n_in)).astype(np.float32),
                rng.normal(size=(n_out, own_rank)).astype(np.float32),
            )
            for name, (n_out, n_in) in shapes.items()
        }
        alpha = int(rng.integers(1, 9))
        adapters.append((factors, {"lora_alpha": alpha}))
        for name, (A, B) in factors.items():
            expected[name] += coefficient * alpha / own_rank * (B.astype(np.float64) @ A.astype(np.float64))
    root = tmp_path_factory.mktemp("compress")
    compressed = CompressedAdapters(stack(root, adapters), rank)
    error = compressed.write(coefficients, root / "out")

    lost = effect = 0.0
    for name, module in read_adapter(root / "out").modules.items():
        values = np.linalg.svd(expected[name], compute_uv=False)
        assert module.scaling == 1.0
        assert module.rank == min(rank, sum(ranks), *shapes[name])
        assert np.linalg.norm(product(root / "out", name) - expected[name]) == pytest.approx(
            np.linalg.norm(values[rank:]), abs=2e-5
        )
        lost, effect = lost + (values[rank:] ** 2).sum(), effect + (values**2).sum()
    assert error == pytest.approx((lost / effect) ** 0.5, abs=1e-9)
    weights = load_file(root / "out" / "adapter_model.safetensors")
    assert compressed.nbytes_at(coefficients) == sum(tensor.nbytes for tensor in weights.values())


def test_by_hand(tmp_path) -> None:
    # Layer q: λ = (1.5, -2) times diag(2, 0) and diag(0, 2) is diag(3, -4); rank 1 keeps -4 and loses 3.
    # Layer v has one rank and stays: 1.5·8 = 12. Over both, 3 is lost of √(3² + 4² + 12²) = 13.
    first = {"q": (np.array([[1.0, 0.0]]), np.array([[2.0], [0.0]])), "v": (np.eye(1), 8 * np.eye(1))}
    second = {"q": (np.array([[0.0, 2.0]]), np.array([[0.0], [1.0]]))}
    adapters = [
        ({name: (A.astype(np.float32), B.astype(np.float32)) for name, (A, B) in factors.items()}, {})
        for factors in (first, second)
    ]
    stacked = stack(tmp_path, adapters)
    assert CompressedAdapters(stacked, 1).write(np.array([1.5, -2.0]), tmp_path / "out") == pytest.approx(3 / 13)
    np.testing.assert_allclose(product(tmp_path / "out", "q"), [[0.0, 0.0], [0.0, -4.0]], atol=1e-6)
    np.testing.assert_allclose(product(tmp_path / "out", "v"), [[12.0]])
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    norms = [np.linalg.norm(weights[f"base_model.model.q.lora_{factor}.weight"]) for factor in "AB"]
    np.testing.assert_allclose(norms, [2.0, 2.0], rtol=1e-6)  # the singular value 4 is split evenly


def ones(rank: int, value: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    return np.ones((rank, 3), np.float32), np.full((4, rank), value, np.float32)


def test_a_soup_that_changes_nothing_loses_nothing(tmp_path) -> None:
    stacked = stack(tmp_path, [({"q": ones(2)}, {}), ({"q": ones(2)}, {})])
    assert CompressedAdapters(stacked, 1).write(np.array([1.0, -1.0]), tmp_path / "out") == 0.0
    np.testing.assert_array_equal(product(tmp_path / "out", "q"), np.zeros((4, 3)))


def test_a_factor_that_is_not_finite_is_refused_by_name(tmp_path) -> None:
    stacked = stack(tmp_path, [({"x.q": ones(2, float("nan"))}, {}), ({"x.q": ones(2)}, {})], allow_nan=True)
    with pytest.raises(SoupError, match=r"x\.q contains NaN"):
        CompressedAdapters(stacked, 1).write(np.array([1.0, 1.0]), tmp_path / "out")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters of ranks 4 and 2, the second on embeddings too and with rsLoRA."""
    options = [{}, {"r": 2, "use_rslora": True, "target_modules": ["q_proj", "embed_tokens"]}]
    return adapter_soup(tmp_path_factory.mktemp("mixed"), options)


pytestmark = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")


def test_reloaded_it_is_the_truncated_merge(mixed, tmp_path, batch) -> None:
    export = merge(mixed, tmp_path / "out", [1.0, 0.0], extrapolation=0.2, rank=3)
    base = {name: tensor.double().numpy() for name, tensor in weights_of(mixed / "base").items()}
    adapters = [(mixed / "backbone0", lambda layer: 2.0), (mixed / "backbone1", lambda layer: 8 / 2**0.5)]
    exact = explicit_merge(mixed / "base", adapters, [1.75 / 0.8, -0.75 / 0.8])
    merged, lost, effect = {}, 0.0, 0.0
    for name, weight in exact.items():
        U, values, Vh = np.linalg.svd(weight - base[name]) if weight.ndim == 2 else (0, np.zeros(1), 0)
        merged[name] = base[name] + (U[:, :3] * values[:3]) @ Vh[:3] if values.any() else base[name]
        lost, effect = lost + (values[3:] ** 2).sum(), effect + (values**2).sum()
    assert export.compression_error == pytest.approx((lost / effect) ** 0.5, rel=1e-6)
    assert 0.05 < export.compression_error < 0.95
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(mixed / "base"), tmp_path / "out")
    expected = logits_of(mixed / "base", merged, batch)
    torch.testing.assert_close(model(**batch).logits.double(), expected, atol=3e-5, rtol=1e-5)


def test_the_error_falls_with_the_rank_to_nothing(mixed, tmp_path) -> None:
    soup = BoneSoup.from_pretrained(mixed)
    soup.set_coefficients([1.75, -0.75])
    exports = [save_soup(soup, soup.coefficients, tmp_path / str(rank), rank=rank) for rank in range(1, 8)]
    errors = [export.compression_error for export in exports]
    assert all(errors[r] > errors[r + 1] for r in range(5))
    assert errors[5] == errors[6] == 0.0  # 4 + 2 ranks
    assert [export.rank for export in exports] == list(range(1, 8))
    exact = soup.save_pretrained(tmp_path / "exact")
    assert weights_are_equal(tmp_path / "6", exact)
    assert weights_are_equal(tmp_path / "4", exact, lambda name: "q_proj" not in name)  # 4 ranks there anyway
    assert weights_are_equal(soup.save_pretrained(tmp_path / "saved", rank=2), tmp_path / "2")


def weights_are_equal(first: Path, second: Path, chosen: Any = lambda name: True) -> bool:
    ours, others = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    assert set(ours) == set(others)
    return all(np.array_equal(ours[name], others[name]) for name in ours if chosen(name))


def test_what_was_lost_is_written_beside_the_weights(mixed, tmp_path) -> None:
    export = merge(mixed, tmp_path / "out", [0.5, 0.5], rank=2)
    record = json.loads((tmp_path / "out" / "soup_export.json").read_text())
    assert record["rank"] == 2
    assert record["compression_error"] == export.compression_error > 0
    assert record["coefficients"] == [0.5, 0.5]


@pytest.mark.parametrize("rank", [0, -1, True, 2.5])
def test_a_rank_that_is_none_is_refused(two_adapters, tmp_path, rank) -> None:
    with pytest.raises(ConfigurationError, match=rf"from 1; got {rank}"):
        merge(two_adapters, tmp_path / "out", [0.5, 0.5], rank=rank)
    assert list(tmp_path.iterdir()) == []


def test_a_full_checkpoint_has_no_rank(two_adapters, two_full, tmp_path) -> None:
    for run, options in ((two_adapters, {"full": True}), (two_full, {})):
        with pytest.raises(ConfigurationError, match=r"rank=2 \(--rank\) compresses an adapter"):
            merge(run, tmp_path / "out", [0.5, 0.5], rank=2, **options)
    with pytest.raises(ConfigurationError, match="rank=2"):
        BoneSoup.from_pretrained(two_full).save_pretrained(tmp_path / "out", rank=2)
    assert list(tmp_path.iterdir()) == []

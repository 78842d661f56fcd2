"""Streamed soups against float64 sums, and bit for bit against mergekit's linear kernel."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_soups import weights_of

from trl_bonesoup import merging_coefficients
from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup import streaming
from trl_bonesoup.soup.ingredients import Ingredients, accumulate, base_share
from trl_bonesoup.soup.streaming import write_soups


def checkpoint(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return folder


def sharded(folder: Path, *shards: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True)
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file)
        weight_map.update(dict.fromkeys(shard, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def soup_of(folders: list[Path], base: Path | None, coefficients: list[float], out: Path, **options) -> float | None:
    out.mkdir()
    ingredients = Ingredients.open(folders, base)
    (loss,) = write_soups(ingredients, np.array([coefficients]), [out], **options)
    return loss


def random_tensor(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_bits_are_those_of_mergekit(tmp_path, n, dtype, monkeypatch) -> None:
    api = pytest.importorskip("mergekit.merge_methods.api")
    monkeypatch.setattr(streaming, "PIECE", 1000)
    tensors = [random_tensor(j, 61, 83, dtype=dtype) for j in range(n)]
    coefficients = [1.75, -0.4, *[-0.35 / (n - 2)] * (n - 2)] if n > 2 else [1.75, -0.75]
    folders = [checkpoint(tmp_path / str(j), {"w": tensor}) for j, tensor in enumerate(tensors)]
    soup_of(folders, None, coefficients, tmp_path / "out")
    expected = api.merge_tensors(tensors, "linear", parameters={"weight": coefficients, "normalize": False})
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["w"], expected)


@given(
    n=st.integers(2, 4),
    seed=st.integers(0, 10_000),
    alpha=st.floats(0.0, 0.8),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    shape=st.lists(st.integers(1, 9), max_size=4).map(tuple),
)
def test_any_soup_is_the_float64_sum(tmp_path_factory, n, seed, alpha, dtype, shape) -> None:
    """θ = Σ_j (B⁻¹ k∘μ)_j θ_j + (1-Σλ) θ_sft for random B, μ, α, to the rounding of the dtype."""
    rng = np.random.default_rng(seed)
    weights = 0.6 * np.eye(n) + 0.4 * rng.dirichlet(np.ones(n), size=n).T
    mu = rng.dirichlet(np.ones(n))
    values = [random_tensor(seed + j, *shape, dtype=dtype) for j in range(n + 1)]
    root = tmp_path_factory.mktemp("property")
    folders = [checkpoint(root / str(j), {"w": value}) for j, value in enumerate(values)]
    coefficients = merging_coefficients(weights, mu, alpha)
    soup_of(folders[:n], folders[n], coefficients.tolist(), root / "out")
    got = load_file(root / "out" / "model.safetensors")["w"]
    lambda_ = np.linalg.inv(weights) @ (mu / (1.0 - alpha))
    exact = sum(c * value.double() for c, value in zip(lambda_, values[:n], strict=True))
    exact = exact + (1.0 - 1.0 / (1.0 - alpha)) * values[n].double()
    assert got.dtype == dtype
    size = sum(abs(c) for c in lambda_) * 4 + 1
    torch.testing.assert_close(
        got.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=max(torch.finfo(dtype).eps, 1e-7) * size
    )


def test_negative_coefficients_and_the_share_of_the_base(tmp_path) -> None:
    folders = [
        checkpoint(tmp_path / name, {"w": torch.tensor(values)})
        for name, values in {"a": [1.0, 2.0], "b": [4.0, -8.0], "base": [0.5, 16.0]}.items()
    ]
    soup_of(folders[:2], folders[2], [3.5, -1.5], tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors")["w"].tolist() == [3.5 - 6.0 - 0.5, 7.0 + 12.0 - 16.0]


def test_the_base_without_a_share_is_not_added(tmp_path) -> None:
    assert base_share(np.array([0.1, 0.2, 0.7 + 1e-7])) == 0.0
    assert base_share(np.array([0.0, 0.0])) == 1.0
    folders = [checkpoint(tmp_path / str(j), {"w": random_tensor(j, 50)}) for j in range(3)]
    soup_of(folders[:2], None, [0.7, 0.3], tmp_path / "without")
    soup_of(folders[:2], folders[2], [0.7, 0.3], tmp_path / "with")
    assert torch.equal(*(weights_of(tmp_path / name)["w"] for name in ("without", "with")))


def test_a_share_of_a_base_that_was_not_given_is_refused(tmp_path) -> None:
    folders = [checkpoint(tmp_path / str(j), {"w": random_tensor(j, 5)}) for j in range(2)]
    with pytest.raises(SoupError, match="share of -1 in this soup"):
        soup_of(folders, None, [3.5, -1.5], tmp_path / "out")


def test_a_chunk_is_no_limit(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(streaming, "PIECE", 8)
    first, second = random_tensor(1, 5, 5), random_tensor(2, 5, 5)
    folders = [
        checkpoint(tmp_path / str(j), {"w": w, "scalar": w[0, 0].clone()}) for j, w in enumerate([first, second])
    ]
    soup_of(folders, None, [1.5, -0.5], tmp_path / "out")
    got = load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(got["w"], 1.5 * first - 0.5 * second)
    assert got["scalar"].shape == ()


def test_different_shard_layouts_give_the_shards_of_the_first(tmp_path) -> None:
    tensors = [
        {"a": random_tensor(j, 4), "b": random_tensor(j + 9, 3, dtype=torch.bfloat16), "n": torch.arange(3)}
        for j in range(2)
    ]
    first = sharded(tmp_path / "first", {"a": tensors[0]["a"]}, {"b": tensors[0]["b"], "n": tensors[0]["n"]})
    second = sharded(tmp_path / "second", {"b": tensors[1]["b"]}, {"n": tensors[1]["n"]}, {"a": tensors[1]["a"]})
    soup_of([first, second], None, [0.25, 0.75], tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == json.loads((first / "model.safetensors.index.json").read_text())["weight_map"]
    assert index["metadata"]["total_size"] == 4 * 4 + 3 * 2 + 3 * 8
    got = weights_of(tmp_path / "out")
    torch.testing.assert_close(got["a"], 0.25 * tensors[0]["a"] + 0.75 * tensors[1]["a"])
    assert got["b"].dtype == torch.bfloat16
    assert got["n"].tolist() == [0, 1, 2]


def test_many_soups_in_one_pass_are_the_soups_one_by_one(tmp_path) -> None:
    folders = [checkpoint(tmp_path / str(j), {"w": random_tensor(j, 40, 3, dtype=torch.float16)}) for j in range(2)]
    rows = np.array([[1.75, -0.75], [0.5, 0.5], [-0.75, 1.75]])
    outs = [tmp_path / f"soup{k}" for k in range(3)]
    for out in outs:
        out.mkdir()
    write_soups(Ingredients.open(folders, None), rows, outs)
    for row, out in zip(rows, outs, strict=True):
        soup_of(folders, None, row.tolist(), tmp_path / f"{out.name}-alone")
        assert (out / "model.safetensors").read_bytes() == (
            tmp_path / f"{out.name}-alone" / "model.safetensors"
        ).read_bytes()


def test_output_dtype(tmp_path) -> None:
    values = [random_tensor(j, 9, dtype=torch.bfloat16) for j in range(2)]
    folders = [checkpoint(tmp_path / str(j), {"w": value, "n": torch.arange(2)}) for j, value in enumerate(values)]
    soup_of(folders, None, [1.3, -0.3], tmp_path / "out", dtype=torch.float32)
    got = load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(got["w"], 1.3 * values[0].float() - 0.3 * values[1].float())
    assert got["n"].dtype == torch.int64


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_name_tensor_and_backbone(tmp_path, bad) -> None:
    folders = [
        checkpoint(tmp_path / name, {"fine": torch.ones(2), "broken": torch.tensor([1.0, value])})
        for name, value in {"sound": 1.0, "ill": bad}.items()
    ]
    with pytest.raises(SoupError, match=r"broken of .*ill contains NaN or infinity"):
        soup_of(folders, None, [0.5, 0.5], tmp_path / "out")


def test_overflow_is_not_blamed_on_a_backbone(tmp_path) -> None:
    folders = [
        checkpoint(tmp_path / name, {"w": torch.tensor([value], dtype=torch.float16)})
        for name, value in {"a": 60000.0, "b": -60000.0}.items()
    ]
    with pytest.raises(SoupError, match=r"w of the soup exceeds the range.*float32"):
        soup_of(folders, None, [1.75, -0.75], tmp_path / "out")


def test_rounding_is_measured_by_hand(tmp_path) -> None:
    """In bf16 the spacing at 1 is 1/128: 1 + 1/256 + 1/512 rounds to 1 + 1/128, an error of 1/512."""
    values = {"base": 1.0, "a": 1.0, "b": 1.0 + 1 / 128}
    folders = {
        name: checkpoint(tmp_path / name, {"w": torch.tensor([value], dtype=torch.bfloat16)})
        for name, value in values.items()
    }
    loss = soup_of([folders["a"], folders["b"]], folders["base"], [0.25, 0.75], tmp_path / "out")
    assert loss == pytest.approx((1 / 512) / (3 / 512))
    assert soup_of([folders["a"], folders["b"]], None, [0.25, 0.75], tmp_path / "blind") is None


def test_rounding_of_large_models_is_measured_on_a_sample(tmp_path, monkeypatch) -> None:
    """A sample of 1 in 4 of 2,000 pieces is within 5 % of the whole, and is not the whole."""
    tensors = [random_tensor(j, 100, 100) for j in range(3)]
    near = [tensors[2] + 0.01 * tensor for tensor in tensors]
    folders = [checkpoint(tmp_path / str(j), {"w": tensor.bfloat16()}) for j, tensor in enumerate(near)]
    monkeypatch.setattr(streaming, "PIECE", 5)
    monkeypatch.setattr(streaming, "MEASURED", 10**6)
    whole = soup_of(folders[:2], folders[2], [1.75, -0.75], tmp_path / "whole")
    monkeypatch.setattr(streaming, "MEASURED", 500)
    sample = soup_of(folders[:2], folders[2], [1.75, -0.75], tmp_path / "sample")
    assert sample == pytest.approx(whole, rel=0.05)
    assert sample != whole
    with_share = soup_of(folders[:2], folders[2], [2.0, -0.5], tmp_path / "share")
    exact = 2 * near[0].bfloat16().double() - 0.5 * near[1].bfloat16().double() - 0.5 * near[2].bfloat16().double()
    torch.testing.assert_close(load_file(tmp_path / "share" / "model.safetensors")["w"], exact.bfloat16())
    assert with_share != sample


def test_accumulation_order_is_that_of_the_models() -> None:
    """In float32, (1e8 + 1) - 1e8 is 0 and (1e8 - 1e8) + 1 is 1."""
    big, one = torch.tensor([1e8]), torch.tensor([1.0])
    assert accumulate([big, one, big], [1.0, 1.0, -1.0], torch.empty(1)).item() == 0.0
    assert accumulate([big, big, one], [1.0, -1.0, 1.0], torch.empty(1)).item() == 1.0


def test_extremes_near_the_end_of_the_range(tmp_path) -> None:
    """65519 rounds to the largest half, 65504; 65520 rounds to infinity."""
    for value, fits in ((65519.0, True), (65520.0, False), (-65520.0, False)):
        folders = [checkpoint(tmp_path / f"{value}-{j}", {"w": torch.tensor([value, 1.0])}) for j in range(2)]
        out = tmp_path / f"out{value}"
        if fits:
            soup_of(folders, None, [1.5, -0.5], out, dtype=torch.float16)
            assert load_file(out / "model.safetensors")["w"].tolist() == [65504.0, 1.0]
        else:
            with pytest.raises(SoupError, match="exceeds the range"):
                soup_of(folders, None, [1.5, -0.5], out, dtype=torch.float16)


def test_the_threads_of_torch_are_as_before(tmp_path) -> None:
    before = torch.get_num_threads()
    folders = [checkpoint(tmp_path / str(j), {"w": random_tensor(j, 50)}) for j in range(2)]
    soup_of(folders, None, [0.7, 0.3], tmp_path / "out")
    assert torch.get_num_threads() == before


def test_a_file_that_is_cut_short_meanwhile_is_named(tmp_path) -> None:
    folders = [checkpoint(tmp_path / str(j), {"w": random_tensor(j, 5000)}) for j in range(2)]
    ingredients = Ingredients.open(folders, None)
    os.truncate(folders[1] / "model.safetensors", 10_000)
    (tmp_path / "out").mkdir()
    with pytest.raises(SoupError, match=r"1/model\.safetensors was cut short while it was read"):
        write_soups(ingredients, np.array([[0.5, 0.5]]), [tmp_path / "out"])

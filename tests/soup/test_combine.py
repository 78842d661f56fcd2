"""N adapters as one: the product B·A is the weighted sum of the products, for any ranks, alphas and coefficients."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.adapters import read_adapter
from trl_bonesoup.soup.combine import stack_adapters
from trl_bonesoup.soup.compress import CompressedAdapters
from trl_bonesoup.soup.source import ModelRef

KEY = "base_model.model.{}.lora_{}.weight"


def write_adapter(folder: Path, factors: dict[str, tuple[np.ndarray, np.ndarray]], **config) -> Path:
    """Write an adapter from factors (A, B) by layer."""
    folder.mkdir(parents=True)
    tensors = {
        KEY.format(name, letter): factor
        for name, pair in factors.items()
        for letter, factor in zip("AB", pair, strict=True)
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": sorted(factors), **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def product(folder: Path, layer: str) -> np.ndarray:
    tensors = load_file(folder / "adapter_model.safetensors")
    return tensors[KEY.format(layer, "B")].astype(np.float64) @ tensors[KEY.format(layer, "A")].astype(np.float64)


@given(seed=st.integers(0, 10_000), n=st.integers(2, 4), data=st.data())
def test_products_add_up(tmp_path_factory, seed, n, data) -> None:
    rng = np.random.default_rng(seed)
    root = tmp_path_factory.mktemp("combine")
    layers = {"x.q": (6, 5), "x.v": (3, 5), "y.q": (6, 4)}
    expected = {name: np.zeros(shape) for name, shape in layers.items()}
    coefficients = rng.uniform(-3, 3, size=n)
    folders = []
    for j in range(n):
        rank, alpha = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9))
        rslora = data.draw(st.booleans())
        chosen = data.draw(st.sets(st.sampled_from(sorted(layers)), min_size=1))
        factors = {}
        for name in sorted(chosen):
            out_features, in_features = layers[name]
            A = rng.normal(size=(rank, in_features)).astype(np.float32)
            B = rng.normal(size=(out_features, rank)).astype(np.float32)
            factors[name] = (A, B)
            scale = alpha / (rank**0.5 if rslora else rank)
            expected[name] += coefficients[j] * scale * (B.astype(np.float64) @ A.astype(np.float64))
        folders.append(write_adapter(root / str(j), factors, r=rank, lora_alpha=alpha, use_rslora=rslora))
    (root / "out").mkdir()
    stacked = stack_adapters([read_adapter(folder) for folder in folders], ModelRef("base"))
    stacked.write(coefficients, root / "out")
    combined = read_adapter(root / "out")
    for name, module in combined.modules.items():
        assert module.scaling == 1.0
        np.testing.assert_allclose(product(root / "out", name), expected[name], atol=2e-5)
    assert {name for name, value in expected.items() if value.any()} == set(combined.modules)
    weights = load_file(root / "out" / "adapter_model.safetensors")
    assert stacked.nbytes_at(coefficients) == sum(tensor.nbytes for tensor in weights.values())


def ones(rank: int) -> tuple[np.ndarray, np.ndarray]:
    return np.ones((rank, 3), np.float32), np.ones((4, rank), np.float32)


def test_ranks_add_and_only_other_ranks_need_a_pattern(tmp_path) -> None:
    first = write_adapter(tmp_path / "a", {"layers.1.q": ones(2), "layers.11.q": ones(2)}, target_modules=["q"])
    second = write_adapter(tmp_path / "b", {"layers.11.q": ones(3)}, r=3, target_modules=["layers.11.q"])
    config = stack_adapters([read_adapter(first), read_adapter(second)], ModelRef("org/sft", "abc")).config
    assert (config["r"], config["lora_alpha"]) == (5, 5)
    assert config["rank_pattern"] == config["alpha_pattern"] == {r"^layers\.1\.q": 2}
    assert config["target_modules"] == ["layers.1.q", "layers.11.q"]
    assert config["base_model_name_or_path"] == "org/sft"
    assert config["revision"] == "abc"


def test_targets_stay_as_short_as_they_were_when_all_agree(tmp_path) -> None:
    folders = [
        write_adapter(tmp_path / str(j), {"l.q": ones(2), "l.v": ones(2)}, target_modules=targets)
        for j, targets in enumerate([["q", "v"], ["v", "q"]])
    ]
    config = stack_adapters([read_adapter(folder) for folder in folders], ModelRef("base")).config
    assert sorted(config["target_modules"]) == ["q", "v"]
    assert config["rank_pattern"] == {}


def test_layers_of_different_shapes_are_refused(tmp_path) -> None:
    first = write_adapter(tmp_path / "a", {"q": ones(2)})
    second = write_adapter(tmp_path / "b", {"q": (np.ones((2, 7), np.float32), np.ones((4, 2), np.float32))})
    with pytest.raises(SoupError, match=r"in q one maps 3 to 4 features, the other 7 to 4"):
        stack_adapters([read_adapter(first), read_adapter(second)], ModelRef("base"))


def three(root: Path) -> list[Path]:
    """Adapters of the ranks 2, 3 and 4; the first is on layers x and y, the second on x, the third on y and z."""
    rng = np.random.default_rng(0)
    layers = {"x.q": (6, 5), "y.q": (3, 5), "z.q": (6, 4)}
    chosen = [(2, ["x.q", "y.q"]), (3, ["x.q"]), (4, ["y.q", "z.q"])]
    return [
        write_adapter(
            root / str(j),
            {n: (rng.normal(size=(r, layers[n][1])), rng.normal(size=(layers[n][0], r))) for n in names},
            r=r,
            lora_alpha=r,
        )
        for j, (r, names) in enumerate(chosen)
    ]


@pytest.mark.parametrize(
    ("coefficients", "ranks"),
    [
        ([1.0, 0.0, 0.0], {"x.q": 2, "y.q": 2}),
        ([0.0, -2.0, 0.0], {"x.q": 3}),
        ([0.5, 0.0, 0.5], {"x.q": 2, "y.q": 6, "z.q": 4}),
        ([0.0, 1e-3, 1e3], {"x.q": 3, "y.q": 4, "z.q": 4}),
        ([0.0, 0.0, 0.0], {"x.q": 2, "y.q": 2}),  # the base model, as an adapter that adds nothing
    ],
)
@pytest.mark.parametrize("rank", [None, 3])
def test_adapters_that_a_soup_does_not_use_are_left_out(tmp_path, coefficients, ranks, rank) -> None:
    folders = three(tmp_path)
    stacked = stack_adapters([read_adapter(folder) for folder in folders], ModelRef("org/sft"))
    adapters = stacked if rank is None else CompressedAdapters(stacked, rank)
    (tmp_path / "out").mkdir()
    adapters.write(np.array(coefficients), tmp_path / "out")
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    expected_ranks = (
        {name: min(r, rank or r, 3 if name == "y.q" else r) for name, r in ranks.items()} if rank else ranks
    )
    assert {
        key.split(".", 2)[2].removesuffix(".lora_A.weight"): len(v) for key, v in weights.items() if "lora_A" in key
    } == (expected_ranks)
    assert adapters.nbytes_at(np.array(coefficients)) == sum(tensor.nbytes for tensor in weights.values())
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == sorted(ranks)
    assert config["r"] == config["lora_alpha"] == max(expected_ranks.values())
    assert (
        config["rank_pattern"]
        == config["alpha_pattern"]
        == {"^" + name.replace(".", r"\."): r for name, r in expected_ranks.items() if r != config["r"]}
    )
    if rank is None:
        for name in ranks:
            parts = [
                (c, product(f, name))
                for c, f in zip(coefficients, folders, strict=True)
                if KEY.format(name, "A") in load_file(f / "adapter_model.safetensors")
            ]
            expected = sum(c * delta for c, delta in parts)
            np.testing.assert_allclose(product(tmp_path / "out", name), expected, rtol=1e-5, atol=1e-6)

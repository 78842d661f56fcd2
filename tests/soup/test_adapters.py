"""Adapter files that are broken, cut short or do not belong together; for features see test_feature_table.py."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_soups import save_adapter

from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.adapters import read_adapter


@pytest.fixture
def adapter(two_adapters: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two_adapters / "backbone0", tmp_path / "adapter"))


def change(adapter: Path, **settings: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def test_pickled_weights_are_never_read(adapter: Path) -> None:
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(SoupError, match=r"Pickled adapters \(\.bin\)"):
        read_adapter(adapter)


def test_weights_beside_the_factors_are_refused(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({**load_file(file), "base_model.model.lm_head.weight": torch.zeros(24, 16)}, file)
    with pytest.raises(SoupError, match=r"lm_head\.weight.*not a LoRA factor"):
        read_adapter(adapter)


def test_a_factor_without_its_partner_is_refused(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(key for key in tensors if "lora_B" in key))
    save_file(tensors, file)
    with pytest.raises(SoupError, match="a LoRA factor A and B for each layer"):
        read_adapter(adapter)


def test_config_and_weights_of_two_adapters_are_refused(adapter: Path) -> None:
    change(adapter, r=16)
    with pytest.raises(SoupError, match="do not belong together"):
        read_adapter(adapter)


def test_a_file_cut_short_is_refused(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(SoupError, match="not a complete safetensors file"):
        read_adapter(adapter)


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SoupError, match=r"no adapter_config\.json"):
        read_adapter(tmp_path)


def test_scaling_follows_alpha_rank_and_rslora(two_adapters: Path, tmp_path: Path) -> None:
    options = {
        "r": 9,
        "lora_alpha": 6,
        "use_rslora": True,
        "rank_pattern": {"q_proj": 4},
        "alpha_pattern": {"o_proj": 3},
    }
    modules = read_adapter(save_adapter(two_adapters / "base", tmp_path / "a", 1, **options)).modules
    layer = "model.layers.0.self_attn."
    assert modules[layer + "v_proj"].scaling == pytest.approx(6 / 3)
    assert modules[layer + "q_proj"].scaling == pytest.approx(6 / 2)
    assert modules[layer + "o_proj"].scaling == pytest.approx(3 / 3)

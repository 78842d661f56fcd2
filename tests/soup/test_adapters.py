"""Adapter files that are broken, cut short or do not belong together; for features see test_feature_table.py."""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_soups import save_adapter

from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.adapters import read_adapter
from trl_bonesoup.soup.lora import BoneSoup


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


def test_a_file_that_is_cut_short_after_it_was_opened_is_an_error_and_no_signal(adapter: Path) -> None:
    read = read_adapter(adapter)
    os.truncate(adapter / "adapter_model.safetensors", 16)
    with pytest.raises(SoupError, match=r"adapter_model\.safetensors was cut short while it was read"):
        read.tensors(list(read.layout)[:1])


def test_factors_that_are_no_floats_are_refused(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({key: tensor.to(torch.int8) for key, tensor in load_file(file).items()}, file)
    with pytest.raises(SoupError, match="has dtype I8, which cannot be merged"):
        read_adapter(adapter)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_what_is_read_is_what_safetensors_reads(adapter: Path, dtype: torch.dtype) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({key: tensor.to(dtype) for key, tensor in load_file(file).items()}, file)
    read, expected = read_adapter(adapter), load_file(file)
    for key, tensor in read.tensors(list(expected)).items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, expected[key])


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


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("r", "4"),
        ("r", 0),
        ("r", -4),
        ("r", True),
        ("r", None),
        ("r", 4.0),
        ("lora_alpha", "8"),
        ("lora_alpha", None),
        ("lora_alpha", 10**400),
        ("use_rslora", "yes"),
        ("rank_pattern", ["q_proj"]),
        ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", {"q_proj": "4"}),
        ("rank_pattern", {"(": 4}),
        ("alpha_pattern", {"q_proj": None}),
        ("alpha_pattern", {"*": 2}),
        ("bias", 3),
        ("init_lora_weights", ["eva"]),
        ("target_modules", 5),
        ("target_modules", {"q_proj": 1}),
        ("base_model_name_or_path", ["org/sft"]),
        ("base_model_name_or_path", "x" * 5000),
        ("revision", 3),
        ("peft_type", 3),
        ("peft_type", None),
    ],
)
def test_settings_of_another_type_are_refused(adapter: Path, setting: str, value: Any) -> None:
    change(adapter, **{setting: value})
    with pytest.raises(SoupError, match=rf"adapter_config\.json.*{setting}|{setting}.*adapter_config\.json"):
        read_adapter(adapter)


@pytest.mark.parametrize("setting", ["r", "lora_alpha", "peft_type"])
def test_settings_that_are_missing_are_refused(adapter: Path, setting: str) -> None:
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text())
    del config[setting]
    file.write_text(json.dumps(config))
    with pytest.raises(SoupError, match=setting):
        read_adapter(adapter)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"peft_type": "LORA", "peft_type": "LORA"}', "'peft_type' is given twice"),
        ('{"peft_type": "LORA", "lora_alpha": NaN}', "NaN is not a finite number"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "not the configuration of an adapter"),
        (" " * 6_000_000, "at most 5000000 bytes"),
    ],
)
def test_what_is_no_configuration_is_refused(adapter: Path, text: str, complaint: str) -> None:
    (adapter / "adapter_config.json").write_text(text)
    with pytest.raises(SoupError, match=complaint):
        read_adapter(adapter)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("target_modules", "("),
        ("layers_to_transform", "all"),
        ("layers_pattern", 3),
        ("exclude_modules", "["),
        ("corda_config", 3),
        ("surplus", 1),
        ("task_type", "EVIL"),
        ("lora_dropout", "much"),
    ],
)
def test_settings_that_peft_does_not_take_are_a_soup_error(
    two_adapters: Path, tmp_path: Path, setting: str, value: Any
):
    run = Path(shutil.copytree(two_adapters, tmp_path / "run"))
    change(run / "backbone0", **{setting: value})
    change(run / "backbone1", **{setting: value})
    with contextlib.suppress(SoupError):
        BoneSoup.from_pretrained(run)


def test_a_header_that_lies_about_sizes_is_refused(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = next(key for key in header if key != "__metadata__")
    for lie in (
        {"data_offsets": [0, 2**40]},
        {"data_offsets": [-4, 0]},
        {"shape": [2**40, 4]},
        {"shape": [2**63, 2**63]},
        {"dtype": "F64"},
        {"dtype": "X"},
    ):
        lying = json.dumps({**header, name: {**header[name], **lie}}).encode()
        file.write_bytes(len(lying).to_bytes(8, "little") + lying + content[8 + length :])
        with pytest.raises(SoupError, match="not a complete safetensors file"):
            read_adapter(adapter)
    for length in (0, 2**20, 2**63, 2**64 - 1):
        file.write_bytes(length.to_bytes(8, "little") + content[8:])
        with pytest.raises(SoupError, match="not a complete safetensors file"):
            read_adapter(adapter)


def test_a_file_that_cannot_be_read_is_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.safetensors").mkdir()
    with pytest.raises(SoupError, match=r"adapter_model\.safetensors"):
        read_adapter(adapter)

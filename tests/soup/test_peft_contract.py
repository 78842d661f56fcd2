"""Pins what soups in adapter space use of PEFT beyond its documented functions; a red test here says what moved."""

import dataclasses
import inspect

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Embedding, Linear, LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from tiny_soups import tiny_llama

from trl_bonesoup.soup import features


def adapted(*targets: str) -> torch.nn.Module:
    config = LoraConfig(r=3, target_modules=list(targets), task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(tiny_llama(), config, adapter_name="soup")


def test_linear_layers_keep_their_factors_as_modules_that_are_called() -> None:
    layer = adapted("q_proj").base_model.model.model.layers[0].self_attn.q_proj
    assert type(layer) is Linear
    assert issubclass(Linear, LoraLayer)
    shapes = []
    layer.lora_A["soup"].register_forward_hook(lambda module, given, output: shapes.append(tuple(output.shape)))
    layer(torch.ones(2, 5, 16))
    assert shapes == [(2, 5, 3)]
    assert layer.lora_B["soup"].weight.shape == (16, 3)
    assert layer.fan_in_fan_out is False
    assert layer.scaling["soup"] == 8 / 3


def test_embedding_layers_apply_factor_A_in_one_method() -> None:
    layer = adapted("embed_tokens").base_model.model.model.embed_tokens
    assert type(layer) is Embedding
    assert list(inspect.signature(layer._embed).parameters)[:2] == ["input", "weight"]
    embed, weights = layer._embed, []

    def noted(tokens, weight, **options):
        weights.append(weight)
        return embed(tokens, weight, **options)

    layer._embed = noted
    layer(torch.tensor([[1, 2]]))
    (weight,) = weights
    assert torch.equal(weight, layer.lora_embedding_A["soup"].T)
    assert layer.lora_embedding_B["soup"].shape == (16, 3)


def test_how_names_are_matched() -> None:
    config = LoraConfig(target_modules=["q_proj"], exclude_modules=["layers.1.self_attn.q_proj"])
    names = ["layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj", "layers.0.self_attn.k_proj"]
    assert [bool(check_target_module_exists(config, name)) for name in names] == [True, False, False]
    assert get_pattern_key(["q_proj", "^layers\\.1"], "model.layers.1.q_proj") == "q_proj"


def test_every_variant_of_lora_is_known_by_name() -> None:
    variants = {field.name for field in dataclasses.fields(LoraConfig) if field.metadata.get("is_lora_variant")}
    assert variants <= {*features.OTHER_VARIANTS, *features._ONLY_FULL, *features._NOWHERE}
    assert set(features.OTHER_VARIANTS) <= variants

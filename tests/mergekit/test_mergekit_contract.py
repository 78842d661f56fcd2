"""Pins every name and behaviour of mergekit that the plugin builds on; a red test here says what moved."""

import inspect
from pathlib import Path

import pytest
import torch
from mergekit import card, merge, plan
from mergekit.common import ModelReference
from mergekit.config import (
    ConditionalParameter,
    InputModelDefinition,
    InputSliceDefinition,
    MergeConfiguration,
    OutputModuleDefinition,
    OutputSliceDefinition,
    evaluate_setting,
)
from mergekit.io.tasks import ReturnTensor, SaveTensor
from mergekit.merge_methods import base, easy_define, registry, task_adapter
from mergekit.options import MergeOptions
from mergekit.scripts import merge_raw_pytorch
from safetensors.torch import load_file

from mergekit_bonesoup import bone_soup


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_registry():
    assert parameters(registry.register) == ["method"]
    assert bone_soup in registry.registered_methods()
    with pytest.raises(ValueError, match="already registered"):
        registry.register(bone_soup)


def test_the_method_as_mergekit_sees_it():
    spec = bone_soup.spec
    scopes = {parameter.name: parameter.scope.value for parameter in spec.parameters}
    assert scopes == {
        "preference": "non_base",
        "extrapolation": "non_base",
        "beta": "shared",
        "combination_weights": "shared",
        "allow_negative_preference": "shared",
        "allow_nan": "shared",
    }
    assert [parameter.name for parameter in spec.parameters if parameter.required] == ["preference"]
    assert (spec.contract.base, spec.contract.min_non_base) == (base.BasePolicy.OPTIONAL, 2)
    assert [p.name for p in spec.input_parameters] == ["preference", "extrapolation"]
    assert [p.name for p in spec.shared_parameters] == [
        "beta",
        "combination_weights",
        "allow_negative_preference",
        "allow_nan",
    ]


def test_tensor_groups():
    import torch

    group = base.TensorGroup.from_tensors([torch.ones(1), torch.zeros(1)], ids=["x", "y"], base_index=0)
    assert (group.base.id, [entry.id for entry in group.non_base]) == ("x", ["y"])
    assert base.PerInputValues([("x", 1), ("y", 2)]).values_for(group.non_base) == [2]
    assert callable(easy_define.merge_method)


def test_where_the_guards_sit():
    assert parameters(merge.run_merge)[:2] == ["merge_config", "out_path"]
    assert parameters(merge_raw_pytorch.plan_flat_merge)[:2] == ["config", "out_path"]
    for name in ("plan_to_disk", "plan_in_memory"):
        assert hasattr(getattr(plan.MergePlanner, name), "_checks_bone_soup")
    assert hasattr(merge.run_merge, "_checks_bone_soup")
    assert merge_raw_pytorch.plan_flat_merge._checks_bone_soup


def test_the_shape_of_a_configuration():
    assert {"models", "slices", "modules", "base_model", "parameters", "merge_method"} <= set(
        MergeConfiguration.model_fields
    )
    assert {"model", "parameters"} <= set(InputModelDefinition.model_fields)
    assert {"model", "parameters"} <= set(InputSliceDefinition.model_fields)
    assert {"sources", "base_model", "parameters"} <= set(OutputSliceDefinition.model_fields)
    assert {"models", "slices", "parameters"} <= set(OutputModuleDefinition.model_fields)
    assert {"filter", "value"} == set(ConditionalParameter.model_fields)
    assert {"merge_method", "models", "base_model", "parameters"} <= set(
        merge_raw_pytorch.RawPyTorchMergeConfig.model_fields
    )


def test_the_shape_of_a_plan():
    assert {"method_name", "model_order", "base_model", "output_weight", "parameters", "input_parameters"} <= set(
        task_adapter.ExecuteMergeMethodTask.model_fields
    )
    assert "tensor_task" in SaveTensor.model_fields
    assert "tensor_task" in ReturnTensor.model_fields


def test_why_lists_are_refused_a_list_is_a_gradient_over_layers():
    assert evaluate_setting("w", [0.0, 1.0], t=0.25, validate=float) == 0.25


def test_why_unknown_names_are_refused_mergekit_ignores_them(checkpoints, merge):
    models = [{"model": str(checkpoints / name), "parameters": {"weight": 0.5, "wieght": 9}} for name in "ab"]
    merge({"merge_method": "linear", "models": models})


def test_why_an_adapter_that_changed_needs_another_cache_it_is_keyed_by_path_alone(checkpoints, adapters, tmp_path):
    (folder, *_), _ = adapters
    reference = ModelReference.parse(f"{checkpoints / 'base'}+{folder}")
    first = reference.merged(str(tmp_path), lora_merge_dtype="float32")
    again = reference.merged(str(tmp_path), lora_merge_dtype="bfloat16")
    assert again == first
    (dtype,) = {tensor.dtype for tensor in load_file(Path(first.model.path) / "model.safetensors").values()}
    assert dtype == torch.float32


def test_why_recipes_refuse_plus_and_at_in_names():
    assert str(ModelReference.parse("run+2/a").lora) == "2/a"
    assert ModelReference.parse("run@2/a").model.revision == "2/a"


def test_the_card_asks_the_hub_about_folders_that_could_be_repositories(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.repo_exists", lambda path, **_: asked.append(path) or False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "a").mkdir(parents=True)
    for path in ("org/a", "org/none", "./org/a", str(tmp_path)):
        card.is_hf(path)
    assert asked == ["org/a"]
    assert "write_model_card" in MergeOptions.model_fields
    asked.clear()
    models = [ModelReference.parse(text) for text in ("org/a", "/no/base+org/a")]
    assert list(card.extract_hf_paths(models)) == []
    assert asked == ["org/a", "org/a"]

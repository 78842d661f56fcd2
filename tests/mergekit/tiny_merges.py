"""Configurations of soups, and the check of a merge against the soup computed in float64."""

from pathlib import Path

import torch
from safetensors.torch import load_file

EPSILON = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}


def soup(models, parameters, dtype="float32", **rest):
    """A configuration from {path: preference or parameters} in the order of the objectives."""
    entries = []
    for model, own in models.items():
        own = own if isinstance(own, dict) else {"preference": own}
        entries.append({"model": str(model), "parameters": own})
    config = {"merge_method": "bone_soup", "models": entries, "parameters": parameters, **rest}
    return {**config, "dtype": dtype} if dtype else config


def weighted_sum(terms):
    """Σ value·tensor of every name, in float64."""
    return {name: sum(value * tensors[name] for tensors, value in terms) for name in terms[0][0]}


def assert_soup(merged, terms, dtype="float32"):
    """Every tensor is Σ value·tensor to the rounding of `dtype`, plus that of float32 accumulation."""
    assert merged.keys() == terms[0][0].keys()
    expected = weighted_sum(terms)
    size = weighted_sum([({k: v.abs() for k, v in tensors.items()}, abs(value)) for tensors, value in terms])
    for name, tensor in merged.items():
        assert tensor.dtype == getattr(torch, dtype)
        bound = EPSILON[dtype] / 2 * expected[name].abs() + (len(terms) + 1) * 2.0**-23 * size[name]
        bound += 2.0**-25 if dtype == "float16" else 0.0
        assert ((tensor.double() - expected[name]).abs() <= bound).all(), name


def assert_same_bits(merged, expected):
    """The same tensors in the same dtypes with the same values."""
    assert merged.keys() == expected.keys()
    for name, tensor in merged.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name


def tensors_of(folder):
    """Read every tensor of a checkpoint, of however many shards, as it is stored."""
    tensors = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors

"""Finding the first tensor of many that holds NaN or infinity, in one pass and with one wait for the device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["first_not_finite", "trained"]


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first floating-point tensor that is not finite, or `None`.

    A sum is finite only if all it sums is, and takes a fraction of the memory of testing every element;
    those are tested where a sum is not. Sharded tensors are looked at where they lie, quantized ones are
    left out.
    """
    local = ((name, _local(tensor.detach())) for name, tensor in tensors)
    named = [(name, tensor) for name, tensor in local if _is_tested(tensor)]
    if not named:
        return None
    device = named[0][1].device
    sums = torch.stack([tensor.sum(dtype=torch.float32).to(device) for _, tensor in named])
    if sums.isfinite().all():
        return None
    return next((name for name, tensor in named if not tensor.isfinite().all()), None)


def trained(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Return the parameters that training changes, by name."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _is_tested(tensor: Tensor) -> bool:
    if type(tensor) is not Tensor:  # quantized, with operations of its own
        return False
    return tensor.is_floating_point() and tensor.element_size() >= 2 and not tensor.is_meta


def _local(tensor: Tensor) -> Tensor:
    shard: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return shard

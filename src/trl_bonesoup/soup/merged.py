"""Full weights of an adapter soup: the base model's state with Σ_j λ_j ΔW_j added where there are adapters."""

from __future__ import annotations

from collections import Counter

import torch

from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.rounding import RoundingMeter
from trl_bonesoup.soup.scales import AdapterScales
from trl_bonesoup.weights import FloatArray

__all__ = ["merged_state"]


def merged_state(
    scales: AdapterScales, coefficients_N: FloatArray, dtype: torch.dtype | None = None
) -> tuple[dict[str, torch.Tensor], float]:
    """Return the state dict of the soup under the base model's own names, and what rounding loses of it.

    Sums are in float32 and cast once; tensors without adapters are the base model's own, not copies.

    Args:
        scales: the loaded adapters.
        coefficients_N: λ.
        dtype: of all floats; by default each tensor keeps that of the base model.

    Raises:
        SoupError: if an adapted weight is tied to another layer's, or a result is not finite.
    """
    state = scales.model.base_model.model.state_dict()
    _check_untied(scales, state)
    meter = RoundingMeter()
    for name, layer in scales.layers.items():
        weight_name = f"{name}.base_layer.weight"
        weight = state[weight_name]
        exact = weight.float() + scales.delta(layer, coefficients_N)
        rounded = exact.to(dtype or weight.dtype)
        if not torch.isfinite(rounded).all():
            raise SoupError(
                f"The soup's {name}.weight contains NaN or exceeds the range of {rounded.dtype}: an adapter or the "
                "base model is broken, or the checkpoint needs dtype=torch.float32."
            )
        meter.add(rounded, exact, weight)
        state[weight_name] = rounded
    plain = {
        name.replace(".base_layer.", "."): _cast(tensor, dtype)
        for name, tensor in state.items()
        if ".lora_" not in name
    }
    return plain, meter.share


def _check_untied(scales: AdapterScales, state: dict[str, torch.Tensor]) -> None:
    holders = Counter(tensor.data_ptr() for tensor in state.values())
    for name in scales.layers:
        if holders[state[f"{name}.base_layer.weight"].data_ptr()] > 1:
            raise SoupError(
                f"{name} has an adapter and shares its weight with another layer that has none (tied embeddings), so "
                "no full checkpoint of this architecture holds the soup. Save it as an adapter (full=False)."
            )


def _cast(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor

"""Full weights of an adapter soup: the base model's state with Σ_j λ_j ΔW_j added where there are adapters."""

from __future__ import annotations

from collections import Counter

import torch

from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.rounding import Rounder
from trl_bonesoup.soup.scales import AdapterScales
from trl_bonesoup.weights import FloatArray

__all__ = ["merged_state"]


def merged_state(
    scales: AdapterScales, coefficients_N: FloatArray, dtype: torch.dtype | None = None, *, allow_nan: bool = False
) -> tuple[dict[str, torch.Tensor], float]:
    """Return the state dict of the soup under the base model's own names, and what rounding loses of it.

    Sums are in float32 and cast once; tensors without adapters are the base model's own, not copies.

    Args:
        scales: the loaded adapters.
        coefficients_N: λ.
        dtype: of all floats; by default each tensor keeps that of the base model.
        allow_nan: keep NaN and infinity that are not made by rounding.

    Raises:
        SoupError: if an adapted weight is tied to another layer's, or a result is not finite.
    """
    state = scales.model.base_model.model.state_dict()
    _check_untied(scales, state)
    rounder, merged = Rounder("the soup", dtype, allow_nan=allow_nan), {}
    for name, weight in state.items():
        if ".lora_" in name:
            continue
        layer = name.removesuffix(".base_layer.weight")
        exact = weight.float() + scales.delta(layer, coefficients_N) if layer in scales.layers else weight
        plain = name.replace(".base_layer.", ".")
        merged[plain] = rounder.cast(plain, exact, weight)
    return merged, rounder.loss


def _check_untied(scales: AdapterScales, state: dict[str, torch.Tensor]) -> None:
    holders = Counter(tensor.data_ptr() for tensor in state.values())
    for name in scales.layers:
        if holders[state[f"{name}.base_layer.weight"].data_ptr()] > 1:
            raise SoupError(
                f"{name} has an adapter and shares its weight with another layer that has none (tied embeddings), so "
                "no full checkpoint of this architecture holds the soup. Save it as an adapter (full=False, no "
                "--full), or give a base model whose lm_head has a weight of its own with base_model=, --base-model "
                "(docs/soups.md shows how)."
            )

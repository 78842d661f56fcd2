"""The merge method `bone_soup`: one tensor of the soup Σ_j λ_j θ_j (+ (1-Σλ) θ_base)."""

from __future__ import annotations

from typing import Annotated

import torch
from mergekit.merge_methods.base import BasePolicy, InputContract, PerNonBase, TensorEntry, TensorGroup
from mergekit.merge_methods.easy_define import merge_method
from pydantic import Strict

from mergekit_bonesoup import METHOD_NAME
from mergekit_bonesoup.coefficients import MergeParameters, MergeRefused, soup_coefficients

Number = Annotated[float, Strict()]


@merge_method(
    name=METHOD_NAME,
    pretty_name="Bone Soup",
    reference_url="https://arxiv.org/abs/2502.10762",
    contract=InputContract(base=BasePolicy.OPTIONAL, min_non_base=2),
)
def bone_soup(
    group: TensorGroup,
    preference: PerNonBase[Number],
    extrapolation: PerNonBase[Number] = 0.0,
    beta: Number | None = None,
    combination_weights: str = "",
    allow_negative_preference: Annotated[bool, Strict()] = False,
    allow_nan: Annotated[bool, Strict()] = False,
) -> torch.Tensor:
    """Merge the backbones' tensors so that the soup matches the preference.

    Written as a group kernel and not as a batch kernel, which would round the preference to float32
    before B is solved: so a soup has the same bits as one merged from soup.json.

    Args:
        group: N backbones in the order of the objectives, and the base model if there is one. Without
            extrapolation the values of the base do not enter.
        preference: μ, one number per backbone, which sum to 1.
        extrapolation: α in [0, 1) per backbone, away from the base model.
        beta: dominance β of the circulant combination weights. Either this or:
        combination_weights: the matrix B as JSON text, row by row; column j belongs to backbone j.
        allow_negative_preference: accept entries of μ below 0.
        allow_nan: keep NaN and infinity that the models have; refuse only what rounding makes infinite.

    Returns:
        The tensor, accumulated in float32 (float64 for float64 inputs) in the order of the backbones,
        the base model last, and rounded once to the dtype of the inputs.

    Raises:
        MergeRefused: for parameters from which there are no merging coefficients, and for a soup that is
            not finite, naming the model whose tensor is not.

    Source: Bone Soups, Section 3.3 (merging) and Equation 9 (extrapolation).
    """
    backbones = group.non_base
    coefficients, base_coefficient = soup_coefficients(
        MergeParameters(
            models=tuple(str(entry.id) for entry in backbones),
            preference=tuple(preference.values_for(backbones)),
            extrapolation=tuple(extrapolation.values_for(backbones)),
            beta=beta,
            combination_weights=combination_weights,
            allow_negative_preference=allow_negative_preference,
            has_base=group.base is not None,
        )
    )
    entries, values = list(backbones), list(coefficients)
    if group.base is not None:
        entries, values = [*entries, group.base], [*values, base_coefficient]
    total = _weighted_sum([(entry.tensor, value) for entry, value in zip(entries, values, strict=True)])
    rounded = total.to(backbones[0].tensor.dtype)
    if not _is_finite(total, rounded, allow_nan):
        used = [entry for entry, value in zip(entries, values, strict=True) if value]
        raise MergeRefused(_blame(used, group.metadata.name, rounded.dtype))
    return rounded


def _weighted_sum(terms: list[tuple[torch.Tensor, float]]) -> torch.Tensor:
    """Return Σ value·tensor before rounding, leaving out terms whose value is exactly 0."""
    first = terms[0][0]
    if not first.is_floating_point():
        raise TypeError(f"bone_soup merges floating-point tensors; got {first.dtype}.")
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    total = torch.zeros_like(first, dtype=dtype)
    for tensor, value in terms:
        if value != 0.0:
            total.addcmul_(tensor, torch.full((1,) * first.ndim, value, dtype=dtype, device=first.device))
    return total


def _is_finite(total: torch.Tensor, rounded: torch.Tensor, allow_nan: bool) -> bool:
    """Return whether no rounded value is NaN or infinite, or with `allow_nan`, none that was finite before."""
    if not total.numel():
        return True
    lowest, highest = (float(extreme) for extreme in torch.aminmax(total.detach()))
    limit = torch.finfo(rounded.dtype).max
    if -limit <= lowest and highest <= limit:
        return True
    finite = torch.isfinite(rounded)
    return bool((finite | ~torch.isfinite(total)).all() if allow_nan else finite.all())


def _blame(entries: list[TensorEntry], name: str | None, dtype: torch.dtype) -> str:
    for entry in entries:
        if not torch.isfinite(entry.tensor).all():
            return (
                f"tensor {name} of {entry.id} contains NaN or infinity; set allow_nan: true under parameters to write "
                "the soup all the same."
            )
    return f"tensor {name} of the soup exceeds the range of {dtype}; set out_dtype: float32 (and dtype: float32)."

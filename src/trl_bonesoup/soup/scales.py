"""Merging coefficients inside one stacked adapter: one soup for a whole batch, or one for each of its rows.

Stacking the factors of N adapters gives one adapter of rank R = Σ r_j whose product is any soup, once λ
multiplies the R values between its two factors. So a soup costs what one adapter of its rank costs, and
another preference is another vector of R numbers, shared by all layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from trl_bonesoup.errors import SoupError
from trl_bonesoup.weights import FloatArray

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    from trl_bonesoup.soup.combine import StackedModule

__all__ = ["AdapterScales", "RankScale"]


class RankScale:
    """What multiplies the R values between the factors of a stacked adapter.

    At position r it is λ_j of the adapter j that the position belongs to, times that adapter's own scale.
    With k·B rows in a batch, the k neighbours that `generate` makes of one prompt (beams,
    `num_return_sequences`) share their λ.

    Args:
        owners_R: the adapter of each position.
        units_R: the scale of that adapter, α/r or α/√r, in float64.
    """

    def __init__(self, owners_R: torch.Tensor, units_R: torch.Tensor) -> None:
        self._owners_R = owners_R
        self._units_R = units_R
        self._values = units_R
        self._ready: dict[tuple[int, torch.dtype, torch.device], torch.Tensor] = {}

    def of(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return the scale of each position for λ of shape (N,) or (B, N), in float64."""
        return coefficients[..., self._owners_R] * self._units_R

    def set(self, coefficients: torch.Tensor) -> None:
        """Use λ of shape (N,) for every row from now on, or of shape (B, N) one for each row."""
        self._values, self._ready = self.of(coefficients), {}

    def __call__(self, between: torch.Tensor, given: Sequence[int]) -> torch.Tensor:
        """Return what factor A gave, of shape (rows, tokens, R), scaled. For one λ any (…, R) will do.

        Args:
            between: what factor A gave.
            given: the shape of the layer's input, for the message.

        Raises:
            SoupError: if there is a λ for each row and `between` is not (k·B, tokens, R).
        """
        values, ready = self._values, self._ready
        rows = 0
        if values.ndim == 2:
            rows = len(between)
            if between.ndim != 3 or rows % len(values):
                raise SoupError(
                    f"{len(values)} preferences were given, one per row, but a layer was called on shape "
                    f"{tuple(given)}; the batch must be padded (rows, tokens) with {len(values)} rows or a multiple "
                    "of it. Models that flatten the batch need one set_preference call per preference."
                )
        key = (rows, between.dtype, between.device)
        if key not in ready:
            stretched = values.repeat_interleave(rows // len(values), 0)[:, None] if rows else values
            ready[key] = stretched.to(device=between.device, dtype=between.dtype)
        return between * ready[key]


class AdapterScales:
    """The stacked adapter of a soup inside its base model, scaled by λ.

    Args:
        model: a PEFT model that holds the stacked adapter and no other.
        modules: what was stacked.

    Raises:
        SoupError: if `model` and `modules` do not have the same layers, or one is of an unsupported type.
    """

    def __init__(self, model: PeftModel, modules: Sequence[StackedModule]) -> None:
        self.model = model
        self.layers = dict(_lora_layers(model))
        if odd := sorted(self.layers.keys() ^ {module.name for module in modules}):
            raise SoupError(
                f"The adapters do not fit the base model: {odd[:3]} ({len(odd)} layers in all) are in only one of the "
                "two. Check base_model."
            )
        shared: dict[tuple[Any, ...], RankScale] = {}
        self._scales: dict[str, RankScale] = {}
        for module in modules:
            same = (*module.owners.tolist(), *module.units.tolist())
            self._scales[module.name] = shared.setdefault(same, RankScale(module.owners, module.units))
            _put_between(self.layers[module.name], self._scales[module.name])
        self._shared = tuple(shared.values())
        model.requires_grad_(False)
        model.eval()

    def set(self, coefficients: FloatArray) -> None:
        """Make the model the soup of λ of shape (N,), or with shape (B, N) another soup for each row."""
        values = torch.tensor(coefficients, dtype=torch.float64, device="cpu")
        for scale in self._shared:
            scale.set(values)

    def delta(self, name: str, coefficients_N: FloatArray) -> torch.Tensor:
        """Return Σ_j λ_j ΔW_j of one layer in float32, in the layout of its weight."""
        layer = self.layers[name]
        factor_A, factor_B, transposed = _factors(layer)
        scale_R = self._scales[name].of(torch.tensor(coefficients_N, dtype=torch.float64))
        product = (factor_B.float() * scale_R.to(factor_B.device, torch.float32)) @ factor_A.float()
        return product.T if transposed else product

    def base_bytes(self, dtype: torch.dtype | None = None) -> int:
        """Return the bytes of the base model's own parameters and buffers, tied ones once, with floats in `dtype`."""
        state = self.model.base_model.model.state_dict()
        tensors = {tensor.data_ptr(): tensor for name, tensor in state.items() if ".lora_" not in name}.values()
        return sum(t.numel() * (dtype.itemsize if dtype and t.is_floating_point() else t.itemsize) for t in tensors)


def _lora_layers(model: PeftModel) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import Embedding, Linear, LoraLayer

    for name, module in model.base_model.model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        if type(module) not in (Linear, Embedding):
            raise SoupError(
                f"{name} is a LoRA layer of type {type(module).__name__}; only linear and embedding layers of an "
                "unquantized model are supported. Load the base model unquantized."
            )
        yield name, module


def _put_between(layer: LoraLayer, scale: RankScale) -> None:
    """Multiply what factor A gives by `scale` before factor B sees it."""
    for factor_A in layer.lora_A.values():
        factor_A.register_forward_hook(lambda module, given, output: scale(output, given[0].shape))
    if layer.lora_embedding_A:
        embed = layer._embed  # the one place where PEFT's embedding layers apply factor A
        layer._embed = lambda tokens, *args, **kwargs: scale(embed(tokens, *args, **kwargs), tokens.shape)


def _factors(layer: LoraLayer) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Return A of shape (R, in), B of shape (out, R), and whether the layer's weight is (in, out)."""
    if layer.lora_embedding_A:
        (factor_A,), (factor_B,) = layer.lora_embedding_A.values(), layer.lora_embedding_B.values()
        return factor_A, factor_B, True
    (linear_A,), (linear_B,) = layer.lora_A.values(), layer.lora_B.values()
    return linear_A.weight, linear_B.weight, layer.fan_in_fan_out

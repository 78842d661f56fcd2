"""Merging coefficients as LoRA scales: one soup for a whole batch, or one for each of its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.adapters import Adapter
from trl_bonesoup.weights import FloatArray

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

__all__ = ["AdapterScales", "RowScale"]


class RowScale:
    """A scale for each row of a batch, standing where PEFT keeps the scale of a layer.

    PEFT computes `lora_B(lora_A(x)) * scale`. Here the product stretches the scales over the rows
    that the layer really gets: with k·B rows, the k neighbours that `generate` makes of one prompt
    (beams, `num_return_sequences`) share its scale. The result keeps the dtype of the layer's
    output, as it does for a plain number, so that a row comes out the same alone and in a batch.

    Args:
        scales_B: one scale per row of the batch.
    """

    __slots__ = ("_scales_B", "_stretched")

    def __init__(self, scales_B: torch.Tensor) -> None:
        self._scales_B = scales_B
        self._stretched: dict[tuple[int, torch.dtype, torch.device], torch.Tensor] = {}

    def __rmul__(self, output_BTD: torch.Tensor) -> torch.Tensor:
        """Scale the rows of a layer's output.

        Raises:
            SoupError: if the output is not (rows, tokens, features) or its rows are not k·B.
        """
        rows, given = output_BTD.shape[0], len(self._scales_B)
        if output_BTD.ndim != 3 or rows % given:
            raise SoupError(
                f"{given} preferences were given, one per row, but a layer was called on shape "
                f"{tuple(output_BTD.shape)}; the batch must be padded (rows, tokens) with {given} rows or a multiple "
                "of it. Models that flatten the batch need one set_preference call per preference."
            )
        dtype = torch.promote_types(output_BTD.dtype, torch.float32)
        key = (rows, dtype, output_BTD.device)
        if key not in self._stretched:
            scales_B11 = self._scales_B.to(device=output_BTD.device, dtype=dtype)
            self._stretched[key] = scales_B11.repeat_interleave(rows // given)[:, None, None]
        return (output_BTD * self._stretched[key]).to(output_BTD.dtype)


class AdapterScales:
    """The adapters of a soup inside one base model, all active, each scaled by its coefficient.

    Args:
        model: a PEFT model that holds exactly the soup's adapters.
        names: their names in the order of the backbones.
    """

    def __init__(self, model: PeftModel, names: Sequence[str]) -> None:
        self.model = model
        self.names = tuple(names)
        self.layers = dict(_lora_layers(model))
        self._units = [
            (layer.scaling, name, float(layer.scaling[name]))
            for layer in self.layers.values()
            for name in self.names
            if name in layer.scaling
        ]
        self._index = {name: j for j, name in enumerate(self.names)}
        model.base_model.set_adapter(list(self.names), inference_mode=True)
        model.requires_grad_(False)
        model.eval()

    def set(self, coefficients_N: FloatArray) -> None:
        """Make the whole model the soup of one λ, for every row."""
        values = [float(value) for value in coefficients_N]
        for scaling, name, unit in self._units:
            scaling[name] = values[self._index[name]] * unit

    def set_rows(self, coefficients_BN: FloatArray) -> None:
        """Give every row of the coming batches its own λ."""
        columns = torch.tensor(coefficients_BN, dtype=torch.float64).T
        shared: dict[tuple[str, float], RowScale] = {}
        for scaling, name, unit in self._units:
            if (name, unit) not in shared:
                shared[name, unit] = RowScale(columns[self._index[name]] * unit)
            scaling[name] = shared[name, unit]

    def delta(self, layer: LoraLayer, coefficients_N: FloatArray) -> torch.Tensor:
        """Return Σ_j λ_j ΔW_j of one layer in float32, in the layout of its weight."""
        total = torch.zeros_like(layer.get_base_layer().weight, dtype=torch.float32)
        kept = dict(layer.scaling)
        try:
            for name, coefficient in zip(self.names, coefficients_N, strict=True):
                if name in kept:
                    layer.set_scale(name, 1.0)
                    total.add_(layer.get_delta_weight(name).float(), alpha=float(coefficient))
        finally:
            layer.scaling.update(kept)
        return total

    def base_bytes(self) -> int:
        """Return the bytes of the base model's own parameters and buffers, tied ones once."""
        state = self.model.base_model.model.state_dict()
        sizes = {tensor.data_ptr(): tensor.nbytes for name, tensor in state.items() if ".lora_" not in name}
        return sum(sizes.values())

    def check_fit(self, adapters: Sequence[Adapter]) -> None:
        """Check that each adapter changes, in this model, exactly the layers that its file holds.

        Raises:
            SoupError: naming layers that only one of the two has.
        """
        for name, adapter in zip(self.names, adapters, strict=True):
            here = {module for module, layer in self.layers.items() if name in layer.scaling}
            if here != set(adapter.modules):
                odd = sorted(here ^ set(adapter.modules))
                raise SoupError(
                    f"The adapter {adapter.folder} does not fit the base model: of its layers and the model's, "
                    f"{odd[:3]} ({len(odd)} in all) are in only one of the two. Check base_model."
                )


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

"""One LoRA adapter that is exactly a soup of N, made from the adapter files alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.adapters import CONFIG_FILE, WEIGHTS_FILE, Adapter
from trl_bonesoup.soup.source import ModelRef
from trl_bonesoup.soup.tensorfile import TensorFile, TensorInfo
from trl_bonesoup.weights import FloatArray

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig

_TARGETING = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
"""The settings by which PEFT picks layers; where adapters differ in them, every layer is named."""

__all__ = ["StackedAdapters", "StackedModule", "rank_settings", "stack_adapters", "write_config"]


@dataclass(frozen=True)
class StackedModule:
    """The adapters of one layer side by side.

    Attributes:
        name: of the layer in the base model.
        key_A, key_B: of the factors in an adapter's file.
        stacked_A: shape (Σ r_j, in), float32.
        joined_B: shape (out, Σ r_j), float32.
        owners: which adapter each of the Σ r_j positions belongs to.
        units: the scale of that adapter, α/r or α/√r, in float64.
    """

    name: str
    key_A: str
    key_B: str
    stacked_A: torch.Tensor
    joined_B: torch.Tensor
    owners: torch.Tensor
    units: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of ΔW."""
        return self.joined_B.shape[0], self.stacked_A.shape[1]

    def scales(self, coefficients_N: FloatArray) -> torch.Tensor:
        """Return what multiplies the columns of B in the soup of λ: λ times the adapter's own scale, in float64."""
        import torch

        return torch.tensor(coefficients_N, dtype=torch.float64)[self.owners] * self.units

    def rank_of(self, adapters: Sequence[int]) -> int:
        """Return how many of the positions belong to these adapters."""
        return int(np.isin(self.owners.numpy(), adapters).sum())

    def only(self, adapters: Sequence[int]) -> StackedModule:
        """Return the positions that belong to these adapters."""
        import torch

        kept = torch.from_numpy(np.isin(self.owners.numpy(), adapters))
        if kept.all():
            return self
        return replace(
            self,
            stacked_A=self.stacked_A[kept],
            joined_B=self.joined_B[:, kept].contiguous(),
            owners=self.owners[kept],
            units=self.units[kept],
        )


@dataclass(frozen=True)
class StackedAdapters:
    """N adapters as one of rank Σ r_j: A factors stacked, B factors side by side, scale 1.

    Σ_j λ_j s_j B_j A_j = [λ_1 s_1 B_1 | … | λ_N s_N B_N] · [A_1; …; A_N], so a soup differs from
    another only in how the columns of B are scaled, and in which adapters it is made of at all.
    """

    config: dict[str, Any]
    modules: Sequence[StackedModule]

    def nbytes_at(self, coefficients_N: FloatArray) -> int:
        """Return the bytes of the tensors of the soup of λ."""
        used = self._used(coefficients_N)
        return sum(4 * module.rank_of(used) * sum(module.shape) for module in self.modules)

    def at(self, coefficients_N: FloatArray) -> StackedAdapters:
        """Return the adapters that the soup of λ is made of, without those whose λ is 0, up to rounding.

        An adapter file has to hold something, so of λ = 0, the base model, one adapter stays.
        """
        used = self._used(coefficients_N)
        if len(used) == len(coefficients_N):
            return self
        modules = [module.only(used) for module in self.modules if module.rank_of(used)]
        ranks = {module.name: len(module.owners) for module in modules}
        named = (
            dict.fromkeys(_TARGETING) | {"target_modules": sorted(ranks)} if len(modules) < len(self.modules) else {}
        )
        return StackedAdapters({**self.config, **named, **rank_settings(ranks)}, modules)

    def _used(self, coefficients_N: FloatArray) -> list[int]:
        used: list[int] = np.flatnonzero(coefficients_N).tolist()
        return used or [int(self.modules[0].owners[0])]

    def peft_config(self) -> LoraConfig:
        """Return `config` as PEFT's own type."""
        from peft import LoraConfig

        return LoraConfig.from_peft_type(**self.config)

    def factors(self) -> dict[str, torch.Tensor]:
        """Return A and B of every layer under the names that PEFT gives them, without any λ."""
        return {m.key_A: m.stacked_A for m in self.modules} | {m.key_B: m.joined_B for m in self.modules}

    def write(self, coefficients_N: FloatArray, folder: Path) -> float:
        """Write the adapter of one λ into an existing folder, in float32; return 0, the share that is lost."""
        import torch

        used = self.at(coefficients_N)
        scratch = torch.empty(max(module.joined_B.numel() for module in used.modules))
        with TensorFile(folder / WEIGHTS_FILE, used._layout()) as file:
            for module in used.modules:
                scaled_B = scratch[: module.joined_B.numel()].view(module.joined_B.shape)
                scales = module.scales(coefficients_N)
                file.write(module.key_A, module.stacked_A)
                file.write(module.key_B, torch.mul(module.joined_B, scales.float(), out=scaled_B))
        write_config(used.config, folder)
        return 0.0

    def _layout(self) -> dict[str, TensorInfo]:
        return {
            key: TensorInfo(WEIGHTS_FILE, "F32", tuple(tensor.shape)) for key, tensor in sorted(self.factors().items())
        }


def stack_adapters(adapters: Sequence[Adapter], base: ModelRef, *, allow_nan: bool = False) -> StackedAdapters:
    """Read N adapters and put them side by side; `base` is what the result names as its base model.

    Raises:
        SoupError: if two adapters give a layer different shapes, or one contains NaN or infinity, unless
            `allow_nan`.
    """
    names = list(dict.fromkeys(name for adapter in adapters for name in adapter.modules))
    modules = [_stack_module(name, adapters, allow_nan) for name in names]
    ranks = {name: len(module.owners) for name, module in zip(names, modules, strict=True)}
    return StackedAdapters(_combined_config(adapters, ranks, base), modules)


def _stack_module(name: str, adapters: Sequence[Adapter], allow_nan: bool) -> StackedModule:
    import torch

    parts = [(j, adapter, adapter.modules[name]) for j, adapter in enumerate(adapters) if name in adapter.modules]
    _, first_adapter, first = parts[0]
    for _, adapter, module in parts[1:]:
        if (module.shape_A[1], module.shape_B[0]) != (first.shape_A[1], first.shape_B[0]):
            raise SoupError(
                f"The adapters {first_adapter.folder} and {adapter.folder} belong to different models: in {name} one "
                f"maps {first.shape_A[1]} to {first.shape_B[0]} features, the other {module.shape_A[1]} to "
                f"{module.shape_B[0]}."
            )
    factors = [adapter.tensors([module.key_A, module.key_B]) for _, adapter, module in parts]
    for pair, (_, adapter, _) in zip(factors, parts, strict=True):
        for key, factor in pair.items():
            if not allow_nan and not torch.isfinite(factor).all():
                raise SoupError(
                    f"Tensor {key} of the adapter {adapter.folder} contains NaN or infinity (allow_nan=True, or "
                    "--allow-nan, writes the soup all the same)."
                )
    return StackedModule(
        name,
        first.key_A,
        first.key_B,
        torch.cat([pair[part[2].key_A].float() for pair, part in zip(factors, parts, strict=True)], dim=0),
        torch.cat([pair[part[2].key_B].float() for pair, part in zip(factors, parts, strict=True)], dim=1),
        torch.tensor([j for j, _, module in parts for _ in range(module.rank)]),
        torch.tensor([m.scaling for _, _, m in parts for _ in range(m.rank)], dtype=torch.float64),
    )


def _combined_config(adapters: Sequence[Adapter], ranks: dict[str, int], base: ModelRef) -> dict[str, Any]:
    """Return an adapter_config.json in which alpha is the rank of every layer, so that scales are 1."""
    config = dict(adapters[0].config)
    config.update(
        base_model_name_or_path=base.id,
        revision=base.revision or config.get("revision"),
        **rank_settings(ranks),
        use_rslora=False,
        lora_dropout=0.0,
        init_lora_weights=True,
        inference_mode=True,
    )
    if any(_targeting(adapter.config) != _targeting(config) for adapter in adapters):
        config.update(dict.fromkeys(_TARGETING), target_modules=sorted(ranks))
    return config


def rank_settings(ranks: Mapping[str, int]) -> dict[str, Any]:
    """Return the settings that give every layer its rank, and an alpha that makes its scale 1."""
    rank = max(ranks.values())
    others = {_exactly(name): value for name, value in ranks.items() if value != rank}
    return {"r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": dict(others)}


def write_config(config: dict[str, Any], folder: Path) -> None:
    """Write an adapter_config.json."""
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def _targeting(config: dict[str, Any]) -> list[Counter | str | None]:
    values = [config.get(field) for field in _TARGETING]
    return [Counter(value) if isinstance(value, list) else value for value in values]


def _exactly(name: str) -> str:
    """Return the pattern by which PEFT finds this one layer; its names need no escape but the dot."""
    return "^" + name.replace(".", r"\.")

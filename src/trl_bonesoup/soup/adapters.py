"""LoRA adapters as files: what they change, by how much, and which of them can be merged exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.adapter_config import CONFIG_FILE, read_settings
from trl_bonesoup.soup.features import MERGE_FIRST, check_adds_up
from trl_bonesoup.soup.tensorfile import FLOATS, TensorInfo, read_layout, read_tensor

if TYPE_CHECKING:
    import torch

WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTORS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "A",
    ".lora_embedding_B": "B",
}
_BASE_COPY = ".base_layer.weight"

__all__ = ["Adapter", "LoraModule", "check_same_base", "read_adapter", "read_config", "read_shapes"]


@dataclass(frozen=True)
class LoraModule:
    """One adapted layer: ΔW = scaling · B·A with A of shape (rank, in) and B of shape (out, rank).

    For embeddings A is (rank, vocabulary) and ΔW is the transpose, as PEFT stores them.
    """

    name: str
    rank: int
    scaling: float
    key_A: str
    key_B: str
    shape_A: tuple[int, ...]
    shape_B: tuple[int, ...]


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that merges exactly: its folder, its adapter_config.json and the layers it changes.

    `base_copies` are frozen embeddings that PEFT stores beside the factors, by module name.
    """

    folder: Path
    config: dict[str, Any]
    modules: dict[str, LoraModule]
    base_copies: dict[str, str]
    layout: dict[str, TensorInfo]

    @property
    def base_model(self) -> str | None:
        """The base model that the adapter's own config names."""
        return self.config.get("base_model_name_or_path")

    def tensors(self, keys: Sequence[str]) -> dict[str, torch.Tensor]:
        """Read tensors of its file by key.

        Raises:
            SoupError: if the file has become shorter since.
        """
        file = self.folder / WEIGHTS_FILE
        with file.open("rb", buffering=0) as stream:
            return {key: read_tensor(stream.fileno(), self.layout[key], file) for key in keys}


class _NamesItsBase(Protocol):
    @property
    def folder(self) -> Path: ...

    @property
    def base_model(self) -> str | None: ...


def read_adapter(folder: Path) -> Adapter:
    """Read the header of an adapter and check that scaling its deltas is all that merging takes.

    Different ranks, alphas, patterns of either, rsLoRA and target modules are all exact.

    Raises:
        SoupError: naming the feature that is not, with what to do instead.
    """
    config = read_config(folder)
    check_adds_up(config, folder)
    layout = read_layout(folder / WEIGHTS_FILE)
    shapes = {key: info.shape for key, info in layout.items()}
    factors: dict[str, dict[str, str]] = {}
    copies, strangers = {}, []
    for key in shapes:
        module, factor = _split_key(key)
        if factor:
            factors.setdefault(module, {})[factor] = key
        elif key.endswith(_BASE_COPY):
            copies[module] = key
        else:
            strangers.append(key)
    if strangers:
        raise SoupError(
            f"The adapter {folder} stores {strangers[:3]}, which is not a LoRA factor (a resized vocabulary or "
            f"retrained modules?) and cannot be scaled by a preference. {MERGE_FIRST}"
        )
    for key, info in layout.items():
        if info.dtype not in FLOATS:
            raise SoupError(f"Tensor {key} of the adapter {folder} has dtype {info.dtype}, which cannot be merged.")
    if not factors or any(set(pair) != {"A", "B"} for pair in factors.values()):
        raise SoupError(f"The adapter {folder} needs a LoRA factor A and B for each layer; got {sorted(shapes)[:4]}.")
    modules = {name: _lora_module(name, pair["A"], pair["B"], shapes, config, folder) for name, pair in factors.items()}
    return Adapter(folder, config, modules, copies, layout)


def check_same_base(adapters: Iterable[_NamesItsBase]) -> None:
    """Check that all adapters name the same base model.

    Raises:
        SoupError: showing what each of them names.
    """
    named = {str(adapter.folder): adapter.base_model for adapter in adapters}
    if len(set(named.values())) > 1:
        listing = "; ".join(f"{folder}: {base!r}" for folder, base in named.items())
        raise SoupError(
            f"The backbones name different base models ({listing}). Deltas of different models do not add up; "
            "if these are copies of one model, say which to use with base_model= (--base-model)."
        )


def read_config(folder: Path) -> dict[str, Any]:
    """Read the adapter_config.json of an adapter whose weights are in safetensors.

    Raises:
        SoupError: if either file is missing or invalid.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise SoupError(f"{folder} is no PEFT adapter: it has no {CONFIG_FILE}. Check the paths in soup.json.")
    if not (folder / WEIGHTS_FILE).is_file():
        raise SoupError(
            f"{folder} has no {WEIGHTS_FILE}. Pickled adapters (.bin) are not read, because loading one can run "
            "code: load it where you trust it and save it again with safe_serialization=True."
        )
    return read_settings(file)


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of an adapter's tensors by key.

    Raises:
        SoupError: if the file is cut short.
    """
    return {key: info.shape for key, info in read_layout(folder / WEIGHTS_FILE).items()}


def _split_key(key: str) -> tuple[str, str | None]:
    module = key.removeprefix(_PREFIX)
    for ending, factor in _FACTORS.items():
        if module.endswith(ending):
            return module.removesuffix(ending), factor
    return module.removesuffix(_BASE_COPY), None


def _lora_module(
    name: str,
    key_A: str,
    key_B: str,
    shapes: dict[str, tuple[int, ...]],
    config: dict[str, Any],
    folder: Path,
) -> LoraModule:
    rank = _by_pattern(config.get("rank_pattern"), name, config["r"])
    alpha = _by_pattern(config.get("alpha_pattern"), name, config["lora_alpha"])
    shape_A, shape_B = shapes[key_A], shapes[key_B]
    if len(shape_A) != 2 or len(shape_B) != 2:
        raise SoupError(
            f"The adapter {folder} adapts {name} with factors of shapes {shape_A} and {shape_B}; only linear and "
            f"embedding layers (two axes) are supported. {MERGE_FIRST}"
        )
    if not shape_A[0] == shape_B[1] == rank:
        raise SoupError(
            f"The adapter {folder} gives {name} rank {rank} in {CONFIG_FILE}, but its factors have shapes "
            f"{shape_A} and {shape_B}; the two files do not belong together."
        )
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return LoraModule(name, rank, scaling, key_A, key_B, shape_A, shape_B)


def _by_pattern(patterns: dict[str, Any] | None, name: str, default: Any) -> Any:
    if not patterns:
        return default  # without importing PEFT, which takes longer than writing an adapter
    from peft.utils.other import get_pattern_key

    return patterns.get(get_pattern_key(patterns, name), default)

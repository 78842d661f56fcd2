"""What every way of writing a soup shares: opening what it is made of, and writing its files into a folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.adapters import check_same_base, read_adapter
from trl_bonesoup.soup.agreement import check_agreement, check_recorded_base
from trl_bonesoup.soup.combine import StackedAdapters, stack_adapters
from trl_bonesoup.soup.dtypes import record_dtype
from trl_bonesoup.soup.folders import room_for
from trl_bonesoup.soup.lora import BoneSoup
from trl_bonesoup.soup.source import ModelRef, SoupSource
from trl_bonesoup.soup.tokenizers import TOKENIZER_FILES
from trl_bonesoup.weights import FloatArray

if TYPE_CHECKING:
    import torch

    from trl_bonesoup.soup.ingredients import Ingredients

_CONFIG_FILES = ("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json")

__all__ = ["copy_companions", "open_ingredients", "save_state", "stacked", "write_merged"]


def stacked(source: SoupSource, *, allow_nan: bool = False) -> StackedAdapters:
    """Read the adapters of a soup, ready to be written at any λ without the base model."""
    folders = source.backbones()
    adapters = [read_adapter(folder) for folder in folders]
    if source.base_override is None:
        check_same_base(adapters)
    try:
        base = source.base_model()
    except SoupError:
        if source.from_hub or not adapters[0].base_model:  # a stranger's path is not passed on
            raise
        base = ModelRef(adapters[0].base_model)
    if source.base_override is None:
        check_recorded_base(adapters, base)
    check_agreement(folders, Path(base.id) if base.is_local else None, full=False)
    return stack_adapters(adapters, base, allow_nan=allow_nan)


def open_ingredients(source: SoupSource, coefficients_KN: FloatArray) -> Ingredients:
    """Open the checkpoints of a full soup, with the base if a soup needs it or it is on this machine."""
    from trl_bonesoup.soup.ingredients import Ingredients, base_share

    base = source.base_model()
    needed = any(base_share(row) for row in np.atleast_2d(coefficients_KN))
    folders, base_folder = source.backbones(), base.folder() if needed or base.is_local else None
    ingredients = Ingredients.open(folders, base_folder)
    check_agreement(folders, base_folder, full=True)
    return ingredients


def write_merged(
    soup: BoneSoup,
    coefficients_N: FloatArray,
    folder: Path,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str | None = None,
    allow_nan: bool = False,
) -> float:
    """Write base + Σ_j λ_j ΔW_j with config and tokenizer into a folder; return what rounding loses."""
    from trl_bonesoup.soup.merged import merged_state

    state, loss = merged_state(soup.scales, coefficients_N, dtype, allow_nan=allow_nan)
    with room_for(folder.parent, sum(tensor.nbytes for tensor in state.values())):
        save_state(soup.model.get_base_model(), state, folder, max_shard_size)
        if soup.tokenizer is not None:
            soup.tokenizer.save_pretrained(folder)
        record_dtype(folder, dtype)
    return loss


def save_state(model: Any, state: dict[str, torch.Tensor], folder: Path, max_shard_size: int | str | None) -> None:
    """Write tensors as a checkpoint of `model`, with its configs, in shards of at most that size."""
    shards = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    model.save_pretrained(folder, state_dict=state, **shards)


def copy_companions(backbone: Path, folder: Path, *, with_config: bool) -> None:
    """Copy the tokenizer and chat template, and for a full checkpoint the configs, of a backbone."""
    for pattern in (*TOKENIZER_FILES, *(_CONFIG_FILES if with_config else ())):
        for file in backbone.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)

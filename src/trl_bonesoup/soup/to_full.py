"""From adapters to full backbones: what PEFT computes with each adapter, as a checkpoint that can be mixed."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_bonesoup.errors import SoupError
from trl_bonesoup.manifest import BaseModelRef, SoupManifest
from trl_bonesoup.soup.adapters import check_same_base
from trl_bonesoup.soup.dtypes import as_dtype, record_dtype
from trl_bonesoup.soup.folders import check_target, complete_folder, room_for
from trl_bonesoup.soup.loading import load_model, load_tokenizer
from trl_bonesoup.soup.mergeable import MergeableAdapter
from trl_bonesoup.soup.parts import save_state
from trl_bonesoup.soup.rounding import LARGE_LOSS, Rounder, RoundingWarning
from trl_bonesoup.soup.source import ModelRef, SoupSource, open_soup

if TYPE_CHECKING:
    import torch

_NAME = re.compile(r"\w[\w .-]*")

__all__ = ["FullBackbones", "to_full"]


@dataclass(frozen=True)
class FullBackbones:
    """What was written.

    Attributes:
        path: the folder of the new soup.json.
        rounding_losses: by backbone that was merged, the share of what training changed,
            ‖rounded - exact‖ / ‖exact - base‖, that the output dtype loses.
    """

    path: Path
    rounding_losses: dict[str, float]


def to_full(
    path: str | Path,
    out: str | Path,
    *,
    base_model: str | Path | None = None,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    max_shard_size: int | str | None = None,
) -> FullBackbones:
    """Merge the adapter of each backbone into a full checkpoint and write a soup of kind `full`.

    For adapters that do not add up in adapter space: DoRA, trained biases, `modules_to_save`,
    trainable tokens, `target_parameters`, PiSSA, OLoRA, and other methods than LoRA. Each is loaded
    by PEFT and merged by PEFT, in float32, and the result is compared with PEFT's own model on random
    tokens. Objectives, combination weights and statistics are those of the old soup.json.

    Args:
        path: folder of soup.json, or Hub id.
        out: the folder to write, which appears complete or not at all.
        base_model: Hub id or folder to use in place of the recorded base model.
        revision: of the soup on the Hub.
        dtype: of the checkpoints; by default each tensor keeps that of the base model.
        max_shard_size: of their files, in bytes or like "5GB"; by default that of transformers.

    Raises:
        SoupError: if an adapter has no exact full checkpoint, naming why and what to do; nothing is
            written then.

    Warns:
        RoundingWarning: for each backbone of which the dtype loses more than 1 % of what training changed.
    """
    target = as_dtype(dtype)
    source = open_soup(path, base_model=base_model, revision=revision)
    final = check_target(out, inputs=source.inputs())
    names = _names(source.manifest)
    adapters = {
        name: MergeableAdapter.read(folder)
        for name, folder, backbone in zip(names, source.backbones(), source.manifest.backbones, strict=True)
        if backbone.kind == "adapter"
    }
    if not adapters:
        raise SoupError(f"The backbones of {source.folder} are full checkpoints already; there is nothing to merge.")
    if source.base_override is None:
        check_same_base(adapters.values())
    manifest = _moved(source, final, names)
    ref = source.base_model()
    _check_unquantized(ref)
    base = load_model(ref)
    for adapter in adapters.values():
        adapter.check_fit(base)
    losses = {}
    needed = len(adapters) * _nbytes(base, target)
    with room_for(final, needed), complete_folder(out, inputs=source.inputs()) as folder:
        for name, adapter in adapters.items():
            losses[name] = _write_merged(base, adapter, folder / name, target, max_shard_size)
            tokenizer = load_tokenizer(adapter.folder, ref)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder / name)
        manifest.save(folder)
    for name, loss in losses.items():
        _warn_about_rounding(loss, final / name)
    return FullBackbones(final, losses)


def _write_merged(
    base: Any, adapter: MergeableAdapter, folder: Path, dtype: torch.dtype | None, max_shard_size: int | str | None
) -> float:
    merged, rounder = adapter.merged_into(base).state_dict(), Rounder(f"the backbone {adapter.folder}", dtype)
    state = {name: rounder.cast(name, merged[name], weight) for name, weight in base.state_dict().items()}
    save_state(base, state, folder, max_shard_size)
    record_dtype(folder, dtype)
    return rounder.loss


def _names(manifest: SoupManifest) -> list[str]:
    """Return a folder name for each backbone: the last part of its path, if those differ and are names."""
    names = [Path(backbone.path).name for backbone in manifest.backbones]
    if len(set(names)) == len(names) and all(map(_NAME.fullmatch, names)):
        return names
    return [f"backbone-{j}" for j in range(len(names))]


def _moved(source: SoupSource, out: Path, names: Sequence[str]) -> SoupManifest:
    """Return the record of the new soup, whose paths start in `out`."""
    manifest = source.manifest
    base = BaseModelRef(id=_moved_path(source, manifest.base_model.id, out), revision=manifest.base_model.revision)
    if source.base_override is not None:
        base = BaseModelRef(id=source.base_model().id)
    backbones = tuple(
        backbone.model_copy(
            update={
                "kind": "full",
                "path": name if backbone.kind == "adapter" else _moved_path(source, backbone.path, out),
            }
        )
        for backbone, name in zip(manifest.backbones, names, strict=True)
    )
    return manifest.model_copy(update={"base_model": base, "backbones": backbones})


def _moved_path(source: SoupSource, name: str, out: Path) -> str:
    """Return a path of the old soup.json as the new one has to write it; ids on the Hub stay."""
    if source.snapshot is not None:
        return str(source.folder / name) if source.snapshot.holds(name) else name
    local = (source.folder / name).resolve()
    if not local.is_dir():
        return name
    return str(local) if Path(name).is_absolute() else Path(os.path.relpath(local, out)).as_posix()


def _check_unquantized(base: ModelRef) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base.folder(), trust_remote_code=False)
    if getattr(config, "quantization_config", None):
        raise SoupError(
            f"The base model {base.id} is quantized, and merging into its weights would round them again. Give the "
            "model that it was quantized from with base_model= (--base-model)."
        )


def _nbytes(model: Any, dtype: torch.dtype | None) -> int:
    tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}.values()
    return sum(t.numel() * (dtype.itemsize if dtype and t.is_floating_point() else t.itemsize) for t in tensors)


def _warn_about_rounding(loss: float, where: Path) -> None:
    if loss > LARGE_LOSS:
        warnings.warn(
            f"Rounding loses {loss:.1%} of what training changed in {where}, and soups with large coefficients "
            "multiply that. Write the backbones in float32 (dtype=torch.float32, --dtype float32).",
            RoundingWarning,
            stacklevel=3,
        )

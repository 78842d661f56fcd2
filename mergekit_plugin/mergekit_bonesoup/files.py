"""Refuses what is wrong with the models on this machine, before mergekit reads them.

mergekit follows an index out of its folder, reads one of two checkpoints in a folder where transformers
reads the other, dies of SIGBUS over a file that was cut short, and takes an adapter that it merged once
for the adapter that lies at the same path now. What only fails after the merge, which is lost then, is tried first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mergekit_bonesoup.coefficients import MergeRefused

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"

__all__ = ["check_cached_adapters", "check_card", "check_checkpoints", "check_output", "check_present", "same_place"]


def same_place(reference: Any) -> tuple[str, str | None]:
    """Return what is equal for references to the same model, through a link, a slash or another way round."""
    if isinstance(reference, str):  # a file, in the configurations of mergekit-pytorch
        return os.path.realpath(reference), None
    return _place(reference.model), _place(reference.lora) if reference.lora else None


def check_output(models: Iterable[Any], out_path: str) -> None:
    """Check that no model is to be written over.

    Raises:
        MergeRefused: naming the one that is.
    """
    final = os.path.realpath(out_path)
    for model in models:
        for path in filter(None, (model.model, model.lora)):
            if _place(path) == final:
                raise MergeRefused(f"the output folder {out_path} is {path}, which is merged; choose another one.")


def check_present(models: Iterable[Any]) -> None:
    """Check that models are here whose paths cannot be names of repositories.

    Raises:
        MergeRefused: naming the folder that is not.
    """
    for path in (part.path for model in models for part in (model.model, model.lora) if part):
        if not (path.startswith((".", "/", "~")) or path.count("/") > 1) or Path(path).exists():
            continue
        meant = Path(path).expanduser() if path.startswith("~/") else None
        hint = f" mergekit does not know ~: write {meant}." if meant is not None and meant.exists() else ""
        raise MergeRefused(f"there is no folder {path}.{hint}")


def check_checkpoints(models: Iterable[Any]) -> None:
    """Check the safetensors files of models that are folders here, as far as their headers tell.

    Raises:
        MergeRefused: naming the file and what is wrong with it.
    """
    for model in models:
        folder = Path(model.model.path)
        if folder.is_dir():
            _check_folder(folder)


def check_cached_adapters(models: Iterable[Any], cache: str | None) -> None:
    """Check that adapters have a cache, and those that mergekit would take from it: it keys them by the paths alone.

    Raises:
        MergeRefused: if there is no cache for an adapter, or naming the folder of one that is unfinished, or
            older than its adapter.
    """
    for model in models:
        if not model.lora:
            continue
        if not cache:
            raise MergeRefused(
                f"{model} has an adapter, which mergekit merges first: say with --lora-merge-cache DIR where it may "
                "keep the result (in Python MergeOptions(lora_merge_cache=DIR))."
            )
        merged = Path(cache, f"{model.model._unique_id()}_{model.lora._unique_id()}")
        if not merged.exists():
            continue
        try:
            _check_folder(merged)
        except MergeRefused as error:
            raise MergeRefused(f"delete {merged}, where mergekit keeps {model} merged: {_plain(error)}") from error
        weights = [file for file in (merged / _SINGLE, merged / _INDEX) if file.is_file()]
        if not weights:
            raise MergeRefused(f"{merged}, where mergekit keeps {model} merged, is unfinished: delete that folder.")
        trained = [file.stat().st_mtime for file in Path(model.lora.path).glob("adapter_model.*")]
        if trained and max(trained) > weights[0].stat().st_mtime:
            raise MergeRefused(
                f"{merged}, where mergekit keeps {model} merged, is older than the adapter: delete that folder."
            )


def check_card(models: Iterable[Any]) -> None:
    """Ask the Hub what mergekit's model card asks it after the merge: whether a folder `org/name` is a repository.

    Names that are no folders here are not asked for, neither here nor there.

    Raises:
        MergeRefused: naming the folder and what to write for it, if the Hub cannot be asked.
    """
    from mergekit.card import is_hf

    for path in dict.fromkeys(part.path for model in models for part in (model.model, model.lora) if part):
        try:
            is_hf(path)
        except Exception as error:
            raise MergeRefused(
                f"the Hub cannot be asked for the model card whether {path} is a repository there: write ./{path} or "
                f"the whole path for the folder here, or give --no-write-model-card. ({type(error).__name__})"
            ) from error


def _check_folder(folder: Path) -> None:
    for file in _files(folder):
        try:
            safe_open(file, framework="pt")
        except FileNotFoundError as error:
            raise MergeRefused(f"{folder} lacks {file.name}, which its {_INDEX} names.") from error
        except (SafetensorError, OSError) as error:
            raise MergeRefused(f"{file} is not a complete safetensors file: {error}.") from error


def _files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if not index.is_file():
        return [folder / _SINGLE] if (folder / _SINGLE).is_file() else []
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MergeRefused(f"{index} is not a valid index of safetensors files: {error!r}.") from error
    for name in names:
        if not isinstance(name, str) or os.path.basename(name) != name or "\\" in name:  # noqa: PTH119 - a text
            raise MergeRefused(f"{index} names the file {name!r}, which is not in its own folder.")
    if (folder / _SINGLE).is_file() and _SINGLE not in names:
        raise MergeRefused(
            f"{folder} holds two checkpoints, {_SINGLE} and the shards of {_INDEX}, of which transformers reads the "
            "first and mergekit the second; remove the one that is out of date."
        )
    return [folder / name for name in names]


def _plain(error: MergeRefused) -> str:
    return error.message.removeprefix("bone_soup: ")


def _place(path: Any) -> str:
    return os.path.realpath(path.path) if Path(path.path).exists() else str(path)

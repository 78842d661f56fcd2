"""Full checkpoints as files: which tensors they hold, and whether several of them can be merged."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.tensorfile import ITEM_BYTES, TensorInfo, read_into, read_layout, read_tensor
from trl_bonesoup.strict_json import read_json

if TYPE_CHECKING:
    import torch

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

_MAX_INDEX_BYTES = 100_000_000
"""100 bytes for each of a million tensors."""

__all__ = ["INDEX_FILE", "Checkpoint", "check_mergeable", "read_index"]


class Checkpoint:
    """A folder with one model.safetensors or several shards and their index; tensors are read on demand.

    Files are read and not mapped: one that is cut short meanwhile is an error, where a mapped one kills
    the process with SIGBUS.

    Raises:
        SoupError: if there are no safetensors or two checkpoints at once, an index names a file outside
            the folder or other tensors than its shards hold, or a file is cut short.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._descriptors: dict[str, int] = {}
        self.tensors: dict[str, TensorInfo] = {}
        weight_map = self._weight_map()
        self.files = [SINGLE_FILE] if weight_map is None else sorted(set(weight_map.values()))
        for file in self.files:
            self._read_header(file)
        if weight_map is not None:
            self._check_index(weight_map)

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor; one that is no float as its bytes."""
        info = self.tensors[name]
        return read_tensor(self._descriptors[info.file], info, self.folder / info.file)

    def read_into(self, name: str, skip: int, target: memoryview) -> None:
        """Fill `target` with a tensor's bytes, from its byte `skip` on, without mapping the file.

        Safe to call from several threads.

        Raises:
            SoupError: if the file has become shorter since it was opened.
        """
        info = self.tensors[name]
        read_into(self._descriptors[info.file], info.start + skip, target, self.folder / info.file)

    def _weight_map(self) -> dict[str, str] | None:
        """Return which file each tensor is in according to the index; None if there is only one file."""
        index, single = self.folder / INDEX_FILE, (self.folder / SINGLE_FILE).is_file()
        if not index.is_file():
            if single:
                return None
            raise SoupError(
                f"{self.folder} holds no {SINGLE_FILE} and no {INDEX_FILE}; only safetensors checkpoints are read. "
                "Save it again with save_pretrained."
            )
        weight_map = read_index(index)
        files = set(weight_map.values())
        if single and SINGLE_FILE not in files:
            raise SoupError(
                f"{self.folder} holds two checkpoints, {SINGLE_FILE} and the shards of {INDEX_FILE}, of which "
                "transformers reads the first and mergekit the second. Remove the one that is out of date."
            )
        return weight_map

    def _check_index(self, weight_map: dict[str, str]) -> None:
        found = {name: info.file for name, info in self.tensors.items()}
        odd = sorted(name for name in found.keys() | weight_map.keys() if found.get(name) != weight_map.get(name))
        if odd:
            name = odd[0]
            raise SoupError(
                f"The shards in {self.folder} are not those of its {INDEX_FILE} (renamed, or of another checkpoint?): "
                f"{name} should be in {weight_map.get(name, 'none of them')} and is in {found.get(name, 'none')} "
                f"({len(odd)} such tensors)."
            )

    def _read_header(self, file: str) -> None:
        path = self.folder / file
        if not path.is_file():
            raise SoupError(f"{self.folder} lacks {file}, which its {INDEX_FILE} names.")
        for name, info in read_layout(path).items():
            if info.dtype not in ITEM_BYTES:
                raise SoupError(f"Tensor {name} of {self.folder} has dtype {info.dtype}, which cannot be merged.")
            if name in self.tensors:
                raise SoupError(
                    f"Tensor {name} is in two files of {self.folder}: {self.tensors[name].file} and {file}."
                )
            self.tensors[name] = info
        self._descriptors[file] = descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)


def read_index(index: Path) -> dict[str, str]:
    """Return which file of its folder each tensor is in, from the index of a sharded checkpoint.

    Raises:
        SoupError: if it is no such index, or names anything but safetensors files beside it.
    """
    data = read_json(index, SoupError, _MAX_INDEX_BYTES)
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise SoupError(f"{index} is not a valid index of safetensors files: it has no weight_map of names to files.")
    for file in weight_map.values():
        own = isinstance(file, str) and PurePosixPath(file).name == file and "\\" not in file
        if not own or not file.endswith(".safetensors"):
            raise SoupError(f"{index} names the file {file!r}, which is not a safetensors file in its own folder.")
    return weight_map


def check_mergeable(backbones: Sequence[Checkpoint], base: Checkpoint | None = None) -> list[str]:
    """Return the names of the tensors of a soup, in the order of the first backbone.

    Tensors that are no floats must be equal in all backbones. A tensor that only some store is left
    out if there it is a copy of another one: tied weights, which every loader ties again.

    Raises:
        SoupError: naming the tensor and what differs.
    """
    models = [*backbones, *([base] if base else [])]
    first = backbones[0]
    common = [name for name in first.tensors if all(name in model.tensors for model in models)]
    shared = set(common)
    for model in models:
        for name in model.tensors:
            if name not in shared and not _is_tied_copy(model, name, common):
                lacking = next(str(other.folder) for other in models if name not in other.tensors)
                raise SoupError(
                    f"Tensor {name} is in {model.folder} but not in {lacking}; only models of the same architecture "
                    "and vocabulary can be merged."
                )
    for name in common:
        _check_alike(name, backbones, base)
    return common


def _check_alike(name: str, backbones: Sequence[Checkpoint], base: Checkpoint | None) -> None:
    import torch

    expected = backbones[0].tensors[name]
    for model in backbones[1:]:
        found = model.tensors[name]
        if (found.shape, found.dtype) != (expected.shape, expected.dtype):
            raise SoupError(
                f"Tensor {name} is {expected.dtype} of shape {expected.shape} in {backbones[0].folder} but "
                f"{found.dtype} of shape {found.shape} in {model.folder}; backbones must agree in both."
            )
        if not expected.is_float and not torch.equal(backbones[0].read(name), model.read(name)):
            raise SoupError(
                f"Tensor {name} ({expected.dtype}, not a float to merge) differs between {backbones[0].folder} and "
                f"{model.folder}; it can only be copied when all backbones agree."
            )
    if base and expected.is_float and base.tensors[name].shape != expected.shape:
        raise SoupError(
            f"Tensor {name} has shape {base.tensors[name].shape} in the base model {base.folder} but "
            f"{expected.shape} in the backbones; check base_model."
        )


def _is_tied_copy(model: Checkpoint, name: str, common: Sequence[str]) -> bool:
    import torch

    info = model.tensors[name]
    twins = [
        twin
        for twin in common
        if (model.tensors[twin].shape, model.tensors[twin].dtype) == (info.shape, info.dtype) and len(info.shape) == 2
    ]
    return any(torch.equal(model.read(name), model.read(twin)) for twin in twins)

"""Safetensors files: what a header says of a tensor, reading without mapping, and writing piece by piece.

A mapped file that is cut short meanwhile ends the process with SIGBUS; one that is read is an error.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from trl_bonesoup.errors import SoupError

if TYPE_CHECKING:
    import torch

FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The dtypes that are merged, by their names in safetensors: those in torch. Others must be equal everywhere."""

ITEM_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
ITEM_BYTES |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
"""Bytes of one element, by the names that safetensors gives dtypes."""

__all__ = ["FLOATS", "ITEM_BYTES", "TensorFile", "TensorInfo", "bytes_of", "read_into", "read_layout", "read_tensor"]


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is.

    Attributes:
        file: name of its file.
        dtype: the name that safetensors gives its dtype.
        shape: its shape.
        start: where its values begin in the file, in bytes.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int = 0

    @property
    def is_float(self) -> bool:
        """Whether it is merged rather than copied."""
        return self.dtype in FLOATS

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return ITEM_BYTES[self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.itemsize


class TensorFile:
    """A safetensors file whose header is written first and whose values come in pieces, each to its place.

    Args:
        file: the file to create, or to continue if `resume`.
        layout: dtype and shape of every tensor, in the order in which they lie in the file.
        resume: keep what is in the file already.
    """

    def __init__(self, file: Path, layout: Mapping[str, TensorInfo], *, resume: bool = False) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, info in layout.items():
            start, end = end, end + info.nbytes
            header[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        text = len(text).to_bytes(8, "little") + text
        self._starts = {name: len(text) + header[name]["data_offsets"][0] for name in layout}  # type: ignore[index]
        self._stream = file.open("r+b" if resume else "xb", buffering=0)
        self._write_at(0, memoryview(text))
        self._stream.truncate(len(text) + end)

    def write(self, name: str, values: torch.Tensor, skip: int = 0) -> int:
        """Write consecutive values of a tensor, from its byte `skip` on, and return their bytes.

        Safe to call from several threads. Values that are never written are zeros.
        """
        piece = bytes_of(values)
        self._write_at(self._starts[name] + skip, piece)
        return len(piece)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _write_at(self, position: int, piece: memoryview) -> None:
        while piece:
            written = os.pwrite(self._stream.fileno(), piece, position)
            position, piece = position + written, piece[written:]


def read_layout(file: Path) -> dict[str, TensorInfo]:
    """Return what a file holds, by the names of its tensors, after safetensors has checked its header.

    Raises:
        SoupError: if it is not there, cut short, or its header lies.
    """
    try:
        with safe_open(file, framework="pt") as handle:
            names = list(handle.keys())
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
    except (SafetensorError, OSError) as error:
        raise SoupError(f"{file} is not a complete safetensors file: {error}") from error
    entries = {name: header[name] for name in names}
    return {
        name: TensorInfo(file.name, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in entries.items()
    }


def read_tensor(descriptor: int, info: TensorInfo, file: Path) -> torch.Tensor:
    """Return a tensor, read and not mapped from an open file; one that is no float as its bytes.

    Raises:
        SoupError: if the file has become shorter since its layout was read.
    """
    import torch

    stored = torch.empty(info.nbytes, dtype=torch.uint8)
    read_into(descriptor, info.start, bytes_of(stored), file)
    return stored.view(getattr(torch, FLOATS[info.dtype])).view(info.shape) if info.is_float else stored


def read_into(descriptor: int, position: int, target: memoryview, file: Path) -> None:
    """Fill `target` from a place in an open file. Safe to call from several threads.

    Raises:
        SoupError: if the file ends before.
    """
    while target:
        count = os.preadv(descriptor, [target], position)
        if not count:
            raise SoupError(f"{file} was cut short while it was read.")
        position, target = position + count, target[count:]


def bytes_of(values: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous tensor, to read from and write to."""
    import torch

    return values.reshape(-1).view(torch.uint8).numpy().data

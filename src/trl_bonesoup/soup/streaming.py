"""Full soups tensor by tensor: every input is read once, every output accumulated in float32 and cast once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import torch

from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.checkpoints import INDEX_FILE, Checkpoint, TensorInfo, check_mergeable
from trl_bonesoup.soup.rounding import RoundingMeter
from trl_bonesoup.weights import FloatArray

CHUNK = 2**20
"""Elements accumulated at a time, so that the float32 buffer stays in the processor's cache."""

BASE_SHARE_TOLERANCE = 4e-6
"""|1 - Σλ| up to which the base has no share: B and μ may each be off the simplex by 1e-6."""

_TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _TORCH.items()}

__all__ = ["Ingredients", "SafetensorsWriter", "accumulate", "base_share", "write_soups"]


@dataclass(frozen=True)
class Ingredients:
    """What full soups are made of: N backbones, and the base if it has a share or is compared with.

    `names` are the tensors of a soup, as `check_mergeable` returns them.
    """

    backbones: Sequence[Checkpoint]
    base: Checkpoint | None
    names: Sequence[str]

    @classmethod
    def open(cls, folders: Sequence[Path], base: Path | None) -> Ingredients:
        """Open the checkpoints in these folders and check that they can be merged."""
        backbones = [Checkpoint(folder) for folder in folders]
        base_checkpoint = None if base is None else Checkpoint(base)
        return cls(backbones, base_checkpoint, check_mergeable(backbones, base_checkpoint))

    def read(self, name: str) -> list[torch.Tensor]:
        """Read one tensor from every backbone and, last, from the base."""
        return [model.read(name) for model in self._models]

    def shares(self, coefficients_N: FloatArray) -> list[float]:
        """Return what multiplies each tensor of `read`: λ_j and, for the base, 1 - Σλ.

        Raises:
            SoupError: if the base has a share but is not among the ingredients.
        """
        share = base_share(coefficients_N)
        if self.base is None and share:
            raise SoupError(f"The base model has a share of {share:.4g} in this soup, but it was not given.")
        return [*map(float, coefficients_N), *([share] if self.base else [])]

    def soup_bytes(self, dtype: torch.dtype | None = None) -> int:
        """Return the bytes of the tensors of one soup whose floats have `dtype`, by default their own."""
        infos = [_as_dtype(self.backbones[0].tensors[name], dtype) for name in self.names]
        return sum(info.nbytes for info in infos)

    def blame(self, name: str) -> str:
        """Say which model's tensor is not finite, or that the soup's own is not."""
        for model in self._models:
            if not torch.isfinite(model.read(name)).all():
                return f"Tensor {name} of {model.folder} contains NaN or infinity."
        return f"Tensor {name} of the soup exceeds the range of its dtype; write it as float32."

    @property
    def _models(self) -> list[Checkpoint]:
        return [*self.backbones, *([self.base] if self.base else [])]


def base_share(coefficients_N: FloatArray) -> float:
    """Return the share 1 - Σλ of the base model (Equation 9), exactly 0 where only rounding is left."""
    share = 1.0 - float(coefficients_N.sum())
    return share if abs(share) > BASE_SHARE_TOLERANCE else 0.0


def accumulate(tensors: Sequence[torch.Tensor], shares: Sequence[float], total: torch.Tensor) -> torch.Tensor:
    """Set `total` to Σ_j share_j · tensor_j in its own dtype, adding one tensor after the other.

    The order and the one operation are those of mergekit's linear kernel, so the bits are the same.
    A share of exactly 0 is skipped.
    """
    total.zero_()
    for tensor, share in zip(tensors, shares, strict=True):
        if share:
            total.addcmul_(tensor, torch.full((1,) * tensor.ndim, share, dtype=total.dtype, device=tensor.device))
    return total


def write_soups(
    ingredients: Ingredients,
    coefficients_KN: FloatArray,
    folders: Sequence[Path],
    *,
    dtype: torch.dtype | None = None,
    report: Callable[[int], object] = lambda written: None,
) -> list[float | None]:
    """Write K soups in one pass over the inputs, in the shards of the first backbone.

    Memory is bounded by a chunk of 2**20 elements; the inputs are mapped, not loaded.

    Args:
        ingredients: the checkpoints.
        coefficients_KN: λ of each soup.
        folders: K existing folders for the safetensors files.
        dtype: of all floats in the output; by default each tensor keeps its own.
        report: called with the number of bytes written since the last call.

    Returns:
        For each soup the share of its effect that rounding loses, or None without a base to compare with.

    Raises:
        SoupError: naming the tensor, if one is or becomes NaN or infinite.
    """
    shares = [ingredients.shares(row) for row in coefficients_KN]
    meters = [RoundingMeter() for _ in folders]
    written_to: dict[str, str] = {}
    total_size = 0
    for file in ingredients.backbones[0].files:
        layout = _layout(ingredients, file, dtype)
        if not layout:
            continue
        with ExitStack() as stack:
            writers = [stack.enter_context(SafetensorsWriter(folder / file, layout)) for folder in folders]
            for name in layout:
                for written in _write_tensor(ingredients, name, shares, writers, meters):
                    report(written)
        written_to.update(dict.fromkeys(layout, file))
        total_size += sum(info.nbytes for info in layout.values())
    if len(ingredients.backbones[0].files) > 1:
        for folder in folders:
            _write_index(folder, written_to, total_size)
    return [meter.share if ingredients.base else None for meter in meters]


class SafetensorsWriter:
    """A safetensors file written front to back, without holding its tensors in memory.

    Args:
        file: the file to create.
        layout: dtype and shape of every tensor, in the order in which their values will come.
    """

    def __init__(self, file: Path, layout: dict[str, TensorInfo]) -> None:
        self.layout = layout
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, info in layout.items():
            start, end = end, end + info.nbytes
            header[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._stream = file.open("xb")
        self._stream.write(len(text).to_bytes(8, "little") + text)
        self._end = self._stream.tell() + end

    def write(self, values: torch.Tensor) -> int:
        """Append a contiguous piece of the current tensor and return its bytes."""
        return self._stream.write(values.reshape(-1).view(torch.uint8).numpy().data)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        position = self._stream.tell()
        self._stream.close()
        if error is None and position != self._end:
            raise SoupError(f"{self._stream.name} has {position} bytes where its header promises {self._end}.")


def _layout(ingredients: Ingredients, file: str, dtype: torch.dtype | None) -> dict[str, TensorInfo]:
    """Return the tensors of one output shard, widest dtype first so that every one is aligned."""
    first = ingredients.backbones[0].tensors
    layout = {}
    for name in ingredients.names:
        info = first[name]
        if info.file == file:
            layout[name] = _as_dtype(info, dtype)
    return dict(sorted(layout.items(), key=lambda item: (-item[1].itemsize, item[0])))


def _as_dtype(info: TensorInfo, dtype: torch.dtype | None) -> TensorInfo:
    return replace(info, dtype=_NAMES[dtype]) if dtype and info.is_float else info


def _write_tensor(
    ingredients: Ingredients,
    name: str,
    shares: Sequence[Sequence[float]],
    writers: Sequence[SafetensorsWriter],
    meters: Sequence[RoundingMeter],
) -> Iterator[int]:
    info = writers[0].layout[name]
    if not info.is_float:
        value = ingredients.backbones[0].read(name).contiguous()
        for writer in writers:
            yield writer.write(value)
        return
    flat = [tensor.reshape(-1) for tensor in ingredients.read(name)]
    buffer = torch.empty(min(CHUNK, len(flat[0])), dtype=torch.promote_types(flat[0].dtype, torch.float32))
    for start in range(0, len(flat[0]), CHUNK):
        pieces = [tensor[start : start + CHUNK] for tensor in flat]
        for share, writer, meter in zip(shares, writers, meters, strict=True):
            exact = accumulate(pieces, share, buffer[: len(pieces[0])])
            rounded = exact.to(_TORCH[info.dtype])
            if not torch.isfinite(rounded).all():
                raise SoupError(ingredients.blame(name))
            if ingredients.base:
                meter.add(rounded, exact, pieces[-1])
            yield writer.write(rounded)


def _write_index(folder: Path, written_to: dict[str, str], total_size: int) -> None:
    index = {"metadata": {"total_size": total_size}, "weight_map": written_to}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")

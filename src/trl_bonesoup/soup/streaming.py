"""Full soups piece by piece: every input is read once, every output summed in float32 and rounded once.

A piece is a run of values of one tensor. Threads take pieces in turn, each with buffers of its own
that it uses again and again: memory does not grow with the models, and no time goes into the first
touch of new pages.
"""

from __future__ import annotations

import json
import math
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

import trl_bonesoup
from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.checkpoints import INDEX_FILE
from trl_bonesoup.soup.ingredients import TORCH_DTYPES, Ingredients, accumulate
from trl_bonesoup.soup.rounding import is_finite, lost_share
from trl_bonesoup.soup.tensorfile import TensorFile, TensorInfo, bytes_of
from trl_bonesoup.soup.threads import in_order
from trl_bonesoup.weights import FloatArray

PIECE = 2**19
"""Values of a piece: small enough for the buffers of a thread to stay in its processor's cache."""

MEASURED = 256
"""Pieces from which on rounding is measured on a share of them: measuring takes longer than mixing."""

LEAST_SHARE = 8
"""At least one piece in so many is measured, whatever the size of the models."""

__all__ = ["Progress", "piece_layout", "write_soups"]


class Progress(Protocol):
    """Remembers how far a pass has come, so that another process can go on from there."""

    pieces: int
    squares_K2: FloatArray

    def advance(self, pieces: int, squares_K2: FloatArray) -> None:
        """Take note that so many pieces are written in every soup, and of the squares summed so far."""


def write_soups(
    ingredients: Ingredients,
    coefficients_KN: FloatArray,
    folders: Sequence[Path],
    *,
    dtype: torch.dtype | None = None,
    allow_nan: bool = False,
    report: Callable[[int], object] = lambda written: None,
    progress: Progress | None = None,
) -> list[float | None]:
    """Write K soups in one pass over the inputs, in the shards of the first backbone.

    Args:
        ingredients: the checkpoints.
        coefficients_KN: λ of each soup.
        folders: K existing folders for the safetensors files.
        dtype: of all floats in the output; by default each tensor keeps its own.
        allow_nan: write NaN and infinity that come from the inputs; refuse only what rounding makes infinite.
        report: called with the number of bytes written since the last call.
        progress: where an interrupted pass over the same soups into the same folders had come, and
            to be kept up to date.

    Returns:
        For each soup the share of its effect that rounding loses, or None without a base to compare with.
        In large models it is measured on one piece in eight, at least.

    Raises:
        SoupError: naming the tensor, if one is or becomes NaN or infinite; with `allow_nan`, if it does
            by rounding.
    """
    shares = [ingredients.shares(row) for row in coefficients_KN]
    done, skipped = 0, progress.pieces if progress else 0
    squares_K2 = progress.squares_K2.copy() if progress else np.zeros((len(folders), 2))
    shards = {file: layout for file in ingredients.backbones[0].files if (layout := ingredients.layout(file, dtype))}
    every = max(1, min(LEAST_SHARE, sum(map(_count, shards.values())) // MEASURED)) if ingredients.base else None
    for file, layout in shards.items():
        pieces = list(_pieces(layout, every))
        with ExitStack() as stack:
            outputs = [stack.enter_context(TensorFile(f / file, layout, resume=(f / file).exists())) for f in folders]
            cook = _Cook(ingredients, shares, outputs, layout, allow_nan)
            known = min(max(skipped - done, 0), len(pieces))
            report(sum(piece.nbytes for piece in pieces[:known]) * len(folders))
            for piece, squares in zip(pieces[known:], in_order(cook.cook, pieces[known:]), strict=True):
                squares_K2 += squares
                known += 1
                report(piece.nbytes * len(folders))
                if progress:
                    progress.advance(done + known, squares_K2)
        done += len(pieces)
    if len(ingredients.backbones[0].files) > 1:
        for folder in folders:
            _write_index(folder, shards)
    return [lost_share(*row) if ingredients.base else None for row in squares_K2.tolist()]


def piece_layout() -> str:
    """Return what a count of pieces depends on, besides the soups: their size, and which of them are measured."""
    return f"{PIECE} {MEASURED} {LEAST_SHARE} {trl_bonesoup.__version__}"


@dataclass(frozen=True)
class _Piece:
    name: str
    start: int
    length: int
    itemsize: int
    """Of the output."""
    measured: bool
    """Whether it counts for what rounding loses."""

    @property
    def nbytes(self) -> int:
        return self.length * self.itemsize


def _pieces(layout: dict[str, TensorInfo], every: int | None) -> Iterator[_Piece]:
    """Yield the pieces of a file; about one in `every`, chosen by its name, is measured. None: none is."""
    for name, info in layout.items():
        values = math.prod(info.shape)
        for start in range(0, values, PIECE):
            measured = every is not None and zlib.crc32(f"{name} {start}".encode()) % every == 0
            yield _Piece(name, start, min(PIECE, values - start), info.itemsize, measured)


def _count(layout: dict[str, TensorInfo]) -> int:
    return sum(1 for _ in _pieces(layout, None))


class _Cook:
    """Makes one piece of every soup; may be called from several threads."""

    def __init__(
        self,
        ingredients: Ingredients,
        shares: Sequence[Sequence[float]],
        outputs: Sequence[TensorFile],
        layout: dict[str, TensorInfo],
        allow_nan: bool,
    ) -> None:
        self._allow_nan = allow_nan
        self._ingredients = ingredients
        self._shares = shares
        self._outputs = outputs
        self._layout = layout
        self._base_has_share = ingredients.base is not None and any(row[-1] for row in shares)
        self._own = threading.local()

    def cook(self, piece: _Piece) -> FloatArray:
        """Write the piece of every soup; return the squares of each one's rounding error and effect, (K, 2)."""
        squares_K2 = np.zeros((len(self._outputs), 2))
        if not self._layout[piece.name].is_float:
            self._copy(piece)
            return squares_K2
        out_dtype = TORCH_DTYPES[self._layout[piece.name].dtype]
        tensors = self._read(piece)
        exact, scratch = (self._buffer(role, tensors[0].dtype, piece.length) for role in ("exact", "scratch"))
        rounded = self._buffer("rounded", out_dtype, piece.length)
        for k, (shares, output) in enumerate(zip(self._shares, self._outputs, strict=True)):
            accumulate(tensors, shares[: len(tensors)], exact)
            rounded.copy_(exact)
            if not is_finite(exact, rounded, allow_nan=self._allow_nan):
                raise SoupError(self._ingredients.blame(piece.name))
            output.write(piece.name, rounded, piece.start * piece.itemsize)
            if piece.measured:
                scratch.copy_(rounded)
                squares_K2[k] = (
                    _squared_distance(scratch, exact, scratch),
                    _squared_distance(tensors[-1], exact, scratch),
                )
        return squares_K2

    def _read(self, piece: _Piece) -> list[torch.Tensor]:
        """Return the piece of every backbone and, where it is needed, the base, in the dtype of the sums."""
        with_base = piece.measured or self._base_has_share
        models = self._ingredients.models if with_base else self._ingredients.backbones
        sum_dtype = torch.promote_types(TORCH_DTYPES[models[0].tensors[piece.name].dtype], torch.float32)
        tensors = []
        for j, model in enumerate(models):
            info = model.tensors[piece.name]
            stored = self._buffer("stored", TORCH_DTYPES[info.dtype], piece.length)
            model.read_into(piece.name, piece.start * info.itemsize, bytes_of(stored))
            tensors.append(self._buffer(f"model {j}", sum_dtype, piece.length).copy_(stored))
        return tensors

    def _copy(self, piece: _Piece) -> None:
        values = self._buffer("copied", torch.uint8, piece.nbytes)
        skip = piece.start * piece.itemsize
        self._ingredients.backbones[0].read_into(piece.name, skip, bytes_of(values))
        for output in self._outputs:
            output.write(piece.name, values, skip)

    def _buffer(self, role: str, dtype: torch.dtype, length: int) -> torch.Tensor:
        """Return this thread's memory for a role, the same one every time."""
        buffers = self._own.__dict__
        if len(buffers.get(key := f"{role} {dtype}", ())) < length:
            buffers[key] = torch.empty(length, dtype=dtype)
        return buffers[key][:length]


def _squared_distance(value: torch.Tensor, exact: torch.Tensor, scratch: torch.Tensor) -> float:
    difference = torch.sub(value, exact, out=scratch)
    return float(torch.dot(difference, difference))


def _write_index(folder: Path, shards: dict[str, dict[str, TensorInfo]]) -> None:
    index = {
        "metadata": {"total_size": sum(info.nbytes for layout in shards.values() for info in layout.values())},
        "weight_map": {name: file for file, layout in shards.items() for name in layout},
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")

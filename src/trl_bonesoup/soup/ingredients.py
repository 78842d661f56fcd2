"""What full soups are made of: the backbones' checkpoints, and the base where it has a share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.checkpoints import Checkpoint, check_mergeable
from trl_bonesoup.soup.tensorfile import FLOATS, TensorInfo
from trl_bonesoup.weights import FloatArray, base_share

TORCH_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, dtype) for name, dtype in FLOATS.items()}
"""Dtypes that are merged, by the names that safetensors gives them."""

_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}

__all__ = ["TORCH_DTYPES", "Ingredients", "accumulate", "base_share"]


@dataclass(frozen=True)
class Ingredients:
    """N backbones, and the base if it has a share or is compared with.

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

    @property
    def models(self) -> list[Checkpoint]:
        """Every backbone and, last, the base."""
        return [*self.backbones, *([self.base] if self.base else [])]

    def read(self, name: str) -> list[torch.Tensor]:
        """Read one tensor from every model."""
        return [model.read(name) for model in self.models]

    def shares(self, coefficients_N: FloatArray) -> list[float]:
        """Return what multiplies each of the models: λ_j and, for the base, 1 - Σλ.

        Raises:
            SoupError: if the base has a share but is not among the ingredients.
        """
        share = base_share(coefficients_N)
        if self.base is None and share:
            raise SoupError(f"The base model has a share of {share:.4g} in this soup, but it was not given.")
        return [*map(float, coefficients_N), *([share] if self.base else [])]

    def layout(self, file: str | None = None, dtype: torch.dtype | None = None) -> dict[str, TensorInfo]:
        """Return the tensors of a soup, widest dtype first so that every one is aligned in its file.

        Args:
            file: only those of this shard of the first backbone.
            dtype: of all floats; by default each tensor keeps its own.
        """
        infos = {name: self.backbones[0].tensors[name] for name in self.names}
        layout = {name: _as_dtype(info, dtype) for name, info in infos.items() if file in (None, info.file)}
        return dict(sorted(layout.items(), key=lambda item: (-item[1].itemsize, item[0])))

    def soup_bytes(self, dtype: torch.dtype | None = None) -> int:
        """Return the bytes of the tensors of one soup whose floats have `dtype`, by default their own."""
        return sum(info.nbytes for info in self.layout(dtype=dtype).values())

    def blame(self, name: str) -> str:
        """Say which model's tensor is not finite, or that the soup's own is not."""
        for model in self.models:
            if not torch.isfinite(model.read(name)).all():
                return (
                    f"Tensor {name} of {model.folder} contains NaN or infinity (allow_nan=True, or --allow-nan, "
                    "writes the soup all the same)."
                )
        return f"Tensor {name} of the soup exceeds the range of its dtype; write it as float32."


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


def _as_dtype(info: TensorInfo, dtype: torch.dtype | None) -> TensorInfo:
    return replace(info, dtype=_NAMES[dtype]) if dtype and info.is_float else info

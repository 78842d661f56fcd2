"""The dtypes that checkpoints of language models have, by the names that people give them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_bonesoup.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

_SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

__all__ = ["as_dtype", "check_dtype", "dtype_name", "record_dtype"]


def dtype_name(name: str) -> str:
    """Return torch's name of a dtype that may be given by a short one.

    >>> dtype_name("bf16"), dtype_name("float32")
    ('bfloat16', 'float32')
    """
    return _SHORT.get(name, name)


def check_dtype(dtype: Any, *, full: bool) -> torch.dtype | None:
    """Return the dtype of a checkpoint that is to be written; None keeps that of each tensor.

    Raises:
        ConfigurationError: if it is not one that checkpoints have, or an adapter is to be written.
    """
    found = as_dtype(dtype)
    if found is not None and not full:
        raise ConfigurationError(
            f"dtype={str(found).removeprefix('torch.')} (--dtype) is for a full checkpoint; an adapter is written in "
            "float32. Ask for a full checkpoint (full=True, --full), or leave it out."
        )
    return found


def record_dtype(folder: Path, dtype: torch.dtype | None) -> None:
    """Say in config.json that the floats of a checkpoint were cast to `dtype`."""
    if dtype is None:
        return
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def as_dtype(dtype: Any) -> torch.dtype | None:
    """Return a torch dtype from itself, from its name, long or short (bf16), or None.

    Raises:
        ConfigurationError: if it is not one that checkpoints of language models have.
    """
    from trl_bonesoup.soup.ingredients import TORCH_DTYPES

    names = {str(allowed).removeprefix("torch."): allowed for allowed in TORCH_DTYPES.values()}
    found = names.get(dtype_name(dtype)) if isinstance(dtype, str) else dtype
    if dtype is not None and found not in names.values():
        raise ConfigurationError(f"The dtype of a checkpoint is one of {', '.join(names)}; got {dtype!r}.")
    return found

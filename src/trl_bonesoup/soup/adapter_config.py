"""adapter_config.json: what is read of it here, checked before anything computes with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from trl_bonesoup.errors import SoupError
from trl_bonesoup.strict_json import problems, read_json

CONFIG_FILE = "adapter_config.json"
_MAX_BYTES = 5_000_000
"""Lists of layers make it long; a model of 1,000 layers with all of them by name has 200 kB."""

__all__ = ["CONFIG_FILE", "read_settings"]


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    return pattern


_Name = Annotated[str, Field(max_length=1_000)]
_Pattern = Annotated[str, Field(max_length=1_000), AfterValidator(_compiles)]


class _Settings(BaseModel):
    """Of any method of PEFT's; it has many more settings, which are its own to check."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    peft_type: _Name
    base_model_name_or_path: _Name | None = None
    revision: _Name | None = None
    target_modules: list[_Name] | _Pattern | None = None


class _LoraSettings(_Settings):
    r: Annotated[int, Field(ge=1, lt=2**31)]
    lora_alpha: float
    use_rslora: bool | None = None
    rank_pattern: dict[_Pattern, Annotated[int, Field(ge=1, lt=2**31)]] | None = None
    alpha_pattern: dict[_Pattern, float] | None = None
    bias: _Name = "none"
    init_lora_weights: bool | _Name = True


def read_settings(file: Path) -> dict[str, Any]:
    """Read an adapter_config.json.

    Raises:
        SoupError: if it is no strict JSON, or a setting that is used here has another type.
    """
    config = read_json(file, SoupError, _MAX_BYTES)
    kind = config.get("peft_type") if isinstance(config, dict) else None
    try:
        (_LoraSettings if kind == "LORA" else _Settings).model_validate(config)
    except ValidationError as error:
        raise SoupError(f"{file} is not the configuration of an adapter: {problems(error, 'it')}.") from error
    return config

"""Whether the models of a soup belong together: no two the same, of one architecture, with one tokenizer."""

from __future__ import annotations

import filecmp
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.adapters import Adapter
from trl_bonesoup.soup.source import ModelRef
from trl_bonesoup.soup.tokenizers import check_tokenizers

_MEANINGLESS = frozenset(
    {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "attn_implementation"}
)
"""Entries of a config.json that say nothing of what the weights mean; dtypes are compared tensor by tensor."""

_TOKEN_IDS = "_token_id"
"""Ends entries of config.json that training may set, so that a base model need not have them."""

_LOOKS, _LOOK = 64, 4096
"""At how many places files are compared before they are read to the end, and bytes of each."""

_ORG_AND_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

__all__ = ["check_agreement", "check_recorded_base"]


def check_agreement(backbones: Sequence[Path], base: Path | None, *, full: bool) -> None:
    """Check what no shape of a tensor shows.

    Args:
        backbones: their folders, in order.
        base: the base model's folder, if it is on this machine.
        full: the backbones are full checkpoints, each with a config.json of its own.

    Raises:
        SoupError: naming two models and what they do not agree in, or that they are one and the same.
    """
    for (i, first), (j, second) in itertools.combinations(enumerate(backbones), 2):
        _check_distinct(i, first, j, second)
    if full:
        first, *others = backbones
        for other in others:
            _check_config(first, other, _MEANINGLESS)
        if base is not None:
            _check_config(first, base, _MEANINGLESS, without_token_ids=True)
    check_tokenizers(backbones, base)


def check_recorded_base(adapters: Iterable[Adapter], base: ModelRef) -> None:
    """Check that adapters do not name another model on the Hub than the base model of the soup.

    Where either is a folder, which may have moved since, nothing can be said.

    Raises:
        SoupError: showing both.
    """
    for adapter in adapters:
        named = adapter.base_model or base.id
        on_hub = all(_ORG_AND_NAME.fullmatch(name) and not Path(name).exists() for name in (named, base.id))
        if on_hub and named != base.id:
            raise SoupError(
                f"The adapter {adapter.folder} was trained on {named!r}, but the base model of soup.json is "
                f"{base.id!r}. If these are copies of one model, say which to use with base_model= (--base-model)."
            )


def _check_distinct(i: int, first: Path, j: int, second: Path) -> None:
    if first.resolve() == second.resolve():
        raise SoupError(f"Backbones {i} and {j} of soup.json are the same folder {first.resolve()}: {_WHY_DISTINCT}")
    files = [{file.name: file for file in folder.glob("*.safetensors")} for folder in (first, second)]
    if not files[0] or files[0].keys() != files[1].keys():
        return
    if all(_same_content(file, files[1][name]) for name, file in files[0].items()):
        raise SoupError(f"Backbones {i} and {j}, {first} and {second}, hold the same weights: {_WHY_DISTINCT}")


_WHY_DISTINCT = (
    "each backbone has to be trained on its own column of B, or there is nothing to mix. Check the paths in soup.json, "
    "and that training changed anything."
)


def _same_content(first: Path, second: Path) -> bool:
    """Return whether two files are alike; those that are not show it at one of a few places, almost always."""
    size = first.stat().st_size
    if size != second.stat().st_size:
        return False
    with first.open("rb") as one, second.open("rb") as other:
        for look in range(_LOOKS):
            for stream in (one, other):
                stream.seek(size * look // _LOOKS)
            if one.read(_LOOK) != other.read(_LOOK):
                return False
    return filecmp.cmp(first, second, shallow=False)


def _check_config(first: Path, other: Path, ignored: Iterable[str], *, without_token_ids: bool = False) -> None:
    configs = [_read_config(first), _read_config(other)]
    if configs[0] != configs[1]:
        # Versions of transformers write the same settings under other names and leave out other defaults.
        configs = [_normalised(folder, config) for folder, config in zip((first, other), configs, strict=True)]
    for key in sorted(configs[0].keys() | configs[1].keys()):
        if key in ignored or (without_token_ids and key.endswith(_TOKEN_IDS)):
            continue
        values = [config.get(key) for config in configs]
        if values[0] != values[1]:
            raise SoupError(
                f"{key} is {values[0]!r} in the config.json of {first} but {values[1]!r} in that of {other}; only "
                "models of the same architecture and settings can be merged."
            )


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SoupError(f"{folder} is no complete model: its config.json cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise SoupError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(config, dict):
        raise SoupError(f"{file} is not the configuration of a model.")
    return config


def _normalised(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()
    except (ValueError, KeyError, OSError, TypeError):  # a model whose code is not in transformers
        return config

"""What a family's soup.json and front.json say, without paths, tokens and e-mail addresses."""

from __future__ import annotations

import re
from typing import Any

from trl_bonesoup.manifest import SoupManifest
from trl_bonesoup.markdown import hide_local_paths

_TOKEN = re.compile(r"hf_[A-Za-z0-9]{10,}")
_E_MAIL = re.compile(r"[\w.+-]+@(?:[\w-]+\.)+[A-Za-z]{2,}")

__all__ = ["cleaned", "portable_manifest"]


def cleaned(value: Any) -> Any:
    """Return JSON with paths cut to their last part, and without tokens and e-mail addresses in its strings.

    >>> cleaned({"model": "/home/ann/sft", "by": "ann@mail.example"})
    {'model': 'sft', 'by': '(e-mail address)'}
    """
    if isinstance(value, dict):
        return {key: cleaned(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [cleaned(entry) for entry in value]
    if not isinstance(value, str):
        return value
    return _E_MAIL.sub("(e-mail address)", _TOKEN.sub("(token)", hide_local_paths(value)))


def portable_manifest(manifest: SoupManifest, base: tuple[str, str | None], backbones: list[str]) -> SoupManifest:
    """Return a soup.json that means the same in a repository.

    Args:
        manifest: as it is on this machine.
        base: id and revision of the base model, or the folder of the repository in which it lies.
        backbones: Hub ids or folders of the repository, in order.
    """
    data = manifest.model_dump()
    data["base_model"] = {"id": base[0], "revision": base[1]}
    for backbone, path in zip(data["backbones"], backbones, strict=True):
        backbone["path"] = path
    for objective in data["objectives"]:
        objective["reward"] = cleaned(objective["reward"])
    data["training"] = cleaned(data["training"])
    return SoupManifest.model_validate(data)

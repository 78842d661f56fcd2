"""What leaves this machine, without what is private: paths, tokens and e-mail addresses."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trl_bonesoup.errors import HubError, SoupError
from trl_bonesoup.manifest import SoupManifest
from trl_bonesoup.markdown import hide_local_paths, is_local_path

Content = Path | bytes
"""What is uploaded as one file: a file as it is, or bytes."""

_TOKEN = re.compile(r"hf_[A-Za-z0-9]{10,}")
_E_MAIL = re.compile(r"[\w.+-]+@(?:[\w-]+\.)+[A-Za-z]{2,}")
_MACHINE = frozenset({"is_local", "local_files_only"})
"""What transformers notes in tokenizer_config.json about where a tokenizer was loaded from."""
_FOLDERS = re.compile(r"[^\n]*[/\\][^/\\\n]+[/\\][^\n]*")
"""At least two folders: shorter ones, such as `/` or `~`, are tokens of many tokenizers."""
_HEADER = 1_000_000
"""Bytes at the beginning of a large file that are searched: the header of safetensors, which holds text."""

__all__ = ["Content", "check_private", "cleaned", "model_file", "portable_manifest", "size_of"]


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


def model_file(file: Path, base: tuple[str | None, str | None]) -> Content:
    """Return what is uploaded of a file of a model: itself, or its JSON without paths of this machine.

    An adapter names `base` as its base model: id and revision, or None for one that has no id on the Hub.

    Raises:
        SoupError: for a config that is not a JSON object.
    """
    if not file.name.endswith("config.json"):
        return file
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SoupError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise SoupError(f"{file} is no configuration of a model: it holds no JSON object.")
    kept = {key: value for key, value in content.items() if key not in _MACHINE}
    if file.name == "adapter_config.json":
        kept |= {"base_model_name_or_path": base[0], "revision": base[1]}
    portable = _without_folders(kept)
    if portable == content:
        return file
    return (json.dumps(portable, indent=2, ensure_ascii=False) + "\n").encode()


def check_private(files: Mapping[str, Content], secrets: Mapping[str, str]) -> None:
    """Search everything that is about to be uploaded; of large files only their header.

    Args:
        files: by path in the repository.
        secrets: what must not be in them, with a name for each that may be shown.

    Raises:
        HubError: if one of them is in a file, before anything is sent.
    """
    for path, content in files.items():
        searched = _beginning(content, path)
        for secret, name in secrets.items():
            if secret.encode() in searched:
                raise HubError(
                    f"{path} holds {name}, so nothing of it was sent. Remove it from the file (or from the model, "
                    "tokenizer or settings that it comes from) and push again."
                )


def secrets_of(token: str | None, *folders: Path) -> dict[str, str]:
    """Return what must not be uploaded from this machine: the token, the home folder, and the given folders."""
    found = {str(folder.resolve()): f"the path of a folder of this machine, {folder}" for folder in folders}
    found[str(Path.home())] = "the path of your home folder"
    # A folder right below the root, such as /root or /data, is also a word of many tokenizers.
    found = {path: name for path, name in found.items() if len(Path(path).parts) > 2}
    return found | ({token: "your token"} if token else {})


def size_of(content: Content) -> int:
    """Return how many bytes are uploaded."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _beginning(content: Content, path: str) -> bytes:
    if isinstance(content, bytes):
        return content
    if not path.endswith(".safetensors"):
        return content.read_bytes()
    with content.open("rb") as file:
        return file.read(_HEADER)


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_folders(entry) for entry in value]
    if isinstance(value, str) and is_local_path(value) and _FOLDERS.fullmatch(value):
        return None
    return value

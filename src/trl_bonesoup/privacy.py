"""Tokens and paths of this machine: left out of what is shown, saved and uploaded, and looked for before an upload."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trl_bonesoup.errors import HubError, SoupError
from trl_bonesoup.markdown import is_local_path

Content = Path | bytes
"""What is uploaded as one file: a file as it is, or bytes."""

_SECRET = re.compile(r"(.*_)?(token|api_?key|password|secret)")
_FOLDERS = re.compile(r"[^\n]*[/\\][^/\\\n]+[/\\][^\n]*")
"""At least two folders: shorter ones, such as `/` or `~`, are tokens of many tokenizers."""
_HEADER = 1_000_000
"""Bytes at the beginning of a file of weights that are searched: the header of safetensors, which holds text."""
_MACHINE = frozenset({"is_local", "local_files_only"})
"""What transformers notes in tokenizer_config.json about where a tokenizer was loaded from."""

__all__ = [
    "Content",
    "check_private",
    "hide_tokens",
    "is_secret",
    "json_bytes",
    "model_file",
    "portable_config",
    "secrets_of",
    "tokens_left_out",
]


def is_secret(name: str) -> bool:
    """Return whether a setting of this name holds something to be kept secret.

    >>> is_secret("hub_token"), is_secret("api_key"), is_secret("num_tokens")
    (True, True, False)
    """
    return _SECRET.fullmatch(name.lower()) is not None


def hide_tokens(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with a placeholder for each secret, also in nested ones such as `model_init_kwargs`.

    >>> hide_tokens({"seed": 1, "hub_token": "hf_x", "model_init_kwargs": {"token": "hf_y"}})
    {'seed': 1, 'hub_token': '<HUB_TOKEN>', 'model_init_kwargs': {'token': '<TOKEN>'}}
    """
    shown: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            value = hide_tokens(value)
        elif isinstance(value, str) and is_secret(str(key)):
            value = f"<{key.upper()}>"
        shown[key] = value
    return shown


@contextmanager
def tokens_left_out(args: Any) -> Iterator[None]:
    """Take the tokens out of training arguments while they are saved."""
    token, kwargs = args.hub_token, args.model_init_kwargs
    args.hub_token = None
    if isinstance(kwargs, dict):
        args.model_init_kwargs = {key: value for key, value in kwargs.items() if key != "token"}
    try:
        yield
    finally:
        args.hub_token, args.model_init_kwargs = token, kwargs


def portable_config(name: str, content: dict[str, Any], base: tuple[str | None, str | None]) -> dict[str, Any]:
    """Return a configuration of a model or tokenizer without what is true on this machine alone.

    Strings that are local paths become null.

    Args:
        name: of its file.
        content: what is in it.
        base: id and revision on the Hub of an adapter's base model; None for one that is only on this machine. An
            adapter then names none, since the last part of a path would name somebody's model on the Hub.
    """
    kept = {key: value for key, value in content.items() if key not in _MACHINE}
    if name == "adapter_config.json":
        kept |= {"base_model_name_or_path": base[0], "revision": base[1]}
    return _without_folders(kept)


def model_file(file: Path, base: tuple[str | None, str | None]) -> Content:
    """Return what is uploaded of a file of a model: itself, or its configuration made portable.

    Args:
        file: of any kind; a configuration is one whose name ends in config.json.
        base: see `portable_config`.

    Raises:
        SoupError: for a configuration that is not a JSON object.
    """
    if not file.name.endswith("config.json"):
        return file
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SoupError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise SoupError(f"{file} is no configuration of a model: it holds no JSON object.")
    portable = portable_config(file.name, content, base)
    return file if portable == content else json_bytes(portable)


def json_bytes(content: Any) -> bytes:
    """Return the content of a JSON file as people read it."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def secrets_of(*tokens: str | None, folders: Mapping[str, Path]) -> dict[str, str]:
    """Return what must not be uploaded, with a name for each that may be shown.

    Args:
        tokens: of the Hub; the one that is logged in is always among them.
        folders: of this machine by what they are; the home folder is always among them.
    """
    from huggingface_hub import get_token

    found = {token: "your token" for token in (*tokens, get_token()) if token}
    for name, folder in {**folders, "your home folder": Path.home()}.items():
        # A folder right below the root, such as /root or /data, is also a word of many tokenizers.
        found |= {
            str(path): f"the path of {name}" for path in (folder.absolute(), folder.resolve()) if len(path.parts) > 2
        }
    return found


def check_private(files: Mapping[str, Content], secrets: Mapping[str, str]) -> None:
    """Search what is about to be uploaded; of weights only their header.

    Args:
        files: by path in the repository.
        secrets: from `secrets_of`.

    Raises:
        HubError: if one of them is in a file, before anything is sent.
    """
    for path, content in files.items():
        searched = _beginning(path, content) if isinstance(content, Path) else content
        for secret, name in secrets.items():
            if secret.encode() in searched:
                raise HubError(
                    f"{path} holds {name}, so nothing of it was sent. Remove it from the file (or from the model, "
                    "tokenizer or settings that it comes from) and push again."
                )


def _beginning(path: str, file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(_HEADER if path.endswith((".safetensors", ".pt", ".pth")) else -1)


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_folders(entry) for entry in value]
    if isinstance(value, str) and is_local_path(value) and _FOLDERS.fullmatch(value):
        return None
    return value

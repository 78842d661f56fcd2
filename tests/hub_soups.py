"""Soups on the loopback Hub, put there without a client."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopback_hub import LoopbackHub


def files_of(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder by its path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def publish(
    hub: LoopbackHub, folder: Path, repo: str = "org/soup", more: Mapping[str, bytes] | None = None, **options: Any
) -> str:
    """Commit a folder, and more files, and return the hash of the commit."""
    return hub.put(repo, {**files_of(folder), **(more or {})}, **options)


def downloaded(hub: LoopbackHub, repo: str = "org/soup") -> list[str]:
    """Return the paths of the files that were asked for, in order."""
    start = f"/{repo}/resolve/"
    asked = [request.path for request in hub.requests if request.method == "GET" and request.path.startswith(start)]
    return [path.removeprefix(start).partition("/")[2] for path in asked]

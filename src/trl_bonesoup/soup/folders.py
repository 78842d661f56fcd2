"""Output folders that appear complete or not at all."""

from __future__ import annotations

import glob
import os
import shutil
import socket
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trl_bonesoup.errors import SoupError

MODEL_FILES = ("config.json", "adapter_config.json")
"""One of these marks a folder as a saved model, which is all that `overwrite` may replace."""

__all__ = ["check_target", "complete_folder", "put_in_place", "require_space"]


@contextmanager
def complete_folder(target: str | Path, *, overwrite: bool = False, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield an empty folder beside `target` that takes its place when the block ends without an exception.

    Whatever goes wrong, `target` is then either what it was before or complete; an older model in
    it is moved aside first, so that files of two models are never mixed.

    Args:
        target: the folder to write. Its parents are made.
        overwrite: replace a folder that already holds a model.
        inputs: what the block reads; `target` must not contain any of it.

    Raises:
        SoupError: see `check_target`.
    """
    final = check_target(target, overwrite=overwrite, inputs=inputs)
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(final)
    partial = final.with_name(f"{_partial_prefix(final)}{os.getpid()}-{uuid.uuid4().hex[:8]}")
    partial.mkdir()
    try:
        yield partial
        put_in_place(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def check_target(target: str | Path, *, overwrite: bool = False, inputs: Iterable[Path] = ()) -> Path:
    """Return the absolute path of an output folder that may be written.

    Raises:
        SoupError: if it is a file, holds something while `overwrite` is false, holds something
            other than a model, or contains one of the `inputs`.
    """
    final = Path(target).resolve()
    for source in inputs:
        if source.resolve().is_relative_to(final):
            raise SoupError(
                f"The output folder {final} contains {source}, which the soup is made from; choose another folder."
            )
    if final.exists() and not final.is_dir():
        raise SoupError(f"The output folder {final} is a file; choose another name or remove it.")
    if not final.is_dir() or not any(final.iterdir()):
        return final
    if not overwrite:
        raise SoupError(
            f"The output folder {final} is not empty. Choose another one, or pass overwrite=True to replace it."
        )
    if not any((final / name).is_file() for name in MODEL_FILES):
        raise SoupError(
            f"The folder {final} holds something that is not a saved model (it has none of {list(MODEL_FILES)}); "
            "it is never overwritten. Choose another folder."
        )
    return final


def require_space(folder: Path, needed: int) -> None:
    """Check that the disk of `folder`, which need not exist yet, can take `needed` more bytes.

    Raises:
        SoupError: with the bytes needed and free.
    """
    existing = folder.resolve()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise SoupError(
            f"Writing to {folder} needs {needed / 1e9:.3f} GB and its disk has {free / 1e9:.3f} GB left. "
            "Free some space, choose fewer preferences, or write adapters instead of full checkpoints."
        )


def put_in_place(partial: Path, final: Path) -> None:
    """Rename a complete folder to `final`; what was there is removed afterwards, or put back if that fails."""
    if not final.exists():
        partial.rename(final)
        return
    aside = partial.with_name(f"{partial.name}-replaced")
    final.rename(aside)
    try:
        partial.rename(final)
    except BaseException:
        aside.rename(final)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _partial_prefix(final: Path) -> str:
    host = "".join(letter for letter in socket.gethostname() if letter.isalnum())
    return f".{final.name}.partial-{host[:16]}-"


def _remove_abandoned(final: Path) -> None:
    """Delete partial folders of `final` whose process on this machine was killed before it could."""
    if os.name != "posix":
        return
    for folder in final.parent.glob(f"{glob.escape(_partial_prefix(final))}*"):
        process = folder.name.removeprefix(_partial_prefix(final)).split("-")[0]
        if process.isdecimal() and not folder.name.endswith("-replaced") and not _is_running(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True

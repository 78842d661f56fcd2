"""Output folders that appear complete or not at all."""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import socket
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from trl_bonesoup.errors import SoupError

MODEL_FILES = ("config.json", "adapter_config.json")
"""One of these marks a folder as a saved model, which is all that `overwrite` may replace."""

_OF_A_MODEL = (
    *("*config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*", "training_args.bin"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("chat_template*", "additional_chat_templates", "README.md", "*.png", "front*.json"),
    *("soup.json", "soup_export.json", "sweep_point.json", "mergekit_config.yml", ".gitattributes", ".cache"),
)
"""What lies in the folder of a saved model. A folder with anything else in it is more than a model."""

_REPLACED = "-replaced"
"""Ends the name of an older model while a new one takes its place."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ROOM_TEXT = re.compile(rf"os error ({'|'.join(map(str, _NO_ROOM))})\b")
"""How the writers of safetensors and tokenizers, which are written in Rust, say the same."""

__all__ = ["check_target", "complete_folder", "make_folder", "put_in_place", "room_for", "size_text", "tidy_up"]


@contextmanager
def complete_folder(target: str | Path, *, overwrite: bool = False, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield an empty folder beside `target` that takes its place when the block ends without an exception.

    Whatever goes wrong, `target` is then either what it was before or complete; an older model in
    it is moved aside first, so that files of two models are never mixed. If the process is killed
    between the two moves, the next one that writes to `target` puts the older model back first.

    Args:
        target: the folder to write. Its parents are made.
        overwrite: replace a folder that already holds a model.
        inputs: what the block reads; `target` must not contain any of it.

    Raises:
        SoupError: see `check_target`.
    """
    tidy_up(Path(target).resolve())
    final = check_target(target, overwrite=overwrite, inputs=inputs)
    partial = _beside(final)
    make_folder(partial)
    try:
        yield partial
        _give_usual_modes(partial)
        check_target(final, overwrite=overwrite)  # another process may have written it meanwhile
        put_in_place(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _give_usual_modes(folder: Path) -> None:
    """Let whom the umask allows read all files: those of safetensors are made for their owner alone."""
    if os.name != "posix":
        return
    probe = folder / ".mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)  # asking for the umask would mean to change it, for all threads
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, if they are not there.

    Raises:
        SoupError: if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SoupError(f"Nothing can be written to {folder.parent}: {error.strerror}. Choose another one.") from error


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
            f"The output folder {final} is not empty. Choose another one, or replace it (overwrite=True, --overwrite)."
        )
    if not any((final / name).is_file() for name in MODEL_FILES):
        raise SoupError(
            f"The folder {final} holds something that is not a saved model (it has none of {list(MODEL_FILES)}); "
            "it is never overwritten. Choose another folder."
        )
    others = [path.name for path in final.iterdir() if not any(fnmatch(path.name, name) for name in _OF_A_MODEL)]
    if others:
        raise SoupError(
            f"The folder {final} holds {sorted(others)[:3]} besides a model, and replacing it would delete "
            f"{'them' if len(others) > 1 else 'it'}. Choose another folder, or move what is no part of the model."
        )
    return final


@contextmanager
def room_for(folder: str | Path, needed: int) -> Iterator[None]:
    """Check that the disk of `folder`, which need not exist yet, can take the bytes that the block writes.

    Raises:
        SoupError: with the bytes needed and free; also if the disk or a quota turns out to be full
            while the block writes.
    """
    free = _free_bytes(folder)
    if needed > free:
        raise SoupError(_no_room(folder, needed, free))
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in _NO_ROOM or _NO_ROOM_TEXT.search(str(error)):
            raise SoupError(f"{_no_room(folder, needed, _free_bytes(folder))} ({error})") from error
        raise


def size_text(size: int) -> str:
    """Return a number of bytes as people read it.

    >>> size_text(999), size_text(538_090_408)
    ('999 B', '538.1 MB')
    """
    if size < 1000:
        return f"{size} B"
    value, unit = float(size), "B"
    for unit in ("kB", "MB", "GB", "TB"):  # noqa: B007 - the last one that is needed
        value /= 1000.0
        if value < 999.95:
            break
    return f"{value:.1f} {unit}"


def _no_room(folder: str | Path, needed: int, free: int) -> str:
    return (
        f"Writing to {folder} needs {size_text(needed)} and its disk has {size_text(free)} left (a quota may allow "
        "less). Free some space, choose fewer preferences, or write adapters instead of full checkpoints."
    )


def _free_bytes(folder: str | Path) -> int:
    existing = Path(folder).resolve()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def put_in_place(partial: Path, final: Path) -> None:
    """Rename a complete folder to `final`; what was there is removed afterwards, or put back if that fails."""
    if not final.exists():
        partial.rename(final)
        return
    aside = _beside(final, _REPLACED)
    final.rename(aside)
    try:
        partial.rename(final)
    except BaseException:
        aside.rename(final)
        raise
    rubbish = _beside(final)  # the other name of the two, so that a half of it is never put back
    aside.rename(rubbish)
    shutil.rmtree(rubbish, ignore_errors=True)


def _beside(final: Path, ending: str = "") -> Path:
    return final.with_name(f"{_partial_prefix(final)}{os.getpid()}-{uuid.uuid4().hex[:8]}{ending}")


def _partial_prefix(final: Path) -> str:
    host = "".join(letter for letter in socket.gethostname() if letter.isalnum())
    return f".{final.name}.partial-{host[:16]}-"


def tidy_up(final: Path) -> None:
    """Mend what processes on this machine left that were killed while they wrote to `final`.

    Partial folders are deleted. An older model that was moved aside is put back, if nothing took its place.
    """
    if os.name != "posix":
        return
    for folder in final.parent.glob(f"{glob.escape(_partial_prefix(final))}*"):
        process = folder.name.removeprefix(_partial_prefix(final)).split("-")[0]
        if not process.isdecimal() or _is_running(int(process)):
            continue
        if folder.name.endswith(_REPLACED) and not final.exists():
            folder.rename(final)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True

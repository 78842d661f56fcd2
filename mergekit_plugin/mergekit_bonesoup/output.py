"""Lets mergekit write beside the output folder, so that a soup appears there complete or not at all.

mergekit writes its files one by one into the output folder. Killed in between, it leaves files of two
merges that load as one, and a merge in shards over one in a single file leaves the old one to be loaded.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mergekit_bonesoup.coefficients import MergeRefused

_CONFIG = "config.json"
"""Without it nothing loads a folder: removed first and written last where an older merge is replaced."""

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

__all__ = ["complete_output"]


@contextmanager
def complete_output(out_path: str) -> Iterator[str]:
    """Yield a folder of the same name to write to, whose files go to `out_path` when the block ends well.

    Weights of an older merge in `out_path` go then; other files stay, unless the new merge has one of that name.

    Raises:
        MergeRefused: if `out_path` is a file or holds an adapter, or the disk is full, also where mergekit
            only logs that.
    """
    final = Path(out_path).resolve()
    _check(final)
    _tidy_up(final)
    holder = final.with_name(f".{final.name}.merging-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    partial = holder / final.name
    try:
        partial.mkdir(parents=True)
        with _full_disk_is_an_error(final):
            yield str(partial)
        for made in holder.iterdir():
            _take_place(made, final.with_name(made.name))
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _check(final: Path) -> None:
    if final.exists() and not final.is_dir():
        raise MergeRefused(f"the output folder {final} is a file; choose another name.")
    if (final / "adapter_config.json").is_file():
        raise MergeRefused(
            f"the output folder {final} holds an adapter, which would be loaded too; choose another one."
        )


def _take_place(made: Path, final: Path) -> None:
    if not final.exists():
        made.rename(final)
        return
    (final / _CONFIG).unlink(missing_ok=True)
    for pattern in _WEIGHTS:
        for file in final.glob(pattern):
            file.unlink()
    for path in sorted(made.iterdir(), key=lambda path: path.name == _CONFIG):
        if path.is_dir():
            shutil.rmtree(final / path.name, ignore_errors=True)
        path.replace(final / path.name)


@contextmanager
def _full_disk_is_an_error(final: Path) -> Iterator[None]:
    """Raise when a disk is full, also where mergekit says so in its log alone and goes on without a tokenizer."""
    logged = _Errors()
    logger = logging.getLogger("mergekit")
    logger.addHandler(logged)
    try:
        yield
        failed = next(filter(_is_full, logged.errors), None)
        if failed is not None:
            raise failed
    except Exception as error:
        if not _is_full(error):
            raise
        free = shutil.disk_usage(final.parent).free
        raise MergeRefused(
            f"there is no room for the soup in {final.parent}, where {free / 1e9:.3f} GB are free (a quota may allow "
            f"less); nothing of it is left there. ({error})"
        ) from error
    finally:
        logger.removeHandler(logged)


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the exception that is logged."""
        if record.exc_info and record.exc_info[1]:
            self.errors.append(record.exc_info[1])


def _is_full(error: BaseException) -> bool:
    """Return whether a disk or quota is full; the writers in Rust say so in their text alone."""
    number = getattr(error, "errno", None)
    return number in _NO_ROOM or any(f"os error {code})" in str(error) for code in _NO_ROOM)


def _tidy_up(final: Path) -> None:
    """Delete what merges into `final` left that were killed."""
    for folder in final.parent.glob(f".{final.name}.merging-*"):
        process = folder.name.removeprefix(f".{final.name}.merging-").split("-")[0]
        if process.isdecimal() and not Path(f"/proc/{process}").exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)

"""One process at a time trains a backbone: a lock that the system takes back from a process that was killed."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from trl_bonesoup.errors import ConfigurationError

logger = logging.getLogger(__name__)

__all__ = ["is_held", "locked"]


@contextmanager
def locked(file: Path, what: str) -> Iterator[None]:
    """Hold the lock `file` during the block, and remove it afterwards.

    The lock is the system's (`flock`), not the file: one that a killed process left behind is free, and
    the file only says who holds it. Where there are no such locks (Windows, some network file systems),
    the block runs without one.

    Args:
        file: in a folder that exists.
        what: is locked, for messages.

    Raises:
        ConfigurationError: at once, if another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with ExitStack() as opened:
        while True:
            stream = opened.enter_context(file.open("a+", encoding="utf-8"))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigurationError(
                    f"{what} is being trained by another process ({_holder(stream)}). Wait for it to finish, stop it "
                    "to continue its work here, or choose another output_dir."
                ) from error
            except OSError as error:
                logger.warning("%s cannot be locked (%s): start nothing else in %s.", what, error, file.parent)
                break
            if _is_still(file, stream):
                break
        if before := _holder(stream):
            logger.info("%s was left by a process that ended without finishing (%s).", what, before)
        _write(stream)
        try:
            yield
        finally:
            file.unlink(missing_ok=True)  # while it is held: nobody else can have taken this file


def is_held(file: Path) -> bool:
    """Whether another process holds the lock `file`, which exists; where that cannot be told, it counts as held."""
    try:
        import fcntl

        with file.open("a+", encoding="utf-8") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return True
    return False


def _is_still(file: Path, stream: IO[str]) -> bool:
    """Whether the locked file is the one that the name stands for, and not one that was removed meanwhile."""
    try:
        return os.path.samestat(file.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def _write(stream: IO[str]) -> None:
    stream.seek(0)
    stream.truncate()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    json.dump({"process": os.getpid(), "host": socket.gethostname(), "since": now}, stream)
    stream.flush()


def _holder(stream: IO[str]) -> str:
    stream.seek(0)
    try:
        found: dict[str, Any] = json.loads(stream.read(1000))
        return f"process {found['process']} on {found['host']}, since {found['since']}"
    except (ValueError, KeyError, TypeError):
        return ""

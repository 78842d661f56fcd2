"""The soups of one pass while they are written: hidden beside their places, and kept when the pass is interrupted."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from trl_bonesoup.errors import SoupError
from trl_bonesoup.soup.folders import make_folder, put_in_place
from trl_bonesoup.weights import FloatArray

FOLDER = ".sweep-unfinished"
_RECORD = "progress.json"
_LOCK = "lock"
_SECONDS = 1.0
"""Between two notes of how far the pass has come."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

__all__ = ["UnfinishedPass", "remove_finished_pass", "unfinished_bytes", "unfinished_pass"]


class UnfinishedPass:
    """How far a pass over K soups has come, and the folders that it writes to; see `streaming.Progress`.

    Attributes:
        folders: K folders for the files of the soups.
        pieces: how many pieces of every soup are written already.
        squares_K2: the squares summed over them.
    """

    def __init__(self, root: Path, key: str, names: Sequence[str]) -> None:
        self.root = root
        self.folders = [root / name for name in names]
        self._key = key
        self._noted = 0.0
        self.pieces, self.squares_K2 = 0, np.zeros((len(names), 2))
        record = _read(root / _RECORD)
        if record.get("key") == key:
            self.pieces, self.squares_K2 = record["pieces"], np.array(record["squares"])
        else:
            for stale in root.iterdir():
                if stale.is_dir():
                    shutil.rmtree(stale)
            for folder in self.folders:
                folder.mkdir()

    def advance(self, pieces: int, squares_K2: FloatArray) -> None:
        """Take note that so many pieces are written in every soup, and of the squares summed so far."""
        if time.monotonic() - self._noted < _SECONDS:
            return
        beside = self.root / f"{_RECORD}.new"
        beside.write_text(
            json.dumps({"key": self._key, "pieces": pieces, "squares": squares_K2.tolist()}), encoding="utf-8"
        )
        beside.replace(self.root / _RECORD)
        self._noted = time.monotonic()

    def finish(self, places: Sequence[Path]) -> None:
        """Move the complete soups to their places."""
        for folder, place in zip(self.folders, places, strict=True):
            put_in_place(folder, place)


@contextmanager
def unfinished_pass(
    out: Path, records: Sequence[dict[str, Any]], names: Sequence[str], layout: str
) -> Iterator[UnfinishedPass]:
    """Start a pass that writes soups into `out`, or continue the same one where it was interrupted.

    An interruption (Ctrl-C, a kill) keeps what is written; an error removes it. So does a restart of
    the machine, after which written values need not have reached the disk.

    Args:
        out: where the soups will appear.
        records: what each soup is made of; with another list of these, a new pass is started.
        names: K names of folders.
        layout: how the pass is cut into pieces; with another one, a count of pieces means nothing.

    Raises:
        SoupError: if another process is writing a pass into `out`.
    """
    root = out / FOLDER
    make_folder(root)
    with _lock(root):
        try:
            yield UnfinishedPass(root, _key(records, layout), names)
        except Exception:
            shutil.rmtree(root)
            raise
        shutil.rmtree(root)


def remove_finished_pass(out: Path) -> None:
    """Remove what a process left that was killed after it had put all soups of a pass in their places."""
    root = out / FOLDER
    if root.is_dir() and not any(path.is_dir() for path in root.iterdir()):
        shutil.rmtree(root, ignore_errors=True)


def unfinished_bytes(out: Path) -> int:
    """Return the space on disk that an interrupted pass into `out` takes."""
    return sum(file.stat().st_blocks * 512 for file in (out / FOLDER).glob("*/*"))


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows: two sweeps into one folder are then not noticed
        yield
        return
    with (root / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SoupError(f"Another process is writing soups into {root.parent}; wait for it to finish.") from error
        yield


def _key(records: Sequence[dict[str, Any]], layout: str) -> str:
    boot = _BOOT_ID.read_text(encoding="ascii") if _BOOT_ID.is_file() else uuid.uuid4().hex
    return hashlib.sha256(json.dumps([boot, layout, *records]).encode()).hexdigest()


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}

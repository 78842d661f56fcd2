"""Commands in forked processes, killed at a file operation or after some time, and what they leave behind."""

import contextlib
import hashlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

_OPERATIONS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "shutil.rmtree")

EVERYWHERE = os.environ.get("KILL_EVERYWHERE") == "1"
"""Whether tests kill before every operation, as `make stress` has it, or before a few."""

_PATIENCE = 300.0

Action = Callable[[], Any]


def forked(action: Action, before: Callable[[], None] = lambda: None) -> int:
    """Run an action in a child of this process; return its exit status, negative for a signal."""
    return _ended(start(action, before))


def start(action: Action, before: Callable[[], None] = lambda: None) -> int:
    """Start an action in a child of this process, with its output thrown away, and return its id."""
    process = os.fork()
    if process:
        return process
    status = 70
    with contextlib.suppress(BaseException):
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        if not os.environ.get("STRESS_LOUD"):
            os.dup2(silence, 2)
        _own_locks()
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as shells have it for what runs in the background
            signal.signal(signal.SIGINT, signal.default_int_handler)
        before()
        status = _status(action)
    os._exit(status)


def _own_locks() -> None:
    """Give the progress bars here locks of their own: that of all children stays locked when one is killed with it."""
    for bar in (tqdm, *tqdm.__subclasses__()):
        bar.set_lock(threading.RLock())


def _ended(process: int) -> int:
    """Wait for a child and return its exit status; one that hangs is killed, and fails the test."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise AssertionError(f"A child did not end within {_PATIENCE:.0f} s.")


def _status(action: Action) -> int:
    try:
        result = action()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        return 130
    except BaseException:
        traceback.print_exc()
        return 70
    return result if isinstance(result, int) else 0


def count_operations(action: Action, folder: Path) -> int:
    """Run an action in a child; return how many operations on files in `folder` it made."""
    reader, writer = os.pipe()

    def before() -> None:
        _at_every_operation(folder, lambda: os.write(writer, b"."))

    status = forked(action, before)
    os.close(writer)
    assert status == 0, f"exit status {status}"
    with open(reader, "rb") as stream:  # noqa: PTH123 - a descriptor has no path
        return len(stream.read())


def moments(operations: int) -> list[int]:
    """Return the operations to kill before: all, or some on the way and the last ones, where folders are renamed."""
    if EVERYWHERE:
        return list(range(operations))
    return sorted({operations // 4, operations // 2, *range(max(operations - 3, 0), operations)})


def killed_before(action: Action, folder: Path, operation: int) -> int:
    """Run an action in a child that gets SIGKILL before its operation of that number on files in `folder`."""
    left = [operation]

    def count_down() -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return forked(action, lambda: _at_every_operation(folder, count_down))


def killed_after(action: Action, seconds: float, signal_number: int) -> int:
    """Run an action in a child that gets a signal after so many seconds, if it is still there."""
    process = start(action)
    time.sleep(seconds)
    os.kill(process, signal_number)  # not waited for yet, so that the id is still its own
    return _ended(process)


def contents(folder: Path) -> dict[str, str]:
    """Return a hash of every file below a folder, by its path."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def _at_every_operation(folder: Path, call: Callable[[], Any]) -> None:
    start = str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        # Deleting a tree names its entries relative to a descriptor.
        if event in _OPERATIONS and (
            str(arguments[0]).startswith(start) or (event != "open" and not str(arguments[0]).startswith("/"))
        ):
            call()

    sys.addaudithook(hook)

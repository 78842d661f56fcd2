"""How long one call of a reward function may take, and a word about one that takes long."""

from __future__ import annotations

import contextvars
import logging
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

SLOW_SECONDS = 300.0
"""After this long, a call that has not returned is named in the log."""

_Result = TypeVar("_Result")

__all__ = ["SLOW_SECONDS", "OutOfTime", "call_within", "named_when_slow"]


class OutOfTime(Exception):
    """A call that was given up; not a `TimeoutError`, which what is called may raise itself."""


def call_within(seconds: float | None, call: Callable[[], _Result]) -> _Result:
    """Return what `call` returns, or raise what it raises.

    With a limit, the call runs in a daemon thread: no signal can interrupt code outside of Python,
    but a thread can be left behind, and ends with the process.

    Args:
        seconds: the limit; `None` for none, and no thread.
        call: takes no arguments.

    Raises:
        OutOfTime: if it has not returned by then.
    """
    if seconds is None:
        return call()
    outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
    place = _cuda_device()

    def run() -> None:
        try:
            with place:
                outcome.put((call(), None))
        except BaseException as error:
            outcome.put((None, error))

    threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True).start()
    try:
        result, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise OutOfTime from None
    if error is not None:
        raise error
    return result


@contextmanager
def named_when_slow(what: str, advice: str) -> Iterator[None]:
    """Log a warning if the block takes longer than `SLOW_SECONDS`, while it is still running."""
    text = f"{what} has not returned after {SLOW_SECONDS:g} s. {advice}"
    timer = threading.Timer(SLOW_SECONDS, logger.warning, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _cuda_device() -> AbstractContextManager[Any]:
    """Return a context in which another thread has this one's CUDA device; a new thread starts with the first."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return nullcontext()
    device: AbstractContextManager[Any] = torch.cuda.device(torch.cuda.current_device())
    return device

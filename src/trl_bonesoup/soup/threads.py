"""A few threads that work ahead, each operation of torch on one of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import torch

MAX_THREADS = 4
"""More do not help: reading and writing are bound by memory."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

__all__ = ["in_order"]


def in_order(action: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Yield the results of `action`, in order, with a few threads at work on what comes next."""
    threads = min(MAX_THREADS, torch.get_num_threads())
    items = iter(items)
    with _one_thread_per_operation() as initialise, ThreadPoolExecutor(threads, initializer=initialise) as pool:
        waiting: deque[Future[_Result]] = deque(pool.submit(action, item) for item in islice(items, 2 * threads))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(action, item) for item in islice(items, 1))
            yield result


@contextmanager
def _one_thread_per_operation() -> Iterator[Callable[[], None]]:
    """Yield what keeps torch from splitting the operations of a new thread among further threads."""
    threads = torch.get_num_threads()
    try:
        yield lambda: torch.set_num_threads(1)
    finally:
        torch.set_num_threads(threads)

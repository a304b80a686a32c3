"""Prefetching: a thread computes the next items of an iterator while the current one is used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def prefetch_iterator(make: Callable[[threading.Event], Iterator[T]], n: int) -> Iterator[T]:
    """Yield the items of `make(over)`, up to `n` of them prefetched on a thread. Its exceptions are raised here.

    Args:
        make: Returns the iterator. When `over` is set, no further items are wanted, and the iterator should stop soon: closing
            this generator joins the thread.
        n: Maximum number of prefetched items; 0 uses no thread.

    Yields:
        The items, in their order.
    """
    over = threading.Event()
    if n <= 0:
        yield from make(over)
        return
    made: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=n)
    thread = threading.Thread(target=_work, args=(make, made, over), name="actscope-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            there, item = made.get()
            if there:
                yield item
            elif item is None:
                return
            else:
                raise item
    finally:
        over.set()
        thread.join()


def _work(
    make: Callable[[threading.Event], Iterator[T]], made: queue.Queue[tuple[bool, Any]], over: threading.Event
) -> None:
    try:
        for item in make(over):
            if not _put(made, (True, item), over):
                return
        _put(made, (False, None), over)
    except BaseException as error:
        _put(made, (False, error), over)


def _put(made: queue.Queue[tuple[bool, Any]], item: tuple[bool, Any], over: threading.Event) -> bool:
    while not over.is_set():
        try:
            made.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False

"""Prefetching: a thread computes the next items of an iterator while the current one is used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Made(Generic[T]):
    item: T


#: What the thread hands over: an item, the error that ended the iterator, or None at its end.
_Handed = _Made[T] | BaseException | None


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
    made: queue.Queue[_Handed[T]] = queue.Queue(maxsize=n)
    thread = threading.Thread(target=_work, args=(make, made, over), name="actscope-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            handed = made.get()
            if isinstance(handed, _Made):
                yield handed.item
            elif handed is None:
                return
            else:
                raise handed
    finally:
        over.set()
        thread.join()


def _work(make: Callable[[threading.Event], Iterator[T]], made: queue.Queue[_Handed[T]], over: threading.Event) -> None:
    try:
        for item in make(over):
            if not _put(made, _Made(item), over):
                return
        _put(made, None, over)
    except BaseException as error:
        _put(made, error, over)


def _put(made: queue.Queue[_Handed[T]], item: _Handed[T], over: threading.Event) -> bool:
    while not over.is_set():
        try:
            made.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False

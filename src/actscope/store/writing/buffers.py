"""The memory between appenders and the file: a fixed pool of aligned buffers, each written once and used again."""

from __future__ import annotations

import mmap
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from actscope.store.format.checksum import Buffer as Bytes
from actscope.store.format.watermark import LogPosition
from actscope.store.options import BLOCK

LARGEST = 8 << 20  # one direct write; more is not faster
HUGE = 2 << 20
RELEASING = 1 << 15  # copies from this size on leave the interpreter's lock to others


def aligned_memory(size: int) -> memoryview:
    """Zeros that start on a page; large ones on huge pages, where there are any.

    A direct write of few large pieces is 15 to 20 % faster than one of many small pages (virtio disk, ext4, 8 MiB writes).
    """
    spare = HUGE if size >= HUGE else 0
    memory = mmap.mmap(-1, size + spare, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = 0
    if spare:
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
        start = -np.frombuffer(memory, np.uint8).ctypes.data % HUGE
    return memoryview(memory)[start : start + size]


class Buffer:
    """A page-aligned stretch of memory, and where in which segment its bytes belong.

    `upto` is the end of the last whole message that its bytes complete (None: they complete none); `finish` is the length of
    the segment when these are its last bytes.
    """

    def __init__(self, size: int) -> None:
        self._view = aligned_memory(size)
        self._array = np.frombuffer(self._view, np.uint8)
        self.size = size
        self.begin(0, 0)

    def begin(self, segment: int, offset: int) -> None:
        """Start afresh, for bytes of `segment` from `offset` on."""
        self.segment, self.offset, self.used = segment, offset, 0
        self.upto: LogPosition | None = None
        self.finish: int | None = None

    @property
    def room(self) -> int:
        """Bytes that still fit."""
        return self.size - self.used

    def add(self, data: Bytes) -> int:
        """Copy as much of `data` as fits; returns how much."""
        count = min(self.size - self.used, len(data))
        if count >= RELEASING:
            self._array[self.used : self.used + count] = np.frombuffer(data, np.uint8, count)
        else:
            self._view[self.used : self.used + count] = data[:count]
        self.used += count
        return count

    def written(self) -> memoryview:
        """The bytes to write."""
        return self._view[: self.used]


@dataclass(frozen=True, slots=True)
class PoolShape:
    """How many buffers of which size make a pool of at most `bytes`."""

    count: int
    size: int

    @classmethod
    def within(cls, total: int) -> PoolShape:
        """At least two, so that one fills while another is written; of at most 8 MiB."""
        size = min(max(total // 4 // BLOCK, 1) * BLOCK, LARGEST)
        return cls(max(total // size, 2), size)

"""Views of a feed's memory that their user may write to: copy-on-write, so that a write reaches nobody else."""

from __future__ import annotations

import contextlib
import mmap
import os
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from actscope.feed.buffer.layout import Layout
from actscope.feed.buffer.memory import STORED_AS

_PAGEMAP = "/proc/self/pagemap"
_ENTRY_BYTES = 8
# of a page: present or swapped, and neither of a file nor shared, which a written page of a private mapping is
_WRITTEN_MASK, _WRITTEN = np.uint64(0b111 << 61), (np.uint64(0b100 << 61), np.uint64(0b010 << 61))
# not in Python's mmap before 3.13; without it, the kernel would reserve as much memory again
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


class PrivateViews:
    """A private mapping of a feed's memory, of which consumers get views.

        page not written    shows the feed's memory, later changes too; no bytes are copied
        page written        a copy of this mapping's own: neither the feed nor another consumer sees the write
        page granted again  its copy is dropped first, so that rows of an earlier fill are never taken for new ones

    The kernel says which pages were written (proc_pid_pagemap(5)). Where it does not say, all pages of a grant count as written.

    Args:
        fd: Descriptor of the memory. It stays the caller's.
        layout: Layout of the memory.
        dtype: dtype of the rows.

    Raises:
        OSError: The memory cannot be mapped once more.
    """

    def __init__(self, fd: int, layout: Layout, dtype: torch.dtype) -> None:
        flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
        self._map = mmap.mmap(fd, layout.total_bytes, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._layout, self._dtype = layout, dtype
        self._first_page = np.frombuffer(self._map, np.uint8, 1).ctypes.data // mmap.PAGESIZE
        self._pagemap: int | None = None
        with contextlib.suppress(OSError):  # no /proc
            self._pagemap = os.open(_PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)
        self._held: list[PrivateView] = []

    def view(self, window: int, site: int, start: int, n: int) -> PrivateView:
        """Return rows `start` to `start + n - 1` of a window at one site. Use it as a context manager: it holds its pages."""
        layout = self._layout
        begin = layout.plane_at(window, site) + start * layout.row_bytes
        pages = range(begin // mmap.PAGESIZE, -(-(begin + n * layout.row_bytes) // mmap.PAGESIZE))
        self._drop_copies(self._without_held(pages))
        stored = STORED_AS[layout.dtype]
        values: np.ndarray = np.frombuffer(self._map, stored, n * layout.width, begin)
        held = PrivateView(self, torch.from_numpy(values.reshape(n, layout.width)).view(self._dtype), pages)
        self._held.append(held)
        return held

    def touch(self) -> None:
        """Fault in every page, as after a first pass over the buffer. Copies nothing."""
        np.frombuffer(self._map, np.uint8)[:: mmap.PAGESIZE].sum()

    def _without_held(self, pages: range) -> range:
        """Return the pages without those at its ends that another view holds: rows of two grants may share a page."""
        held = {page for view in self._held for page in (view.pages[0], view.pages[-1])}
        start, stop = pages.start, pages.stop
        return range(start + (start in held), stop - (stop - 1 in held and stop - 1 > start))

    def _drop_copies(self, pages: range) -> None:
        """Drop this mapping's own copies of pages, which then show the feed's memory again."""
        if pages and self._written(pages):
            self._map.madvise(mmap.MADV_DONTNEED, pages.start * mmap.PAGESIZE, len(pages) * mmap.PAGESIZE)

    def _written(self, pages: range) -> bool:
        if self._pagemap is None:
            return True
        at = (self._first_page + pages.start) * _ENTRY_BYTES
        told = os.pread(self._pagemap, len(pages) * _ENTRY_BYTES, at)
        if len(told) < len(pages) * _ENTRY_BYTES:
            return True
        kinds = np.frombuffer(told, np.uint64) & _WRITTEN_MASK
        return bool(np.isin(kinds, _WRITTEN).any())

    def release(self, view: PrivateView) -> None:
        """Take back a view. Its copies are dropped if torch says that it was written; others go with the pages' next grant."""
        self._held.remove(view)
        if view.was_written:
            self._drop_copies(self._without_held(view.pages))

    def close(self) -> None:
        """Unmap the memory. Views that are still in use keep it mapped."""
        if self._pagemap is not None:
            os.close(self._pagemap)
            self._pagemap = None
        with contextlib.suppress(BufferError):
            self._map.close()


class PrivateView:
    """Rows that one consumer holds. A context manager, which gives them back.

    Attributes:
        rows: [n, width], writable.
        pages: Numbers of the memory's pages in which they lie.
    """

    def __init__(self, owner: PrivateViews, rows: Tensor, pages: range) -> None:
        self.rows, self.pages = rows, pages
        self._owner = owner
        self._version = None if rows.is_inference() else rows._version

    @property
    def was_written(self) -> bool:
        """Return whether torch has written to the rows, or could have without counting it (inference mode)."""
        return self._version is None or self.rows._version != self._version

    def __enter__(self) -> PrivateView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._owner.release(self)

"""The buffer's memory: anonymous, without a name that could be left behind, mapped by whoever is given its descriptor.

It is a memfd: no path, no other user can open it, the size of /dev/shm does not bound it, and the kernel frees it when the last
process that has it ends, however it ends. The descriptor goes to the generator by inheritance, and to consumers of the same
user over a unix socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import fcntl
import logging
import mmap
import os
from pathlib import Path

import numpy as np

from actscope.errors import FeedError, SettingsError
from actscope.extraction.contract import ROW_LABEL
from actscope.feed.buffer.layout import Layout

log = logging.getLogger("actscope.feed")

#: Arrays have these dtypes; bfloat16, which numpy lacks, is its bits.
STORED_AS: dict[str, np.dtype[np.generic]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}
_SEALS = (
    0x0001 | 0x0002 | 0x0004
)  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW: a size that changed would be a SIGBUS elsewhere
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_MPOL_INTERLEAVE = 3
_NODES = Path("/sys/devices/system/node/online")


class FeedMemory:
    """One process's mapping. `generations` are the windows' words; each is loaded and stored by one instruction."""

    def __init__(self, fd: int, layout: Layout, *, writable: bool) -> None:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self.fd = fd
        self.layout = layout
        self._map = mmap.mmap(fd, layout.total_bytes, flags=mmap.MAP_SHARED, prot=protection)
        self.bytes = memoryview(self._map)
        self.generations = self.bytes[: 8 * layout.n_windows].cast("Q")

    @classmethod
    def create(cls, layout: Layout, *, huge_pages: bool = True, numa: str = "auto") -> FeedMemory:
        """New memory, all of it there before this returns. Raises SettingsError when the machine does not give it."""
        fd = os.memfd_create("actscope-feed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, layout.total_bytes)
            fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
            memory = cls(fd, layout, writable=True)
            memory._hint(huge_pages=huge_pages, numa=numa)
            os.posix_fallocate(
                fd, 0, layout.total_bytes
            )  # now, or a full machine is a SIGBUS in the middle of a window
        except (OSError, ValueError, OverflowError) as error:
            os.close(fd)
            raise SettingsError(
                f"feed buffer: the machine does not give {layout.total_bytes} bytes of shared memory ({error}): "
                "make buffer_rows smaller"
            ) from error
        return memory

    @classmethod
    def attach(cls, fd: int, layout: Layout, *, writable: bool = False) -> FeedMemory:
        """Map memory that another process has made; the descriptor is ours from now on. Raises FeedError when it is none."""
        try:
            size, seals = os.fstat(fd).st_size, fcntl.fcntl(fd, _F_GET_SEALS)
        except OSError as error:
            raise FeedError(f"feed buffer: descriptor {fd} is no sealed memory ({error.strerror})") from error
        if size != layout.total_bytes or seals & _SEALS != _SEALS:
            raise FeedError(f"feed buffer: expected {layout.total_bytes} sealed bytes, found {size} (seals {seals:#x})")
        return cls(fd, layout, writable=writable)

    def labels(self, window: int) -> np.ndarray:
        """ROW_LABEL [window_rows]: a view of the memory."""
        return np.frombuffer(self._map, ROW_LABEL, self.layout.window_rows, self.layout.labels_at(window))

    def plane(self, window: int, site: int) -> np.ndarray:
        """[window_rows, width], as in STORED_AS: a view of the memory."""
        layout = self.layout
        values: np.ndarray = np.frombuffer(
            self._map,
            STORED_AS[layout.dtype],
            layout.window_rows * layout.width,
            layout.plane_at(window, site),
        )
        return values.reshape(layout.window_rows, layout.width)

    def stretch(self, window: int, site: int, start: int, stop: int) -> memoryview:
        """The bytes of rows start .. stop - 1 of a site: a view of the memory."""
        begin = self.layout.plane_at(window, site)
        return self.bytes[begin + start * self.layout.row_bytes : begin + stop * self.layout.row_bytes]

    def close(self) -> None:
        """Unmap. A view that is still in use elsewhere keeps the memory until it is dropped."""
        if self.fd < 0:
            return
        fd, self.fd = self.fd, -1
        self.generations.release()
        with contextlib.suppress(BufferError):
            self.bytes.release()
        with contextlib.suppress(BufferError):
            self._map.close()
        os.close(fd)

    def _hint(self, *, huge_pages: bool, numa: str) -> None:
        """What the kernel should do with the pages, where it can; a machine that cannot is no error."""
        if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):
                self._map.madvise(mmap.MADV_HUGEPAGE)
        if numa == "auto" and (nodes := _online_nodes()) > 1:
            _interleave(self.bytes, nodes)


def _online_nodes() -> int:
    """How many NUMA nodes there are; 1 where that cannot be told."""
    try:
        last = _NODES.read_text().strip().split(",")[-1].split("-")[-1]
        return int(last) + 1
    except (OSError, ValueError):
        return 1


def _interleave(memory: memoryview, nodes: int) -> None:
    """Spread the pages over all nodes, by mbind(2), so that no node's memory is the bottleneck."""
    library = ctypes.util.find_library("numa")
    if library is None:
        log.info("%d NUMA nodes, but no libnuma: the buffer's pages lie where the kernel puts them", nodes)
        return
    mask = (ctypes.c_ulong * 16)()
    for node in range(min(nodes, 16 * 64)):
        mask[node // 64] |= 1 << (node % 64)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    done = ctypes.CDLL(library, use_errno=True).mbind(
        ctypes.c_void_p(address), ctypes.c_ulong(len(memory)), _MPOL_INTERLEAVE, mask, ctypes.c_ulong(1024), 0
    )
    if done != 0:
        log.info("the buffer's pages were not spread over %d NUMA nodes: %s", nodes, os.strerror(ctypes.get_errno()))

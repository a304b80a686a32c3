"""Shared memory of the buffer: an anonymous memfd, mapped by every process that receives its descriptor.

A memfd has no path: no other user can open it, and no file can be left behind. The size of /dev/shm does not limit it. The
kernel frees it when the last process that holds it ends, however it ends. The generator and consumers of the same user receive
the descriptor over a unix socket (SCM_RIGHTS).
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

#: numpy dtype of the arrays. numpy has no bfloat16: its bits are stored as uint16.
STORED_AS: dict[str, np.dtype[np.generic]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}
# F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW: a change of size would raise SIGBUS in other processes
_SEALS = 0x0001 | 0x0002 | 0x0004
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_MPOL_INTERLEAVE = 3
_NODES = Path("/sys/devices/system/node/online")


class FeedMemory:
    """One process's mapping of the buffer.

    `generations` is a view of the windows' generations, u64 [n_windows]. Each is loaded and stored by one instruction.
    """

    def __init__(self, fd: int, layout: Layout, *, writable: bool) -> None:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self.fd = fd
        self.layout = layout
        self._map = mmap.mmap(fd, layout.total_bytes, flags=mmap.MAP_SHARED, prot=protection)
        self.bytes = memoryview(self._map)
        self.generations = self.bytes[: 8 * layout.n_windows].cast("Q")

    @classmethod
    def create(cls, layout: Layout, *, huge_pages: bool = True, numa: str = "auto") -> FeedMemory:
        """Create the memory. All its pages are allocated before this returns.

        Args:
            layout: Its layout.
            huge_pages: Whether to ask the kernel for huge pages.
            numa: "auto" spreads the pages over the NUMA nodes if there are several; "local" leaves them to the kernel.

        Returns:
            A writable mapping.

        Raises:
            SettingsError: The machine does not have so much memory.
        """
        fd = os.memfd_create("actscope-feed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, layout.total_bytes)
            fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
            memory = cls(fd, layout, writable=True)
            memory._hint(huge_pages=huge_pages, numa=numa)
            # allocated now: running out of memory later would raise SIGBUS in the middle of a window
            os.posix_fallocate(fd, 0, layout.total_bytes)
        except (OSError, ValueError, OverflowError) as error:
            os.close(fd)
            raise SettingsError(
                f"feed buffer: {layout.total_bytes} bytes of shared memory cannot be allocated ({error}): "
                "reduce buffer_rows"
            ) from error
        return memory

    @classmethod
    def attach(cls, fd: int, layout: Layout, *, writable: bool = False) -> FeedMemory:
        """Map memory that another process created. The mapping owns the descriptor, which is closed if it cannot be mapped.

        Args:
            fd: Descriptor of the memory.
            layout: Layout that it must have.
            writable: Whether to map it for writing.

        Raises:
            FeedError: The descriptor is not sealed memory of this layout's size.
        """
        try:
            size, seals = os.fstat(fd).st_size, fcntl.fcntl(fd, _F_GET_SEALS)
            if size == layout.total_bytes and seals & _SEALS == _SEALS:
                return cls(fd, layout, writable=writable)
            why = f"expected {layout.total_bytes} sealed bytes, found {size} (seals {seals:#x})"
        except (OSError, ValueError) as error:
            why = f"descriptor {fd} is no sealed memory that can be mapped ({error})"
        with contextlib.suppress(OSError):
            os.close(fd)
        raise FeedError(f"feed buffer: {why}")

    def labels(self, window: int) -> np.ndarray:
        """Return a view of a window's labels, ROW_LABEL [window_rows]."""
        return np.frombuffer(self._map, ROW_LABEL, self.layout.window_rows, self.layout.labels_at(window))

    def plane(self, window: int, site: int) -> np.ndarray:
        """Return a view of a window's rows at one site, [window_rows, width], with the dtype of STORED_AS."""
        layout = self.layout
        values: np.ndarray = np.frombuffer(
            self._map,
            STORED_AS[layout.dtype],
            layout.window_rows * layout.width,
            layout.plane_at(window, site),
        )
        return values.reshape(layout.window_rows, layout.width)

    def stretch(self, window: int, site: int, start: int, stop: int) -> memoryview:
        """Return a view of the bytes of a window's rows `start` to `stop - 1` at one site."""
        begin = self.layout.plane_at(window, site)
        return self.bytes[begin + start * self.layout.row_bytes : begin + stop * self.layout.row_bytes]

    def close(self) -> None:
        """Unmap the memory and close the descriptor. Views still in use keep it mapped until they are dropped. Idempotent."""
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
        """Ask the kernel for huge pages and NUMA interleaving. A machine that has neither is not an error."""
        if huge_pages and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):
                self._map.madvise(mmap.MADV_HUGEPAGE)
        if numa == "auto" and (nodes := _online_nodes()) > 1:
            _interleave(self.bytes, nodes)


def _online_nodes() -> int:
    """Return the number of NUMA nodes; 1 if it is unknown."""
    try:
        last = _NODES.read_text().strip().split(",")[-1].split("-")[-1]
        return int(last) + 1
    except (OSError, ValueError):
        return 1


def _interleave(memory: memoryview, nodes: int) -> None:
    """Interleave the pages over all nodes by mbind(2), so that no node's memory is the bottleneck."""
    library = ctypes.util.find_library("numa")
    if library is None:
        log.info("%d NUMA nodes, but libnuma is not installed: the kernel decides where the buffer's pages lie", nodes)
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

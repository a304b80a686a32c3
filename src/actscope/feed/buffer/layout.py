"""How the buffer lies in memory.

    ┌ head (4 KiB) ──────────────────────────────────────────────────────────┐
    │ u64 [n_windows]: the generation of each window                          │
    ├ for each window ───────────────────────────────────────────────────────┤
    │ labels  ROW_LABEL [window_rows]                      (from a new page)  │
    │ for each site: rows  dtype [window_rows, width]      (from a new page)  │
    └────────────────────────────────────────────────────────────────────────┘

A window's generation goes up when it begins to be filled again. Whoever has copied rows out of it looks at the generation once
more: if it has changed, what he copied may be torn, and is thrown away. Rows lie in the order in which they are served the
first time, so that a batch is one stretch of memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from actscope.errors import SettingsError
from actscope.extraction.contract import ROW_LABEL
from actscope.feed.settings import ITEM_BYTES

PAGE = 4096
MAX_WINDOWS = PAGE // 8


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes and offsets, in bytes from the start of the memory."""

    n_windows: int
    window_rows: int
    n_sites: int
    width: int
    dtype: str

    def __post_init__(self) -> None:
        if not 1 <= self.n_windows <= MAX_WINDOWS:
            raise SettingsError(f"feed windows: expected 1 to {MAX_WINDOWS}, found {self.n_windows}")
        if min(self.window_rows, self.n_sites, self.width) < 1:
            raise SettingsError(f"feed buffer: expected rows, sites and a width of at least 1, found {self}")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row at one site."""
        return self.width * ITEM_BYTES[self.dtype]

    @property
    def plane_bytes(self) -> int:
        """Bytes of one site's rows of one window, up to the next page."""
        return _pages(self.window_rows * self.row_bytes)

    @property
    def label_bytes(self) -> int:
        """Bytes of one window's labels, up to the next page."""
        return _pages(self.window_rows * ROW_LABEL.itemsize)

    @property
    def window_bytes(self) -> int:
        """Bytes of one window."""
        return self.label_bytes + self.n_sites * self.plane_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole memory."""
        return PAGE + self.n_windows * self.window_bytes

    def labels_at(self, window: int) -> int:
        """Where a window's labels begin."""
        return PAGE + window * self.window_bytes

    def plane_at(self, window: int, site: int) -> int:
        """Where a window's rows of one site begin."""
        return self.labels_at(window) + self.label_bytes + site * self.plane_bytes


def _pages(n_bytes: int) -> int:
    return -(-n_bytes // PAGE) * PAGE

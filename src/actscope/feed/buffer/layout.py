"""Layout of the buffer in memory.

    ┌ head (4 KiB) ──────────────────────────────────────────────────────────┐
    │ u64 [n_windows]: the generation of each window                          │
    ├ for each window ───────────────────────────────────────────────────────┤
    │ labels  ROW_LABEL [window_rows]                      (from a new page)  │
    │ for each site: rows  dtype [window_rows, width]      (from a new page)  │
    └────────────────────────────────────────────────────────────────────────┘

A window's generation is incremented before it is filled again. Readers use it as a seqlock: they re-read the generation after
copying, and discard the copy if it changed. Rows lie in the order of their first serving, so that a batch is contiguous memory.
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
    """Sizes and offsets in the memory, in bytes. `n_windows` is at most 512: their generations fill one page.

    Raises:
        SettingsError: A field is out of range.
    """

    n_windows: int
    window_rows: int
    n_sites: int
    width: int
    dtype: str

    def __post_init__(self) -> None:
        if not 1 <= self.n_windows <= MAX_WINDOWS:
            raise SettingsError(f"feed windows: expected 1 to {MAX_WINDOWS}, found {self.n_windows}")
        if self.dtype not in ITEM_BYTES:
            raise SettingsError(f"feed dtype {self.dtype!r}: expected one of {', '.join(ITEM_BYTES)}")
        if min(self.window_rows, self.n_sites, self.width) < 1:
            raise SettingsError(f"feed buffer: expected rows, sites and a width of at least 1, found {self}")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row at one site."""
        return self.width * ITEM_BYTES[self.dtype]

    @property
    def plane_bytes(self) -> int:
        """Bytes of one window's rows at one site, rounded up to a page."""
        return _pages(self.window_rows * self.row_bytes)

    @property
    def label_bytes(self) -> int:
        """Bytes of one window's labels, rounded up to a page."""
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
        """Return the offset of a window's labels."""
        return PAGE + window * self.window_bytes

    def plane_at(self, window: int, site: int) -> int:
        """Return the offset of a window's rows at one site."""
        return self.labels_at(window) + self.label_bytes + site * self.plane_bytes


def _pages(n_bytes: int) -> int:
    return -(-n_bytes // PAGE) * PAGE

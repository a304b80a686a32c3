"""Settings and statistics of the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from actscope.errors import SettingsError

BLOCK = 4096  # direct writes begin and end on multiples of this


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Settings of a store's writer.

    Raises:
        SettingsError: A value is out of range.
    """

    segment_bytes: int = 1 << 30
    """Maximum size of a segment, in bytes. A larger message has a segment of its own."""
    buffer_bytes: int = 64 << 20
    """Size of the buffer pool, in bytes. `append` blocks while it is full."""
    direct: Literal["auto", "yes", "no"] = "auto"
    """yes: O_DIRECT, or an error. no: page cache. auto: O_DIRECT where the file system supports it."""
    commit_seconds: float = 1.0
    """Interval of group commits, in seconds. Messages become durable without a call to `sync`."""
    preallocate: bool = True
    """Reserve disk space ahead, up to `segment_bytes`. Extents are larger, and a full disk is detected early."""

    def __post_init__(self) -> None:
        if self.segment_bytes < BLOCK:
            raise SettingsError(f"segment_bytes is {self.segment_bytes}; it must be at least {BLOCK}")
        if self.buffer_bytes < 2 * BLOCK:
            raise SettingsError(f"buffer_bytes is {self.buffer_bytes}; it must be at least {2 * BLOCK}")
        if self.direct not in ("auto", "yes", "no"):
            raise SettingsError(f"direct is {self.direct!r}; it must be 'auto', 'yes' or 'no'")
        if not self.commit_seconds > 0:
            raise SettingsError(f"commit_seconds is {self.commit_seconds}; it must be above 0")


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Runtime statistics of a writer. Sizes are bytes of the files, with heads and padding.

    Attributes:
        messages: Messages that this writer accepted.
        bytes: Bytes written to files.
        segments: Segments begun.
        buffered_bytes: Bytes in buffers that are not written yet.
        buffered_bytes_max: Highest number of bytes that waited for the I/O thread.
        syncs: Group commits.
        seconds_blocked: Time for which full buffers blocked `append` (back pressure).
    """

    messages: int
    bytes: int
    segments: int
    buffered_bytes: int
    buffered_bytes_max: int
    syncs: int
    seconds_blocked: float

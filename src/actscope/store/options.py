"""What a user of the store may choose, and what it says about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from actscope.errors import SettingsError

BLOCK = 4096  # direct writes begin and end on multiples of this


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How a store writes.

    segment_bytes   a new segment begins when the next message would not fit (a larger message has a segment to itself)
    buffer_bytes    bound of the bytes that `append` accepts and that are not yet in the file; more makes it wait
    direct          "yes": O_DIRECT or an error; "no": through the page cache; "auto": O_DIRECT where the file system takes it
    commit_seconds  at most so long after `append` is a message durable, without anybody asking
    preallocate     reserve space ahead, up to `segment_bytes`: fewer and larger extents, and a full disk shows early
    """

    segment_bytes: int = 1 << 30
    buffer_bytes: int = 64 << 20
    direct: Literal["auto", "yes", "no"] = "auto"
    commit_seconds: float = 1.0
    preallocate: bool = True

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
    """What a writer has done so far; bytes are bytes of files, with heads and padding."""

    messages: int
    bytes: int
    segments: int
    buffered_bytes: int
    buffered_bytes_max: int
    syncs: int
    seconds_blocked: float

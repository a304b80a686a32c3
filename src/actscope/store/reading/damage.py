"""Damage reports that locate the affected bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Damage:
    """A byte range that differs from what was written.

    segment       segment number; 0 for `manifest.json` and `watermark`
    offset        offset in the file; `length` is the size in bytes (0: see `detail`)
    kind          "torn tail"   bytes after the last whole message, from a write that a crash interrupted
                  "corrupt"     changed bytes of messages or of their frames
                  "missing"     missing messages or files
                  "index"       damaged end of a closed segment; its messages are intact, `recover` rebuilds it
                  "manifest"    manifest.json contradicts the segments or the watermark
                  "watermark"   the file is not in a state that a writer leaves
                  "lost"        messages that an earlier salvage could not save
    acknowledged  whether messages that a writer had reported as written or durable are affected
    """

    segment: int
    offset: int
    length: int
    kind: str
    acknowledged: bool
    detail: str

    def __str__(self) -> str:
        where = (
            f"segment {self.segment}, bytes {self.offset}..{self.offset + self.length}" if self.segment else self.kind
        )
        return f"{self.kind} at {where}: {self.detail}" + (" (acknowledged)" if self.acknowledged else "")

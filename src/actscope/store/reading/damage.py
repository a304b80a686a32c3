"""What is wrong with a recording, said so that somebody can look at the bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Damage:
    """One stretch of bytes that is not as it was written.

    segment       its number; 0 for `manifest.json` and `watermark`
    offset        where in the file, and `length` for how many bytes (0: to be had from `detail`)
    kind          "torn tail"   bytes after the last whole message, of a write that a crash cut off
                  "corrupt"     bytes of messages or of their frames that changed
                  "missing"     messages or files that should be there
                  "index"       the end of a closed segment; messages are not touched, `recover` rebuilds it
                  "manifest"    manifest.json is not what the segments and the watermark say
                  "watermark"   the file is not as a writer leaves it
                  "lost"        messages that an earlier salvage closed around
    acknowledged  True: what a writer had called written or durable is affected
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

"""Reading a ring that has something to read, and what children say of theirs."""

from __future__ import annotations

import json
import subprocess
from contextlib import suppress
from typing import Any

from actscope.errors import RingError
from actscope.ring.host import RingReader
from actscope.ring.reader import StepBatch
from actscope.ring.segment import SEGMENT_NAME, SHM_DIR, read_header


def read_batch(reader: RingReader) -> StepBatch:
    """Return the next batch of a ring; fails where there is none."""
    batch = reader.read()
    assert batch is not None, "the ring has nothing to read"
    return batch


def said(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return the next line of a child of `ring.conftest`, a JSON object."""
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def segments_of(pid: int) -> list[str]:
    """Return the names of the ring segments that a process has made and not removed; those of other processes do not matter."""
    found = []
    for name in [path.name for path in SHM_DIR.iterdir() if SEGMENT_NAME.fullmatch(path.name)]:
        with suppress(RingError):  # another process is making it, or has removed it
            if read_header(name).pid == pid:
                found.append(name)
    return found

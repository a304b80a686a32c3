"""Reading a ring that has something to read, and what children say of theirs."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from actscope.ring.host import RingReader
from actscope.ring.reader import StepBatch


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

"""Labels as plain columns of signed integers: every tool has those."""

from __future__ import annotations

from urllib.parse import quote

import numpy as np

from actscope.errors import RecordingError

#: Column → dtype; `request` counts in the list of requests that goes with the export.
COLUMNS: dict[str, str] = {
    "position": "<i8",
    "step": "<i8",
    "time_ns": "<i8",
    "token_id": "<i4",
    "request": "<i4",
    "flags": "<i4",
}


def columns(labels: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of LABEL [n], each [n] and contiguous."""
    return {name: np.ascontiguousarray(labels[name].astype(dtype)) for name, dtype in COLUMNS.items()}


def file_name(site: str) -> str:
    """A site's name as a file's: percent-encoded, so that no name leads out of its folder or meets another."""
    name = quote(site, safe="")
    name = name.replace(".", "%2E", 1) if name.startswith(".") else name
    if len(name) > 200:
        raise RecordingError(f"site {site[:60]!r}: its name is too long for a file's")
    return name

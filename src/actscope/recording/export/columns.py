"""Labels as columns of signed integers, which every tool supports."""

from __future__ import annotations

from urllib.parse import quote

import numpy as np

from actscope.errors import RecordingError

#: Column → dtype. `request` is an index into the export's list of requests.
COLUMNS: dict[str, str] = {
    "position": "<i8",
    "step": "<i8",
    "time_ns": "<i8",
    "token_id": "<i4",
    "request": "<i4",
    "flags": "<i4",
}


def columns(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return the columns of LABEL [n], each contiguous and of shape [n]."""
    return {name: np.ascontiguousarray(labels[name].astype(dtype)) for name, dtype in COLUMNS.items()}


def file_name(site: str) -> str:
    """Return a site's file name: percent-encoded, so it is unique and cannot leave its directory."""
    name = quote(site, safe="")
    name = name.replace(".", "%2E", 1) if name.startswith(".") else name
    if len(name) > 200:
        raise RecordingError(f"site {site[:60]!r}: its name is too long for a file's")
    return name

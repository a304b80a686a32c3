"""The cache directory of one user: results that can be made again, kept because making them takes long."""

from __future__ import annotations

import os
from pathlib import Path


def cache_home() -> Path:
    """Return $XDG_CACHE_HOME/actscope, by default ~/.cache/actscope. It need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "actscope"

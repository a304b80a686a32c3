"""Waiting for a state that another thread or process brings about."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_LOOK_S = 0.005


def until(look: Callable[[], T | None], seconds: float = 30.0, *, what: str = "the state that was waited for") -> T:
    """Return the first true answer of `look`; fails when none came within `seconds`."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(_LOOK_S)
    return found

"""What `actscope doctor` finds: one line of its report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: whether it holds, what was found, and what to do where it does not."""

    what: str
    ok: bool
    found: str
    remedy: str = ""

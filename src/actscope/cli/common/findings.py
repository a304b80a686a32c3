"""The result of one check of `actscope doctor` or `actscope feed --check`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check, which is one entry of the report."""

    what: str
    """Name of the check."""
    ok: bool
    """False is a NO, with which the command exits 1."""
    found: str
    """The state that was found."""
    remedy: str = ""
    """Advice, or the flags to change. May be set when `ok` is True too."""

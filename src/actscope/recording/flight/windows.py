"""Extents (`20 tokens`, `5s`) and the windows of positions and times that they define around a row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from actscope.errors import SettingsError

#: Half-open range of positions `(first, after)` of a request.
Range = tuple[int, int]
#: Upper end of an unbounded window, for positions and times (2**63 - 1).
NEVER_ENDS = (1 << 63) - 1

_NS = {"ms": 1e6, "s": 1e9, "min": 60e9, "h": 3600e9}
_EXTENT = re.compile(r"(?P<n>\d+(?:\.\d+)?)\s*(?P<unit>tokens?|ms|s|min|h)?")


@dataclass(frozen=True, slots=True)
class TokensOrTime:
    """A length in tokens or in time (nanoseconds). Exactly one field is set."""

    tokens: int | None = None
    ns: int | None = None

    @classmethod
    def parse(cls, text: str | int) -> TokensOrTime:
        """Parse `20`, `20 tokens`, `5s` or `1.5 min`. Raises SettingsError for any other form."""
        found = _EXTENT.fullmatch(str(text).strip())
        if found is None:
            raise SettingsError(f"extent {text!r}: expected e.g. 20 tokens, 500ms, 5s, 2min")
        unit = found["unit"] or "tokens"
        if not unit.startswith("token"):
            return cls(ns=round(float(found["n"]) * _NS[unit]))
        if "." in found["n"]:
            raise SettingsError(f"extent {text!r}: expected a whole number of tokens")
        return cls(tokens=int(found["n"]))

    def __str__(self) -> str:
        return f"{self.tokens} tokens" if self.ns is None else f"{self.ns / 1e9:g}s"


@dataclass(frozen=True, slots=True)
class KeepWindow:
    """Set of rows: positions `first..last` at times `first_ns..last_ns`, ends included."""

    first: int = 0
    last: int = NEVER_ENDS
    first_ns: int = 0
    last_ns: int = NEVER_ENDS

    @classmethod
    def around(cls, position: int, time_ns: int, before: TokensOrTime | None, after: TokensOrTime | None) -> KeepWindow:
        """Return the window around the row at `position` and `time_ns`. An extent of None is unbounded."""
        window = cls()
        if before is not None and before.tokens is not None:
            window = replace(window, first=max(0, position - before.tokens))
        if before is not None and before.ns is not None:
            window = replace(window, first_ns=time_ns - before.ns)
        if after is not None and after.tokens is not None:
            window = replace(window, last=position + after.tokens)
        if after is not None and after.ns is not None:
            window = replace(window, last_ns=time_ns + after.ns)
        return window

    @property
    def is_timed(self) -> bool:
        """Return whether the window is bounded in time."""
        return self.first_ns > 0 or self.last_ns < NEVER_ENDS

    def cut(self, first_position: int, n_rows: int, time_ns: int) -> tuple[int, int]:
        """Return the part `(start, stop)` of `n_rows` consecutive rows, computed at `time_ns`, that lies inside."""
        if not self.first_ns <= time_ns <= self.last_ns:
            return 0, 0
        start = max(0, self.first - first_position)
        return start, max(start, min(n_rows, self.last - first_position + 1))

    def holds(self, other: KeepWindow) -> bool:
        """Return whether `other` lies inside this window."""
        return (
            self.first <= other.first
            and other.last <= self.last
            and self.first_ns <= other.first_ns
            and other.last_ns <= self.last_ns
        )


class Windows:
    """Union of the windows of one request."""

    def __init__(self) -> None:
        self._windows: list[KeepWindow] = []

    def add(self, window: KeepWindow) -> bool:
        """Add a window and return True, or return False if another window already contains it.

        Untimed windows that overlap or touch are merged.
        """
        if any(known.holds(window) for known in self._windows):
            return False
        joined = [w for w in self._windows if not w.is_timed and not window.is_timed and _touch(w, window)]
        for known in joined:
            window = KeepWindow(min(window.first, known.first), max(window.last, known.last))
        rest = [known for known in self._windows if known not in joined and not window.holds(known)]
        self._windows = [*rest, window]
        return True

    def end_before(self, time_ns: int) -> None:
        """Discard the windows that end before `time_ns`. Later queries must not be older."""
        if any(window.last_ns < time_ns for window in self._windows):
            self._windows = [window for window in self._windows if window.last_ns >= time_ns]

    def __len__(self) -> int:
        return len(self._windows)

    def __iter__(self) -> Iterator[KeepWindow]:
        return iter(self._windows)

    def chosen(self, first_position: int, n_rows: int, time_ns: int) -> np.ndarray:
        """Return bool [n_rows]: which of these consecutive rows lie inside a window."""
        found = np.zeros(n_rows, bool)
        for window in self._windows:
            start, stop = window.cut(first_position, n_rows, time_ns)
            found[start:stop] = True
        return found


def _touch(a: KeepWindow, b: KeepWindow) -> bool:
    return a.first <= b.last + 1 and b.first <= a.last + 1

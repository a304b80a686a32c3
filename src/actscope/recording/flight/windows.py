"""How much of a request is wanted: extents as people write them, and the windows of positions and times they come to."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from actscope.errors import SettingsError

#: Later than every time, beyond every position.
NEVER_ENDS = (1 << 63) - 1

_NS = {"ms": 1e6, "s": 1e9, "min": 60e9, "h": 3600e9}
_EXTENT = re.compile(r"(?P<n>\d+(?:\.\d+)?)\s*(?P<unit>tokens?|ms|s|min|h)?")


@dataclass(frozen=True, slots=True)
class TokensOrTime:
    """So many tokens, or so long: exactly one of the two."""

    tokens: int | None = None
    ns: int | None = None

    @classmethod
    def parse(cls, text: str | int) -> TokensOrTime:
        """`20`, `20 tokens`, `5s`, `1.5 min`; SettingsError for anything else."""
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
    """Rows whose position and time both lie within these ends, all included."""

    first: int = 0
    last: int = NEVER_ENDS
    first_ns: int = 0
    last_ns: int = NEVER_ENDS

    @classmethod
    def around(cls, position: int, time_ns: int, before: TokensOrTime | None, after: TokensOrTime | None) -> KeepWindow:
        """The row at `position` with what comes before and after it; None is everything."""
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
        return self.first_ns > 0 or self.last_ns < NEVER_ENDS

    def cut(self, first_position: int, n_rows: int, time_ns: int) -> tuple[int, int]:
        """Of `n_rows` rows of consecutive positions, computed at `time_ns`, the ones inside: start and stop."""
        if not self.first_ns <= time_ns <= self.last_ns:
            return 0, 0
        start = max(0, self.first - first_position)
        return start, max(start, min(n_rows, self.last - first_position + 1))

    def holds(self, other: KeepWindow) -> bool:
        return (
            self.first <= other.first
            and other.last <= self.last
            and self.first_ns <= other.first_ns
            and other.last_ns <= self.last_ns
        )


class Windows:
    """The union of some windows of one request."""

    def __init__(self) -> None:
        self._windows: list[KeepWindow] = []

    def add(self, window: KeepWindow) -> bool:
        """Take a window in; those of positions alone that touch become one. False when it was in already."""
        if any(known.holds(window) for known in self._windows):
            return False
        joined = [w for w in self._windows if not w.is_timed and not window.is_timed and _touch(w, window)]
        for known in joined:
            window = KeepWindow(min(window.first, known.first), max(window.last, known.last))
        rest = [known for known in self._windows if known not in joined and not window.holds(known)]
        self._windows = [*rest, window]
        return True

    def end_before(self, time_ns: int) -> None:
        """Nothing older than this will be asked about: forget the windows that are over."""
        if any(window.last_ns < time_ns for window in self._windows):
            self._windows = [window for window in self._windows if window.last_ns >= time_ns]

    def __len__(self) -> int:
        return len(self._windows)

    def chosen(self, first_position: int, n_rows: int, time_ns: int) -> np.ndarray:
        """bool [n_rows]: which rows lie inside one of the windows."""
        found = np.zeros(n_rows, bool)
        for window in self._windows:
            start, stop = window.cut(first_position, n_rows, time_ns)
            found[start:stop] = True
        return found


def _touch(a: KeepWindow, b: KeepWindow) -> bool:
    return a.first <= b.last + 1 and b.first <= a.last + 1

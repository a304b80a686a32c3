"""Checks the object that a user gives as `recorder`."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import TYPE_CHECKING

from actscope.errors import SettingsError
from actscope.frames import RowSink, SinkStats, Step

if TYPE_CHECKING:
    from torch import Tensor

_NEEDED = ("begin", "put", "end", "close")


def whole(recorder: RowSink) -> RowSink:
    """Return the recorder, completed with the defaults of RowSink if it has only some of its members (deprecated).

    Raises:
        SettingsError: `recorder` lacks `begin`, `put`, `end` or `close`.
    """
    missing = [name for name in dir(RowSink) if not name.startswith("_") and not hasattr(recorder, name)]
    if not missing:
        return recorder
    remedy = "inherit from actscope.frames.RowSink, which has defaults for what your recorder does not do"
    if any(name in missing for name in _NEEDED):
        raise SettingsError(f"recorder {type(recorder).__name__}: has no {', '.join(missing)}; {remedy}")
    warnings.warn(
        f"recorder {type(recorder).__name__} has no {', '.join(missing)}, which the next release will refuse: {remedy}",
        DeprecationWarning,
        stacklevel=4,
    )
    return _Completed(recorder)


class _Completed(RowSink):
    """A recorder that has only some members of RowSink. Accepted for one release."""

    def __init__(self, recorder: RowSink) -> None:
        self._recorder = recorder

    def begin(self, step: Step) -> None:
        self._recorder.begin(step)

    def put(self, step: Step, site: str, rows: Tensor) -> object:
        return self._recorder.put(step, site, rows)

    def end(self, step: Step, complete: bool = True) -> None:
        self._recorder.end(step, complete)

    def close(self) -> None:
        self._recorder.close()

    @property
    def known_requests(self) -> Collection[str]:
        """Ids that the recorder knows, or none."""
        return getattr(self._recorder, "known_requests", ())

    @property
    def failure(self) -> Exception | None:
        """The recorder's failure, or None."""
        return getattr(self._recorder, "failure", None)

    def stats(self) -> SinkStats | None:
        """Return the recorder's counts, or None."""
        return self._recorder.stats() if hasattr(self._recorder, "stats") else None

    def record_token(self, request: str, position: int, token_id: int, text: str = "") -> None:
        """Pass the token on, if the recorder takes tokens."""
        if hasattr(self._recorder, "record_token"):
            self._recorder.record_token(request, position, token_id, text)

    def mark(self, request: str, why: str = "") -> None:
        """Pass the mark on, if the recorder takes marks."""
        if hasattr(self._recorder, "mark"):
            self._recorder.mark(request, why)

    def flush(self) -> int:
        """Flush the recorder if it can; otherwise return 0."""
        return self._recorder.flush() if hasattr(self._recorder, "flush") else 0

    def checkpoint(self) -> int:
        """Checkpoint the recorder if it can; otherwise return 0."""
        return self._recorder.checkpoint() if hasattr(self._recorder, "checkpoint") else 0

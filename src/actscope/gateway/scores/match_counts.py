"""Counts of the rows that no log took, and of the logs that ended without all of theirs."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from actscope.counters import counted, counting
from actscope.frames import SPURIOUS_ROWS

_log = logging.getLogger(__name__)


@counting("match")
@dataclass(slots=True)
class UnmatchedCounts:
    """Counts of the rows of one ring that no log took, and of errors while it was read."""

    spurious_rows: int = counted("work", "Rows of rejected drafts, and rows after the end of a request.")
    late_rows: int = counted(
        "loss",
        "Rows that came after their answer had ended; their scores did not reach the client.",
        "Raise --row-grace-seconds. If the engine's machine is overloaded, give it more cores.",
    )
    unclaimed_rows: int = counted(
        "work", "Rows of requests that were cancelled, had failed, or are no longer in the gateway's log."
    )
    faults: int = counted(
        "fault",
        "Internal errors while rows were read; reading goes on.",
        "See the gateway's log for the first one, and report it.",
    )
    damaged_rings: int = counted(
        "fault",
        "Times that a ring could not be read any more; the gateway looks for its engine again.",
        "See the gateway's log for the reason; restart the engine.",
    )
    unreadable_tables: int = counted(
        "loss",
        "Probe tables that could not be read; rows of their generation have no scores.",
        "See the gateway's log for the reason. The gateway must run as the engine's user, with the same ACTSCOPE_RUNTIME_DIR.",
    )

    def add_late(self, meta: np.ndarray, state: str | None, n_tokens: int) -> None:
        """Count rows whose log has ended.

        Args:
            meta: Their labels, ROW_META [n].
            state: State of the log; None if it was forgotten.
            n_tokens: Number of the log's tokens. Rows after the last one are of no token that a client has seen.
        """
        genuine = (meta["flags"] & SPURIOUS_ROWS) == 0
        shown = genuine & (meta["position"] < n_tokens)
        if state != "done":
            self.unclaimed_rows += int(np.count_nonzero(genuine))
            self.spurious_rows += int(np.count_nonzero(~genuine))
        else:
            self.late_rows += int(np.count_nonzero(shown))
            self.spurious_rows += int(np.count_nonzero(~shown))


@counting("requests")
@dataclass(slots=True)
class LogCounts:
    """Counts over the logs of one engine's requests. A choice of an answer counts as a request."""

    done: int = counted("work", "Requests that ended normally.")
    aborted: int = counted("work", "Requests that were cancelled, or whose client left.")
    refused: int = counted("work", "Requests that the engine refused.")
    failed: int = counted(
        "fault", "Requests that failed in the engine.", "See the gateway's log and the engine's for the reasons."
    )
    incomplete: int = counted(
        "loss",
        "Requests that ended before the engine had published all their rows; the last positions have no scores.",
        "Raise --row-grace-seconds. If it happens at once for all requests, see model_dropped_rows and sidecar_deaths.",
    )
    mismatched_rows: int = counted(
        "doubt",
        "Rows whose token id differs from the token at their position; their scores are never delivered.",
        "See the gateway's log for the first request, and report it.",
    )

    def add_mismatches(self, request: str, rows: int) -> None:
        """Count mismatched rows of a request. The first call with any logs a warning."""
        if rows and not self.mismatched_rows:
            _log.warning(
                "request %s: a row's token id is not the token at its position; it is not delivered (further ones are "
                "only counted)", request,
            )  # fmt: skip
        self.mismatched_rows += rows

    def add_ended(self, state: str, error: str | None, *, owes_rows: bool) -> None:
        """Count a request that has ended in this state. One that failed without an error was refused."""
        self.done += state == "done"
        self.aborted += state == "aborted"
        self.failed += state == "failed" and error is not None
        self.refused += state == "failed" and error is None
        self.incomplete += state == "done" and owes_rows

"""When the blocks of a recording were written, what waited then, and when rows were dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actscope.recording.format.index_keys import KEY, Kind
from actscope.recording.format.records import Drops, Session


@dataclass(frozen=True, slots=True, eq=False)
class WriteHistory:
    """The course of writing, in the order of messages. Times are wall times, in ns since the epoch: int64.

    Attributes:
        times_ns: When each block was handed to the store, [n]. Blocks of recordings of 0.1 have no time and are left out.
        stored_bytes: Size of each block on disk, int64 [n].
        source_bytes: Size of its rows before encoding, int64 [n].
        queued_bytes: Bytes of rows that waited for a codec or for the disk at that time, int64 [n], in whole KiB.
        drop_times_ns: When each loss of rows was noted, at most `flush_seconds` after it happened, [m].
        dropped_rows: Number of rows of it, each once for each site that lost it, int64 [m].
        boot_ids: Boot of each session, and the offset from its CLOCK_MONOTONIC to wall time, in ns.
        untimed_blocks: Number of blocks without a time.
    """

    times_ns: np.ndarray
    stored_bytes: np.ndarray
    source_bytes: np.ndarray
    queued_bytes: np.ndarray
    drop_times_ns: np.ndarray
    dropped_rows: np.ndarray
    boot_ids: tuple[tuple[str, int], ...]
    untimed_blocks: int


def write_history(
    entries: np.ndarray, keys: np.ndarray, sessions: Sequence[Session], drops: Sequence[Drops]
) -> WriteHistory:
    """Return the course of writing.

    Args:
        entries: Entries of all messages, in order.
        keys: Their keys, KEY [n].
        sessions: The sessions' records, in order.
        drops: The records of drops, in order.
    """
    assert keys.dtype == KEY
    kinds = keys["kind"]
    # A session's first message is its own record, so the sessions that have begun before a message are counted by kind.
    begins = np.array([not session.ended for session in sessions], bool)
    at = np.flatnonzero(kinds == Kind.SESSION)[: len(begins)]
    begun = [session for session in sessions if not session.ended]
    offsets = np.array([session.wall_ns - session.monotonic_ns for session in begun] or [0], np.int64)

    def wall(index: np.ndarray, monotonic: np.ndarray) -> np.ndarray:
        which = np.searchsorted(at[begins[: len(at)]], index, side="right") - 1
        times: np.ndarray = monotonic.astype(np.int64) + offsets[np.clip(which, 0, len(offsets) - 1)]
        return times

    blocks = np.flatnonzero(kinds == Kind.BLOCK)
    timed = blocks[keys["written_ns"][blocks] > 0]
    lost = np.flatnonzero(kinds == Kind.DROPS)
    return WriteHistory(
        wall(timed, keys["written_ns"][timed]),
        entries["length"][timed].astype(np.int64),
        keys["raw_bytes"][timed].astype(np.int64),
        keys["queued_kib"][timed].astype(np.int64) * 1024,
        wall(lost, entries["time_ns"][lost]),
        np.array([sum(drop.n_rows for drop in record.drops) for record in drops], np.int64),
        tuple((session.boot_id, session.wall_ns - session.monotonic_ns) for session in begun),
        len(blocks) - len(timed),
    )

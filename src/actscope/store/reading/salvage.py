"""Salvage: rewrites a damaged segment with its whole messages. A byte-for-byte copy of the old file is kept."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from actscope.runtime.publish import sync_directory, write_all
from actscope.store.files import spare_name
from actscope.store.format.envelope import Prologue, Ranges, epilogue
from actscope.store.format.layout import ENTRY, record_bytes, segment_name
from actscope.store.format.source import STRIDE, Source
from actscope.store.reading.index import SegmentIndex, SegmentState
from actscope.store.reading.record_walk import RecordWalk


def copy_aside(path: Path, start: int = 0, suffix: str = ".damaged") -> Path:
    """Copy a file from `start` on to an unused name, durably. Return the copy's path."""
    aside = spare_name(path, suffix)
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with Source(path, STRIDE) as source:
            at = start
            while part := source.take(at, STRIDE):
                write_all(fd, part, at - start)
                at += len(part)
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_directory(path.parent)
    return aside


def without(first: int, last: int, present: npt.NDArray[np.uint64]) -> Ranges:
    """Return the ascending ranges of `first..last` that are not in `present` (uint64, ascending)."""
    edges = [first - 1, *(int(number) for number in present), last + 1]
    return tuple((a + 1, b - 1) for a, b in pairwise(edges) if b - a > 1)


class Rewrite:
    """Rewrite of segment `number` with its whole messages and a list of the lost ones in `first..last`. Published by rename."""

    def __init__(self, index: SegmentIndex, number: int, first: int, last: int) -> None:
        self._index = index
        self._path = index.path / segment_name(number)
        self._number = number
        old = index.segments.get(number)
        entries = old.entries if old else np.zeros(0, ENTRY)
        self._entries = entries[entries["number"] >= first]
        last = max(last, int(self._entries["number"].max(initial=0)))
        self._lost = without(first, last, self._entries["number"])
        self._prologue = Prologue.make(index.manifest, number, first, self._time(old), self._lost)
        self.state: SegmentState

    def _time(self, old: SegmentState | None) -> int:
        if old is not None and old.prologue is not None:
            return old.prologue.time_ns
        return int(self._entries["time_ns"][0]) if len(self._entries) else 0

    def run(self) -> list[Path]:
        """Rewrite the segment. Return the path of the old file's copy (none if the file was missing)."""
        kept = [copy_aside(self._path)] if self._path.exists() else []
        temp = self._path.with_name(self._path.name + ".tmp")
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            end = self._fill(fd)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temp, self._path)
        sync_directory(self._index.path)
        self.state = self._described(end)
        return kept

    def _fill(self, fd: int) -> int:
        write_all(fd, self._prologue.data, 0)
        at = len(self._prologue.data)
        if len(self._entries):
            with Source(self._path, STRIDE) as source:
                for entry in self._entries:
                    at = self._copy(fd, source, entry, at)
        write_all(fd, epilogue(self._prologue, self._index.manifest.channels, self._entries, at), at)
        return at

    def _copy(self, fd: int, source: Source, entry: np.void, at: int) -> int:
        start = int(entry["offset"])
        entry["offset"] = at
        left = record_bytes(start, int(entry["length"]))
        while left:
            part = source.take(start, min(left, STRIDE))
            assert part, "the message was whole when the survey read it"
            write_all(fd, part, at)
            start, at, left = start + len(part), at + len(part), left - len(part)
        return at

    def _described(self, end: int) -> SegmentState:
        manifest, first = self._index.manifest, self._prologue.first
        scan = RecordWalk(self._number, manifest.recording, len(manifest.channels), end, first, self._lost)
        if len(self._entries):
            scan = RecordWalk(
                self._number,
                manifest.recording,
                len(manifest.channels),
                end,
                int(self._entries["number"][-1]) + 1,
                self._lost,
            )
        return SegmentState(self._number, self._path, scan, self._prologue, True, indexed=self._entries)

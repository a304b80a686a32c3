"""Segment index: entries and damage of a whole recording. Never writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from actscope.errors import RecordingDamaged, RecordingError
from actscope.store.files import naming, segment_files
from actscope.store.format.envelope import Prologue, epilogue, read_index
from actscope.store.format.layout import ALIGN, record_bytes, segment_name
from actscope.store.format.manifest import NAME, Manifest, read_manifest
from actscope.store.format.source import STRIDE, WINDOW, Source
from actscope.store.format.watermark import Watermark, WatermarkState
from actscope.store.reading.damage import Damage
from actscope.store.reading.record_walk import RecordWalk, find_head

Progress = Callable[[int, int], None]  # bytes done, total bytes


@dataclass(slots=True)
class SegmentState:
    """State of one segment file."""

    number: int
    path: Path
    scan: RecordWalk
    prologue: Prologue | None = None
    closed: bool = False  # index, summary and footer are whole
    damage: list[Damage] = field(default_factory=list)  # of the last look, without the record walk's
    indexed: npt.NDArray[np.void] | None = None  # entries from the index, if the records were not walked
    acknowledged: int = 0  # last message number that must be in it or in an earlier segment
    last: int | None = None  # last message number according to the index

    @property
    def entries(self) -> npt.NDArray[np.void]:
        """Return the segment's messages, ENTRY [n]."""
        return self.scan.entries if self.indexed is None else self.indexed


class SegmentIndex:
    """Index of a recording's segments. Call `look` again to follow a growing recording. `thorough` reads every byte."""

    def __init__(self, path: Path, *, thorough: bool = False) -> None:
        self.path = path
        self.thorough = thorough
        self.manifest: Manifest
        self.watermark: Watermark | None = None
        self.segments: dict[int, SegmentState] = {}
        self.damage: list[Damage] = []
        self._manifest_fault = ""
        self.acknowledged = 0  # the highest message number that counts as acknowledged
        self.highest = 0  # segment number
        self._firsts: dict[int, int] = {}  # message number by segment

    def look(self, progress: Progress | None = None) -> None:
        """Update entries and damage from the files.

        Raises:
            RecordingError: There is no recording.
            RecordingDamaged: No copy of its manifest can be read.
        """
        with naming(self.path, "reading"):
            self._look(progress)

    def _look(self, progress: Progress | None) -> None:
        if not self.path.is_dir():
            raise RecordingError(f"{self.path}: not a directory, so not a recording")
        state = WatermarkState.read(self.path)  # read before the files, so that they are never older
        files = segment_files(self.path)
        prologues = {number: self._prologue(number, path) for number, path in files.items()}
        if not self.segments:
            self.manifest = self._manifest(state.newest, prologues)
        self.damage = (
            [Damage(0, 0, 0, "manifest", True, f"{NAME}: {self._manifest_fault}")] if self._manifest_fault else []
        )
        self._judge_watermark(state, prologues)
        firsts = {number: one.first if one else self._first_head(files[number]) for number, one in prologues.items()}
        self._firsts = {number: first for number, first in firsts.items() if first is not None}
        self.highest = max([*files, self.watermark.acknowledged.segment if self.watermark else 0], default=0)
        self.acknowledged = self.watermark.acknowledged.number if self.watermark else self._last_head(files)
        self._judge_segments(files, prologues, progress)
        self._judge_end()

    def acknowledged_in(self, segment: int) -> int:
        """Return the highest acknowledged message number up to this segment.

        All messages before a later segment are acknowledged.
        """
        later = [first for number, first in self._firsts.items() if number > segment]
        return min(later) - 1 if later else self.acknowledged

    def _first_head(self, path: Path) -> int | None:
        """Return the number of the first message found in a segment whose prologue is damaged, or None."""
        with Source(path) as source:
            found = find_head(source, 0, source.size(), self.manifest.recording, 1)
        return found[1] if found else None

    def _last_head(self, files: dict[int, Path]) -> int:
        """Return the number of the last message head found. Without a watermark, messages up to it count as acknowledged."""
        last = at = 0
        if files:
            with Source(files[max(files)], STRIDE) as source:
                size = source.size()
                while found := find_head(source, at, size, self.manifest.recording, 1):
                    at, last = found[0] + ALIGN, max(last, found[1])
        return last

    @property
    def manifest_whole(self) -> bool:
        """Return whether manifest.json is intact."""
        return not self._manifest_fault

    @property
    def last(self) -> int:
        """Return the highest message number that is present or known to be lost."""
        return max((state.scan.number - 1 for state in self.segments.values()), default=0)

    def _prologue(self, number: int, path: Path) -> Prologue | None:
        known = self.segments.get(number)
        if known is not None and known.prologue is not None:
            return known.prologue
        with Source(path) as source:
            return Prologue.read(source)

    def _manifest(self, mark: Watermark | None, prologues: dict[int, Prologue | None]) -> Manifest:
        copies = [Manifest(one.manifest) for one in prologues.values() if one is not None]
        try:
            manifest, wrong = read_manifest(self.path), ""
        except FileNotFoundError:
            if not copies:
                raise RecordingError(f"{self.path}: no {NAME} and no segment, so not a recording") from None
            manifest, wrong = copies[0], "the file is missing"
        except RecordingDamaged as error:
            if not copies:
                raise
            manifest, wrong = copies[0], str(error)
        trusted = [copy for copy in copies if mark is not None and copy.crc == mark.manifest_crc] or copies
        agrees = mark is not None and manifest.crc == mark.manifest_crc
        if not wrong and not agrees and trusted and manifest.text != trusted[0].text:
            manifest, wrong = trusted[0], "the file differs from the copy in the segments"
        elif not wrong and not agrees and mark is not None and not copies:
            wrong = "the file is not the one that the watermark knows"
        self._manifest_fault = wrong
        return manifest

    def _judge_watermark(self, state: WatermarkState, prologues: dict[int, Prologue | None]) -> None:
        mark, fault = state.newest, state.fault
        if mark is not None and mark.recording != self.manifest.recording:
            mark, fault = None, "it belongs to another recording"
        elif mark is not None and mark.manifest_crc != self.manifest.crc and self.manifest_whole:
            fault = fault or "it knows another manifest"
        beyond = [
            number for number, one in prologues.items() if one is not None and mark and number > mark.written.segment
        ]
        if mark is not None and mark.closed and beyond:
            fault = fault or f"it says closed at segment {mark.written.segment}, and there is segment {beyond[-1]}"
        self.watermark = mark
        if fault:
            self.damage.append(Damage(0, 0, 0, "watermark", mark is None, f"watermark: {fault}"))

    def _judge_segments(
        self, files: dict[int, Path], prologues: dict[int, Prologue | None], progress: Progress | None
    ) -> None:
        sizes = {number: path.stat().st_size for number, path in files.items()}
        expected, previous, done = 1, 0, 0
        for number, path in files.items():
            if number > previous + 1:
                expected = self._missing_files(previous + 1, number - 1, expected)
            acknowledged = self.acknowledged_in(number)
            must_close = max(self._firsts, default=0) > number or bool(self.watermark and self.watermark.closed)
            self._judge(number, path, prologues[number], expected, acknowledged, must_close)
            expected, previous = max(expected, self.segments[number].scan.number), number
            done += sizes[number]
            if progress is not None:
                progress(done, sum(sizes.values()))
        if self.highest > previous:
            self._missing_files(previous + 1, self.highest, expected)

    def _missing_files(self, first: int, last: int, expected: int) -> int:
        """Report missing segment files and return the next message number after them."""
        acknowledged = self.acknowledged_in(last)
        which = f": messages {expected}..{acknowledged}" if acknowledged >= expected else ""
        names = segment_name(first) if first == last else f"{segment_name(first)} to {segment_name(last)}"
        self.damage.append(Damage(first, 0, 0, "missing", True, f"{names}: not there{which}"))
        return max(expected, acknowledged + 1)

    def _judge(
        self, number: int, path: Path, prologue: Prologue | None, expected: int, acknowledged: int, must_close: bool
    ) -> None:
        known = self.segments.get(number)
        if known is not None and known.closed and not self.thorough:
            self.damage += [*known.scan.damage, *known.damage]
            return
        with Source(path, STRIDE if self.thorough else WINDOW) as source:
            if known is None or known.prologue is None:
                known = self._begin(number, path, prologue, expected, source)
            known.damage = []
            if prologue is None:
                self._bad_prologue(known, source, acknowledged, must_close)
            elif known.scan.rows or not self._from_index(known, source):
                acknowledged = acknowledged if known.last is None else min(acknowledged, known.last)
                known.scan.advance(source, acknowledged, bodies=self.thorough)
                self._judge_tail(known, source, acknowledged, must_close)
        known.acknowledged = acknowledged
        self.segments[number] = known
        self.damage += [*known.scan.damage, *known.damage]

    def _begin(self, number: int, path: Path, prologue: Prologue | None, expected: int, source: Source) -> SegmentState:
        recording, channels = self.manifest.recording, len(self.manifest.channels)
        if prologue is None:
            return SegmentState(number, path, RecordWalk(number, recording, channels, 0, expected))
        first = max(expected, prologue.first)
        scan = RecordWalk(number, recording, channels, len(prologue.data), first, prologue.lost)
        if prologue.segment != number or prologue.manifest != self.manifest.text:
            scan.damage.append(
                Damage(number, 0, len(prologue.data), "corrupt", True, "it is a segment of another place or recording")
            )
        for a, b in prologue.lost:
            scan.damage.append(
                Damage(number, 0, 0, "lost", True, f"messages {a}..{b} could not be saved by an earlier salvage")
            )
        return SegmentState(number, path, scan, prologue)

    def _bad_prologue(self, known: SegmentState, source: Source, acknowledged: int, must_close: bool) -> None:
        size, scan, wrong = source.size(), known.scan, "the beginning of the segment is not whole"
        newest = self.watermark.acknowledged.segment if self.watermark else 0
        if scan.number > acknowledged and not must_close and known.number > newest:
            if source.nonzero(0, size):
                known.damage.append(Damage(known.number, 0, size, "torn tail", False, wrong))
            return
        if scan.at == 0:
            at, _ = find_head(source, 0, size, self.manifest.recording, scan.number) or (size, 0)
            scan.damage.append(Damage(known.number, 0, at, "corrupt", True, wrong))
            scan.at = at
        scan.advance(source, acknowledged, bodies=self.thorough)
        self._judge_tail(known, source, acknowledged, must_close)

    def _from_index(self, known: SegmentState, source: Source) -> bool:
        """Use the entries of the segment's index and return True, unless there is no valid one or `thorough` is set."""
        found = read_index(source, source.size())
        if found is None or known.prologue is None or not self._fits(known, *found):
            return False
        entries, known.scan.end = found
        known.last = int(entries["number"][-1]) if len(entries) else None
        known.last = max([known.last or 0, *(last for _, last in known.prologue.lost)]) or None
        if self.thorough:
            return False
        known.indexed, known.closed, known.scan.at = entries, True, found[1]
        if len(entries):
            known.scan.number = int(entries["number"][-1]) + 1
        known.scan.skip_lost()
        return True

    def _fits(self, known: SegmentState, entries: npt.NDArray[np.void], end: int) -> bool:
        """Return whether an index matches this segment: numbers without gaps except lost ones, records ordered and in bounds."""
        if not len(entries):
            return True
        scan = known.scan
        numbers, offsets = entries["number"], entries["offset"]
        lost = {first: last for first, last in scan.lost}
        gaps = np.flatnonzero(np.diff(numbers) != 1)
        known_gaps = all(lost.get(int(numbers[i]) + 1) == int(numbers[i + 1]) - 1 for i in gaps)
        last = entries[-1]
        if int(last["length"]) > end or int(last["offset"]) > end:
            return False
        inside = (
            int(offsets[0]) >= scan.at
            and int(last["offset"]) + record_bytes(int(last["offset"]), int(last["length"])) <= end
        )
        ordered = bool(np.all(offsets[1:] > offsets[:-1])) and bool(np.all(numbers[1:] > numbers[:-1]))
        owned = bool(np.all(entries["segment"] == known.number)) and bool(np.all(entries["channel"] < scan.channels))
        return known_gaps and inside and ordered and owned and int(numbers[0]) == scan.number

    def _judge_tail(self, known: SegmentState, source: Source, acknowledged: int, must_close: bool) -> None:
        scan, size = known.scan, source.size()
        if scan.number <= acknowledged:
            detail = f"messages {scan.number}..{acknowledged} are missing; the file ends at {size}"
            known.damage.append(Damage(known.number, scan.at, 0, "missing", True, detail))
        known.closed = scan.epilogue and self._closed(known, source, size)
        if known.closed or (scan.at >= size and not must_close):
            return
        if must_close:
            detail = "index, summary or footer are not whole; the messages before them are not touched"
            known.damage.append(Damage(known.number, scan.at, size - scan.at, "index", False, detail))
        elif source.nonzero(scan.at, size):
            detail = scan.tail or "the end of the segment is not whole"
            known.damage.append(Damage(known.number, scan.at, size - scan.at, "torn tail", False, detail))

    def _closed(self, known: SegmentState, source: Source, size: int) -> bool:
        found = read_index(source, size)
        if found is None or known.prologue is None or found[1] != known.scan.at:
            return False
        if known.scan.damage and any(one.kind != "lost" for one in known.scan.damage):
            return True  # the index lists messages that are damaged now
        wanted = epilogue(known.prologue, self.manifest.channels, known.scan.entries, known.scan.at)
        return size - known.scan.at == len(wanted) and bytes(source.take(known.scan.at, len(wanted))) == wanted

    def _judge_end(self) -> None:
        mark = self.watermark
        if mark is not None and mark.closed and self.last > mark.written.number:
            detail = f"watermark: it says closed at message {mark.written.number}, and there is message {self.last}"
            self.damage.append(Damage(0, 0, 0, "watermark", False, detail))

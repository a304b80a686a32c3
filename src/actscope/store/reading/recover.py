"""Recovery of a crashed recording: cuts torn tails, closes every segment and marks the recording as closed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from actscope.errors import RecordingDamaged
from actscope.near_miss import hinted
from actscope.runtime.publish import sync_directory, write_all
from actscope.store.files import naming, spare_name
from actscope.store.format.envelope import epilogue
from actscope.store.format.manifest import NAME, publish_manifest
from actscope.store.format.source import Source
from actscope.store.format.watermark import NAME as WATERMARK
from actscope.store.format.watermark import LogPosition, Watermark, WatermarkFile
from actscope.store.reading.damage import Damage
from actscope.store.reading.index import Progress, SegmentIndex, SegmentState
from actscope.store.reading.salvage import Rewrite, copy_aside

MISSING = 10_000  # segment files; more indicate a wrong file name or watermark


@dataclass(slots=True)
class RecoverReport:
    """Findings and actions of `recover`.

    changed    whether any byte was changed; False: the recording was closed and intact
    messages   number of readable messages
    segments   number of segment files
    cut_bytes  unacknowledged bytes cut from the ends of segments; saved in `kept` unless they were zeros
    kept       files with the bytes that were cut (`*.torn`) or that a salvage replaced (`*.damaged`)
    lost       ranges of message numbers (first, last) that a salvage lost
    damage     damage found before recovery
    """

    path: Path
    changed: bool = False
    messages: int = 0
    segments: int = 0
    cut_bytes: int = 0
    kept: list[Path] = field(default_factory=list)
    lost: list[tuple[int, int]] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)


@hinted
def recover(path: str | os.PathLike[str], *, salvage: bool = False, progress: Progress | None = None) -> RecoverReport:
    """Close a recording that its writer did not close. Idempotent.

    Reads every byte first. Keeps all whole messages, acknowledged or not. Cuts the bytes after them and saves them in
    `<segment>.torn`, unless they are zeros.

    Args:
        path: Directory of the recording.
        salvage: Rewrite segments whose acknowledged bytes are damaged, with the whole messages only. The old files stay as
            `<segment>.damaged`, and the lost message numbers are recorded, so that later reads report them.
        progress: Called with bytes done and total bytes.

    Returns:
        What was found and done.

    Raises:
        RecordingError: There is no recording, or a writer has it open.
        RecordingDamaged: Acknowledged bytes are damaged or missing and `salvage` is False (nothing was changed), no copy of
            the manifest can be read, or too many segments are missing.
    """
    directory = Path(path)
    mark = WatermarkFile.open(directory) if (directory / WATERMARK).exists() else None
    try:
        index = SegmentIndex(directory, thorough=True)
        index.look(progress)
        report = RecoverReport(directory, damage=list(index.damage))
        serious = [one for one in index.damage if one.acknowledged and one.kind != "lost"]
        if serious and not salvage:
            raise RecordingDamaged(_refusal(directory, serious))
        if not _at_rest(index):
            mark = mark or WatermarkFile.open(directory)
            report.changed = True
            with naming(directory, "recovering"):
                _Recovery(index, mark, report).run()
        report.messages = sum(len(state.entries) for state in index.segments.values())
        report.segments = len(index.segments)
        return report
    finally:
        if mark is not None:
            mark.close()


def _refusal(directory: Path, serious: list[Damage]) -> str:
    shown = "; ".join(str(one) for one in serious[:5])
    more = f"; and {len(serious) - 5} more" if len(serious) > 5 else ""
    return (
        f"{directory}: acknowledged bytes are damaged, nothing was changed: {shown}{more}. "
        "Bring the files back from a copy, or recover with salvage=True, which keeps what is whole"
    )


def _at_rest(index: SegmentIndex) -> bool:
    mark = index.watermark
    whole = all(one.kind == "lost" for one in index.damage)
    return whole and mark is not None and mark.closed and all(state.closed for state in index.segments.values())


class _Recovery:
    """One pass over the segments in order. Updates the index to the recovered state."""

    def __init__(self, index: SegmentIndex, mark: WatermarkFile, report: RecoverReport) -> None:
        self._index = index
        self._mark = mark
        self._report = report
        self._next = 1  # message number

    def run(self) -> None:
        index, report = self._index, self._report
        if not index.manifest_whole:
            self._manifest()
        if index.highest - len(index.segments) > MISSING:
            raise RecordingDamaged(
                f"{index.path}: {index.highest} segments by their names, {len(index.segments)} there"
            )
        for number in range(1, index.highest + 1):
            self._segment(number)
        for temp in index.path.glob("*.tmp"):
            temp.unlink()
        sync_directory(index.path)
        end = LogPosition(self._next - 1, *self._end())
        state = Watermark(
            index.manifest.recording, index.manifest.crc, os.getpid(), closed=True, written=end, durable=end
        )
        self._mark.settle(replace(state, sequence=self._mark.state.sequence))
        report.lost = [gap for state in index.segments.values() for gap in state.scan.lost]

    def _end(self) -> tuple[int, int]:
        number = max(self._index.segments, default=0)
        return (number, self._index.segments[number].scan.at) if number else (0, 0)

    def _manifest(self) -> None:
        path = self._index.path / NAME
        if path.exists():
            self._report.kept.append(copy_aside(path))
        publish_manifest(self._index.path, self._index.manifest)

    def _segment(self, number: int) -> None:
        state = self._index.segments.get(number)
        damaged = state is None or any(
            one.acknowledged and one.kind != "lost" for one in (*state.damage, *state.scan.damage)
        )
        if damaged:
            acknowledged = state.acknowledged if state else self._index.acknowledged_in(number)
            rewrite = Rewrite(self._index, number, self._next, acknowledged)
            self._report.kept += rewrite.run()
            self._index.segments[number] = state = rewrite.state
        elif state is not None and not state.closed:
            self._close(state)
        if state is not None and number in self._index.segments:
            self._next = state.scan.number

    def _close(self, state: SegmentState) -> None:
        with Source(state.path) as source:
            size, torn = source.size(), source.nonzero(state.scan.at, source.size())
        self._report.cut_bytes += size - state.scan.at
        if state.prologue is None:
            self._drop(state, torn)
            return
        if torn:
            self._report.kept.append(copy_aside(state.path, state.scan.at, ".torn"))
        end = epilogue(state.prologue, self._index.manifest.channels, state.scan.entries, state.scan.at)
        fd = os.open(state.path, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            os.ftruncate(fd, state.scan.at)
            write_all(fd, end, state.scan.at)
            os.fsync(fd)
        finally:
            os.close(fd)
        state.closed = True

    def _drop(self, state: SegmentState, torn: bool) -> None:
        """Remove a segment without a whole prologue: it holds no messages. Saves its bytes unless they are zeros."""
        if torn:
            aside = spare_name(state.path, ".torn")
            os.rename(state.path, aside)
            self._report.kept.append(aside)
        else:
            state.path.unlink()
        del self._index.segments[state.number]

"""Bringing a recording that crashed to rest: cut what was never acknowledged, close every segment, say so in the watermark."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from actscope.errors import RecordingDamaged
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

MISSING = 10_000  # segment files; more are a name or a watermark that lies


@dataclass(slots=True)
class RecoverReport:
    """What `recover` found and did.

    changed    False: the recording was at rest, and no byte was touched
    messages   how many can be read now
    segments   how many files
    cut_bytes  bytes that were taken off the ends of segments, never acknowledged; kept in `kept` unless they were zeros
    kept       files that hold what was cut (`*.torn`) or what a salvage replaced (`*.damaged`)
    lost       message numbers that a salvage gave up, first and last
    damage     what was seen before anything was done
    """

    path: Path
    changed: bool = False
    messages: int = 0
    segments: int = 0
    cut_bytes: int = 0
    kept: list[Path] = field(default_factory=list)
    lost: list[tuple[int, int]] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)


def recover(path: str | os.PathLike[str], *, salvage: bool = False, progress: Progress | None = None) -> RecoverReport:
    """Close a recording that its writer could not close. Run twice, the second changes nothing.

    Reads every byte first. Whole messages are kept, also those that were never acknowledged; what lies behind them
    is cut, and kept in `<segment>.torn`. When acknowledged bytes are bad or missing it raises RecordingDamaged and
    changes nothing, unless `salvage`: then damaged segments are written anew with the messages that are whole, the old
    files stay as `<segment>.damaged`, and the numbers that are lost are written down, so that every later look reports
    them. RecordingError while a writer is at it.
    """
    directory = Path(path)
    mark = WatermarkFile.open(directory) if (directory / WATERMARK).exists() else None
    try:
        survey = SegmentIndex(directory, thorough=True)
        survey.look(progress)
        report = RecoverReport(directory, damage=list(survey.damage))
        serious = [one for one in survey.damage if one.acknowledged and one.kind != "lost"]
        if serious and not salvage:
            raise RecordingDamaged(_refusal(directory, serious))
        if not _at_rest(survey):
            mark = mark or WatermarkFile.open(directory)
            report.changed = True
            with naming(directory, "recovering"):
                _Recovery(survey, mark, report).run()
        report.messages = sum(len(state.entries) for state in survey.segments.values())
        report.segments = len(survey.segments)
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


def _at_rest(survey: SegmentIndex) -> bool:
    mark = survey.watermark
    whole = all(one.kind == "lost" for one in survey.damage)
    return whole and mark is not None and mark.closed and all(state.closed for state in survey.segments.values())


class _Recovery:
    """One pass over the segments in their order; afterwards the survey describes what is there."""

    def __init__(self, survey: SegmentIndex, mark: WatermarkFile, report: RecoverReport) -> None:
        self._survey = survey
        self._mark = mark
        self._report = report
        self._next = 1  # message number

    def run(self) -> None:
        survey, report = self._survey, self._report
        if not survey.manifest_whole:
            self._manifest()
        if survey.highest - len(survey.segments) > MISSING:
            raise RecordingDamaged(
                f"{survey.path}: {survey.highest} segments by their names, {len(survey.segments)} there"
            )
        for number in range(1, survey.highest + 1):
            self._segment(number)
        for temp in survey.path.glob("*.tmp"):
            temp.unlink()
        sync_directory(survey.path)
        end = LogPosition(self._next - 1, *self._end())
        state = Watermark(
            survey.manifest.recording, survey.manifest.crc, os.getpid(), closed=True, written=end, durable=end
        )
        self._mark.settle(replace(state, sequence=self._mark.state.sequence))
        report.lost = [gap for state in survey.segments.values() for gap in state.scan.lost]

    def _end(self) -> tuple[int, int]:
        number = max(self._survey.segments, default=0)
        return (number, self._survey.segments[number].scan.at) if number else (0, 0)

    def _manifest(self) -> None:
        path = self._survey.path / NAME
        if path.exists():
            self._report.kept.append(copy_aside(path))
        publish_manifest(self._survey.path, self._survey.manifest)

    def _segment(self, number: int) -> None:
        state = self._survey.segments.get(number)
        damaged = state is None or any(
            one.acknowledged and one.kind != "lost" for one in (*state.damage, *state.scan.damage)
        )
        if damaged:
            acknowledged = state.acknowledged if state else self._survey.acknowledged_in(number)
            rewrite = Rewrite(self._survey, number, self._next, acknowledged)
            self._report.kept += rewrite.run()
            self._survey.segments[number] = state = rewrite.state
        elif state is not None and not state.closed:
            self._close(state)
        if state is not None and number in self._survey.segments:
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
        end = epilogue(state.prologue, self._survey.manifest.channels, state.scan.entries, state.scan.at)
        fd = os.open(state.path, os.O_WRONLY)
        try:
            os.ftruncate(fd, state.scan.at)
            write_all(fd, end, state.scan.at)
            os.fsync(fd)
        finally:
            os.close(fd)
        state.closed = True

    def _drop(self, state: SegmentState, torn: bool) -> None:
        """A segment whose beginning was never whole holds nothing; its name becomes free."""
        if torn:
            aside = spare_name(state.path, ".torn")
            os.rename(state.path, aside)
            self._report.kept.append(aside)
        else:
            state.path.unlink()
        del self._survey.segments[state.number]

"""Opens or resumes the recording of a server. Shared by all engines; imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from actscope.counters import Counter, counted, counters_of, counting
from actscope.recording.flight.history import FlightOptions
from actscope.recording.flight.marks import MarkWatch, Outcomes
from actscope.recording.flight.recorder import FlightRecorder
from actscope.recording.flight.triggers import parse_rule
from actscope.recording.spec import PipelineOptions, RecordingSpec
from actscope.recording.writing.recorder import Recorder

#: Most bytes of rows that wait for codec workers before rows are dropped.
_PIPELINE_BYTES = 256 << 20


@counting("recording")
@dataclass(slots=True)
class RecordingCounts:
    """Counts of what ended the recording, besides those of its recorder (`RecorderStats`)."""

    failures: int = counted(
        "fault",
        "The recording has failed and nothing more is written; the server goes on.",
        "See the error in GET /v1/actscope/recording; free space on the disk, and start the server again.",
    )


def flight_counters(flight: FlightRecorder | None) -> list[Counter]:
    """Return the counters of a flight recorder and of its recording; none without one."""
    if flight is None:
        return []
    failed = RecordingCounts(failures=int(flight.failure is not None))
    return [*counters_of(flight.stats()), *counters_of(flight.recorder.stats()), *counters_of(failed)]


def open_flight(
    directory: Path,
    sites: Sequence[str],
    *,
    codec: str,
    model: Mapping[str, object],
    by: str,
    triggers: Sequence[str] = (),
    sample: float = 0.0,
    options: FlightOptions | None = None,
    texts: Callable[[Sequence[int]], list[str]] | None = None,
    special_ids: Collection[int] = (),
    outcomes: Outcomes | None = None,
    watch: MarkWatch | None = None,
) -> FlightRecorder:
    """Open a flight recorder in front of the recording at `directory`, which is created or resumed.

    Args:
        directory: Directory of the recording.
        sites: Names of the recorded sites.
        codec: Codec of the rows.
        model: Facts about the model, for the manifest.
        by: What serves the model, for the manifest.
        triggers: Rules that mark requests.
        sample: Share of requests to keep (0 to 1).
        options: Limits of the flight recorder's history.
        texts: Returns the text of each token id.
        special_ids: Ids of special tokens.
        outcomes: Counts of marked requests to go on from.
        watch: Learns what becomes of marked requests.

    Raises:
        SettingsError, CodecError, RecordingError: A rule, the codec or the directory cannot be used.
    """
    rules = [parse_rule(text) for text in triggers]
    if sample:
        rules.append(parse_rule(f"sample {sample}"))
    settings = {"by": by, "triggers": list(triggers), "sample": sample}
    spec = RecordingSpec(tuple(sites), codec=codec, model=dict(model), settings=settings)
    pipeline = PipelineOptions(policy="drop", memory_bytes=_PIPELINE_BYTES)
    recorder = Recorder.create(str(directory), spec, pipeline, resume=True)
    recorder.texts = texts
    try:
        return FlightRecorder(recorder, options, rules, special_ids=special_ids, outcomes=outcomes, watch=watch)
    except BaseException:
        recorder.close()
        raise

"""The recording of a server: opened, or gone on with, as its settings ask for it. The same for every engine; no torch here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from actscope.recording.flight.history import FlightOptions
from actscope.recording.flight.recorder import FlightRecorder
from actscope.recording.flight.triggers import parse_rule
from actscope.recording.spec import PipelineOptions, RecordingSpec
from actscope.recording.writing.recorder import Recorder

#: What codec workers may hold of a server's rows before they drop.
_PIPELINE_BYTES = 256 << 20


def open_flight(
    directory: Path,
    sites: Sequence[str],
    *,
    codec: str,
    model: Mapping[str, Any],
    by: str,
    triggers: Sequence[str] = (),
    sample: float = 0.0,
    options: FlightOptions | None = None,
    texts: Callable[[Sequence[int]], list[str]] | None = None,
    special_ids: Collection[int] = (),
) -> FlightRecorder:
    """A flight recorder in front of the recording at `directory`, which is made, or goes on.

    `model` are the facts for the manifest, `by` what serves it; `texts` gives each token id its text.
    Raises SettingsError, CodecError and RecordingError for what cannot be.
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
        return FlightRecorder(recorder, options, rules, special_ids=special_ids)
    except BaseException:
        recorder.close()
        raise

"""The recording of a vLLM server, opened as its settings ask."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from actscope.engines.flights import open_flight
from actscope.engines.vllm.settings import VllmSettings
from actscope.engines.vllm.sidecar.facts import KnownModel
from actscope.engines.vllm.sidecar_protocol import SidecarStart
from actscope.errors import SettingsError
from actscope.recording.flight.history import FlightOptions
from actscope.recording.flight.marks import MarkWatch, Outcomes
from actscope.recording.flight.recorder import FlightRecorder


def open_recording(
    start: SidecarStart, settings: VllmSettings, known: KnownModel, watch: MarkWatch | None = None
) -> FlightRecorder:
    """Create the recording, or resume an existing one. `watch` learns what becomes of marked requests.

    Each of several data-parallel engines has its own recording, `replica-<n>` below the directory, and each of several pipeline
    stages one of its own, `stage-<n>`, below that. Raises SettingsError, CodecError or RecordingError if it cannot be opened.
    """
    if start.no_rows:
        raise SettingsError(f"record {settings.record}: {start.no_rows}")
    if not start.kept:
        refused = "".join(f"; {name} is refused: {why}" for name, why in list(start.refused.items())[:1])
        raise SettingsError(
            f"record {settings.record}: no rows are kept here; set row_sites, e.g. ACTSCOPE_ROW_SITES=all{refused}"
        )
    facts = start.facts
    model = {
        "name": known.name,
        "revision": known.revision,
        "path": facts.source,
        "device": facts.device,
        "dtype": facts.dtype,
        "n_layers": facts.n_layers,
        "d_model": facts.d_model,
        "max_context": facts.max_context,
        **({"refused_sites": start.refused} if start.refused else {}),
    }
    tokenizer = Tokenizer.from_file(f"{known.tokenizer}/tokenizer.json") if known.tokenizer else None
    return open_flight(
        _own_directory(Path(settings.record), start),
        start.kept,
        codec=settings.codec,
        model=model,
        by=f"vLLM {facts.vllm}, {facts.runner} runner",
        triggers=settings.triggers,
        sample=settings.sample,
        options=FlightOptions(int(settings.flight_gb * 1e9), settings.flight_seconds, settings.flight_dir),
        texts=None
        if tokenizer is None
        else lambda ids: [tokenizer.decode([i], skip_special_tokens=False) for i in ids],
        special_ids=known.special_ids,
        outcomes=Outcomes(start.counts.whole, start.counts.incomplete, start.counts.lost, start.counts.missed_ends),
        watch=watch,
    )


def _own_directory(record: Path, start: SidecarStart) -> Path:
    """Return where this process records: a recording has one writer, so each replica and each stage has a directory."""
    replica = record / f"replica-{start.replica}" if start.replicas > 1 else record
    return replica / f"stage-{start.part}" if start.parts > 1 else replica

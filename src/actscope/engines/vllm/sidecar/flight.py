"""The recording of a vLLM server, as its settings ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from actscope.engines.vllm.control import Start
from actscope.engines.vllm.settings import VllmSettings
from actscope.engines.vllm.sidecar.facts import Known
from actscope.errors import SettingsError
from actscope.recording.flight import FlightRecorder
from actscope.recording.history import FlightOptions
from actscope.recording.recorder import Recorder
from actscope.recording.spec import PipelineOptions, RecordingSpec
from actscope.recording.triggers import parse_rule


def open_flight(start: Start, settings: VllmSettings, known: Known) -> FlightRecorder:
    """A recording that is there already goes on; a stage of several has its own, `stage-<n>`, below the directory.

    Raises SettingsError, CodecError and RecordingError for what cannot be.
    """
    if not start.kept:
        raise SettingsError(
            f"record {settings.record}: no sites are kept here; set row_sites, e.g. ACTSCOPE_ROW_SITES=all"
        )
    rules = [parse_rule(text) for text in settings.triggers]
    if settings.sample:
        rules.append(parse_rule(f"sample {settings.sample}"))
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
    }
    by = {
        "by": f"vLLM {facts.vllm}, {facts.runner} runner",
        "triggers": list(settings.triggers),
        "sample": settings.sample,
    }
    spec = RecordingSpec(tuple(start.kept), codec=settings.codec, model=model, settings=by)
    options = FlightOptions(int(settings.flight_gb * 1e9), settings.flight_seconds, settings.flight_dir)
    directory = Path(settings.record) / f"stage-{start.part}" if start.parts > 1 else Path(settings.record)
    recorder = Recorder.create(
        str(directory), spec, PipelineOptions(policy="drop", memory_bytes=256 << 20), resume=True
    )
    if known.tokenizer:
        recorder.texts = partial(_texts, Tokenizer.from_file(f"{known.tokenizer}/tokenizer.json"))
    try:
        return FlightRecorder(recorder, options, rules, special_ids=known.special_ids)
    except BaseException:
        recorder.close()
        raise


def _texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    return [tokenizer.decode([i], skip_special_tokens=False) for i in ids]

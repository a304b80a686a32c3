"""Steps made by hand for the flight recorder: every row says in its values which request, position and step it is of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import numpy as np

from actscope.frames import ROW_META, SCORES, Frame, RowFlag, Span, SpanFlag, Step
from actscope.recording.flight.history import FlightOptions
from actscope.recording.flight.recorder import FlightRecorder
from actscope.recording.reading.recording import Recording
from actscope.recording.spec import PipelineOptions, RecordingSpec
from actscope.recording.writing.recorder import Recorder

SITES = ("layers.0.resid_post", "layers.1.resid_post")
WIDTH = 16
SECOND = 1_000_000_000


def row_values(request: str, position: int, site: str) -> np.ndarray:
    """float32 [WIDTH], different for every request, position and site."""
    seed = [*request.encode(), position, SITES.index(site)]
    return np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32)


@dataclass
class Pilot:
    """Makes steps and writes them; its clock is that of the flight recorder."""

    flight: FlightRecorder
    now_ns: int = 1000 * SECOND
    number: int = 0
    positions: dict[str, int] = field(default_factory=dict)
    width: int = 4

    def step(
        self,
        spans: dict[str, int],
        scores: Any = None,
        token_ids: Any = None,
        end: tuple[str, ...] = (),
        generation: int = 1,
    ) -> Step:
        """One step with so many new rows of each request, and the ends of others after it."""
        made = self.make(spans, token_ids, generation)
        frames = [Frame(site, self.rows(made, site)) for site in SITES]
        table = np.full((made.n_rows, self.width), np.nan, np.float32)
        if scores is not None:
            table[:, 0] = scores
        self.flight.write(made, [Frame(SCORES, table), *frames])
        if end:
            self.end(*end)
        return made

    def make(self, spans: dict[str, int], token_ids: Any = None, generation: int = 1) -> Step:
        self.number += 1
        meta = np.zeros(sum(spans.values()), ROW_META)
        made, offset = [], 0
        for i, (request, n) in enumerate(spans.items()):
            first = self.positions.get(request, 0)
            flags = SpanFlag.FIRST if first == 0 else SpanFlag(0)
            made.append(Span(request, first, n, offset, flags, 4))
            rows = meta[offset : offset + n]
            rows["span"], rows["position"] = i, np.arange(first, first + n)
            rows["flags"][: max(0, 4 - first)] = RowFlag.PREFILL
            self.positions[request] = first + n
            offset += n
        meta["token_id"] = meta["position"] % 100 if token_ids is None else token_ids
        meta["step"] = self.number
        return Step(self.number, self.now_ns, tuple(made), meta, generation)

    def rows(self, step: Step, site: str) -> np.ndarray:
        rows = [
            row_values(span.request, position, site)
            for span in step.spans
            for position in range(span.first_position, span.first_position + span.n_rows)
        ]
        return np.stack(rows) if rows else np.empty((0, WIDTH), np.float32)

    def end(self, *requests: str) -> None:
        spans = tuple(Span(r, self.positions.get(r, 0), 0, 0, SpanFlag.END, 4) for r in requests)
        step = Step(self.number, self.now_ns, spans, np.empty(0, ROW_META), 1)
        self.flight.write(step, [Frame(SCORES, np.empty((0, self.width), np.float32))])
        for request in requests:
            self.positions.pop(request, None)

    def learn(self, *probes: str, generation: int = 1, since: int = 1) -> None:
        columns = [{"slot": slot, "id": probe, "since": since} for slot, probe in enumerate(probes)]
        self.flight.learn(msgspec.json.encode({"generation": generation, "probes": columns}))

    @contextmanager
    def thread_held(self) -> Iterator[None]:
        """The flight recorder's thread does nothing within the block."""
        held, go = Event(), Event()

        def hold() -> None:
            held.set()
            go.wait()

        waiting = self.flight._call(hold)
        held.wait()
        try:
            yield
        finally:
            go.set()
            waiting.result()


@contextmanager
def flying(
    path: Path,
    rules: tuple[Any, ...] = (),
    special_ids: tuple[int, ...] = (),
    recorder_bytes: int = 64 << 20,
    **options: Any,
) -> Iterator[Pilot]:
    """A flight recorder in front of a new recording, and a pilot for it."""
    spec = RecordingSpec(SITES, codec="none", model={"name": "by-hand"})
    recorder = Recorder.create(path, spec, PipelineOptions(policy="drop", workers=1, memory_bytes=recorder_bytes))
    pilot: Pilot
    flight = FlightRecorder(
        recorder, FlightOptions(**options), rules, special_ids=special_ids, clock=lambda: pilot.now_ns
    )
    pilot = Pilot(flight)
    try:
        yield pilot
    finally:
        flight.close()


def kept(path: Path, request: str) -> list[int]:
    """The positions of a request that a closed recording has, after checking every row of them."""
    recording = Recording.open(path)
    if request not in recording.requests:
        return []
    positions: list[int] = []
    for site in recording.sites:
        rows = recording.rows(site, request)
        positions = rows.labels["position"].tolist()
        for values, position in zip(rows.values, positions, strict=True):
            assert (values == row_values(request, position, site)).all(), (site, position)
    return positions

"""Follow running engines through their rings, and format their steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Annotated

import msgspec
import numpy as np

from actscope.cli.common.output import show
from actscope.errors import RingError
from actscope.frames import SpanFlag
from actscope.ring.discovery import EngineCard, read_cards, read_table
from actscope.ring.host import RingReader, StepRecord
from actscope.runtime.decoding import decode_json
from actscope.runtime.printable import one_line

Columns = dict[str, int]


def follow(engine: str, from_oldest: bool, wanted: set[str]) -> Iterator[tuple[EngineCard, StepRecord, Columns]]:
    """Yield the steps of an engine, and of the next one when it ends. Waits for an engine; never ends by itself.

    Args:
        engine: Card id, or "" for the newest engine.
        from_oldest: Start with the oldest steps in the ring, and not with the next one.
        wanted: Ids of probes. Empty: all.

    Yields:
        The engine's card, the step, and the column of each probe in the step's own generation of the probe table.
    """
    while True:
        card = _await_engine(engine)
        part = f", part {card.part + 1} of {card.parts}: choose another with --engine" if card.parts > 1 else ""
        _say(f"watching {card.model} ({card.device}, {card.dtype}), engine {card.id}{part}")
        try:
            with closing(RingReader.attach(card.ring, from_oldest=from_oldest)) as reader:
                tables = _Tables(card, wanted)
                yield from ((card, record, tables.columns(record.generation)) for record in _steps(reader))
                missed = reader.stats()
        except RingError as error:
            _say(f"{error}")
            continue
        _say(f"the engine has ended; {missed.steps} steps read, {missed.missed_rows} rows missed")


def _steps(reader: RingReader) -> Iterator[StepRecord]:
    reported = 0
    while True:
        batch = reader.read()
        if batch is not None:
            yield from batch.steps
        elif not reader.wait(0.5) and not reader.writer_alive():
            return
        missed = reader.stats().missed_rows
        if missed > reported:
            _say(f"too slow: {missed - reported} rows were overwritten before they were read")
            reported = missed


def _await_engine(engine: str) -> EngineCard:
    told = False
    while True:
        card = next((c for c in read_cards() if engine in ("", c.id)), None)
        if card is not None:
            return card
        if not told:
            who = f"engine {engine}" if engine else "engine"
            _say(
                f"no {who} is running yet; waiting (start one with: actscope serve MODEL, or vLLM with actscope's plugin)"
            )
            told = True
        time.sleep(0.25)


def as_text(record: StepRecord, columns: Columns) -> str:
    """Format a step as one line: batch size, rows, the highest score of each probe, requests with their last position."""
    running = [span for span in record.spans if span.n_rows]
    ended = [span.request for span in record.spans if SpanFlag.END in span.flags]
    if not running:
        return one_line(f"step {record.number:>7}  ended: {', '.join(ended)}")
    scores = "  ".join(f"{name} {value:.3f}" for name, value in _highest(record, columns).items())
    requests = ", ".join(f"{s.request}@{s.first_position + s.n_rows - 1}" for s in running[:4])
    more = f" and {len(running) - 4} more" if len(running) > 4 else ""
    line = f"step {record.number:>7}  batch {len(running):>3}  rows {len(record.meta):>4}  {scores}  {requests}{more}"
    return one_line(line)


def as_compact(record: StepRecord, columns: Columns) -> str | None:
    """Format a step as the older sidecar did: the number of rows with a score other than 0, and the mean of their scores.

    Return None if there are no such rows. The mean is over these rows and all shown probes; scores that were not computed (NaN)
    are left out.
    """
    scores = record.rows[:, list(columns.values())]
    present = ~np.isnan(scores)
    active = (present & (scores != 0)).any(axis=1)
    if not active.any():
        return None
    mean = float(scores[active][present[active]].mean())
    return f"[{record.number}] Batch: {int(active.sum())} | Avg Score: {mean:.4f}"


def as_json(card: EngineCard, record: StepRecord, columns: Columns) -> str:
    """Format a step as one JSON object, with the token ids and scores of each span. A score of NaN is null."""
    spans = [
        {
            "request": span.request,
            "first_position": span.first_position,
            "token_ids": _rows(record, span.offset, span.n_rows)["token_id"].tolist(),
            "scores": {
                name: [
                    None if np.isnan(v) else v for v in record.rows[span.offset : span.offset + span.n_rows, c].tolist()
                ]
                for name, c in columns.items()
            },
            "ended": SpanFlag.END in span.flags,
        }
        for span in record.spans
    ]
    step = {"step": record.number, "time_ns": record.time_ns, "engine": card.id, "spans": spans}
    return msgspec.json.encode(step).decode()


def _rows(record: StepRecord, offset: int, n: int) -> np.ndarray:
    return record.meta[offset : offset + n]


def _highest(record: StepRecord, columns: Columns) -> dict[str, float]:
    scored = {name: record.rows[:, c][~np.isnan(record.rows[:, c])] for name, c in columns.items()}
    return {name: float(values.max()) for name, values in scored.items() if len(values)}


class _ShownColumn(msgspec.Struct):
    """A probe of a table, and its column."""

    id: str
    slot: Annotated[int, msgspec.Meta(ge=0, lt=1 << 20)]


class _ShownTable(msgspec.Struct):
    """A probe table, as far as it is shown."""

    probes: list[_ShownColumn]


class _Tables:
    """Cache of probe tables: probe id → column, by generation. It outlives the files, which the engine removes when it ends."""

    def __init__(self, card: EngineCard, wanted: set[str]) -> None:
        self._card, self._wanted = card, wanted
        self._known: dict[int, Columns] = {}

    def columns(self, generation: int) -> Columns:
        if generation not in self._known:
            self._known[generation] = self._read(generation)
        return self._known[generation]

    def _read(self, generation: int) -> Columns:
        try:
            raw = read_table(self._card.id, generation)
        except RingError:
            return {}  # the engine has ended before this generation was read: its steps are shown without scores
        probes = decode_json(raw, _ShownTable, RingError, f"probe table {generation} of engine {self._card.id}").probes
        return {p.id: p.slot for p in probes if not self._wanted or p.id in self._wanted}


def _say(message: str) -> None:
    show(message, err=True)

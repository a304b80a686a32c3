"""Streams written by actscope: spans with labels, each followed by its rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec
import numpy as np

from actscope.errors import RecordingError
from actscope.frames import NO_FLAGS, ROW_META, Frame, Span, SpanFlag, Step
from actscope.recording.format.packets import (
    HEADER,
    REQUEST,
    SPAN,
    Packet,
    PacketName,
    RequestEnded,
    SiteForm,
    SpanLabels,
    StreamHeader,
    read_packets,
)
from actscope.recording.importing.options import ImportOptions
from actscope.recording.importing.stream import Count, Progress, Steps, Texts, as_rows, frame_of
from actscope.recording.spec import RecordingSpec
from actscope.runtime.decoding import decode_json

R = TypeVar("R", bound=msgspec.Struct)


def decode(data: bytes, kind: type[R], name: str, offset: int) -> R:
    """Decode the JSON of a packet as `kind`. Raises RecordingError, naming the byte offset, if it does not fit."""
    return decode_json(data, kind, RecordingError, f"{name}: the packet at byte {offset} is not what its name says")


class OwnStream:
    """Stream written by actscope: spans with labels, each followed by its rows."""

    def __init__(self, file: BinaryIO, path: Path, header: StreamHeader, options: ImportOptions) -> None:
        self._file, self._name = file, str(path)
        self._forms = {site: form for site, form in header.sites.items() if options.wants(site)}
        if not self._forms:
            raise RecordingError(f"{path}: none of its sites is wanted; it has {', '.join(header.sites)}")
        texts = header.texts
        self.texts: Texts | None = (lambda ids: [texts.get(str(i), "") for i in ids]) if texts else None
        self.count = Count()
        self.spec = RecordingSpec(
            tuple(self._forms),
            codec=options.codec,
            model=dict(header.model),
            settings={"imported_from": path.name, "recording": header.recording},
        )

    def steps(self, progress: Progress) -> Steps:
        """Iterate over the steps with their frames, with the labels that were exported."""
        self._file.seek(0)
        total = os.fstat(self._file.fileno()).st_size
        pending: list[_LabelledSpan] = []
        for span in self._spans():
            if pending and not span.continues(pending[-1]):
                yield _step_of(pending, self._forms)
                pending = []
            pending.append(span)
            progress("import", self._file.tell(), total)
        if pending:
            yield _step_of(pending, self._forms)

    def _spans(self) -> Iterator[_LabelledSpan]:
        """Iterate over the spans with their rows, and over an END span without rows for each finished request."""
        span: _LabelledSpan | None = None
        for packet in read_packets(self._file, self._name):
            self.count.packets += 1
            if packet.name in (SPAN, REQUEST) and span is not None:
                yield span
                span = None
            if packet.name == SPAN:
                span = _LabelledSpan(_labels_of(packet, self._name))
            elif packet.name == REQUEST and (ended := self._ended(packet)) is not None:
                yield ended
            elif packet.name not in (HEADER, REQUEST):
                self._take(packet, span)
        if span is not None:
            yield span

    def _ended(self, packet: Packet) -> _LabelledSpan:
        ended = decode(packet.data, RequestEnded, self._name, packet.offset)
        if not 0 <= ended.present < 1 << 62:
            raise RecordingError(
                f"{self._name}: the packet at byte {packet.offset} has {ended.present} positions present"
            )
        flags = SpanFlag.END | (SpanFlag.ABORTED if ended.aborted else NO_FLAGS)
        nothing = SpanLabels(
            request=ended.request, position=ended.present, rows=0, step=0, time_ns=0, n_prompt=0, token_ids=[], flags=[]
        )
        return _LabelledSpan(nothing, flags)

    def _take(self, packet: Packet, span: _LabelledSpan | None) -> None:
        place = PacketName.parse(packet.name)
        where = f"{self._name}: the packet {packet.name[:60]!r} at byte {packet.offset}"
        if place is None or place.site not in self._forms:
            self.count.skipped += 1
            return
        if span is None or (place.request, place.position) != (span.labels.request, span.labels.position):
            raise RecordingError(
                f"{where} does not belong to the span before it: the stream is not in order, or was cut"
            )
        rows = as_rows(packet.data, self._forms[place.site], where)
        if len(rows) != span.labels.rows:
            raise RecordingError(f"{where}: expected {span.labels.rows} rows, as its span says, found {len(rows)}")
        span.rows[place.site] = rows


@dataclass(slots=True)
class _LabelledSpan:
    labels: SpanLabels
    end: SpanFlag = NO_FLAGS
    rows: dict[str, np.ndarray] = field(default_factory=dict)

    def continues(self, before: _LabelledSpan) -> bool:
        """Return whether both spans belong to one step and have rows at the same sites."""
        mine, theirs = self.labels, before.labels
        alike = (mine.step, mine.time_ns) == (theirs.step, theirs.time_ns) and self.rows.keys() == before.rows.keys()
        return alike and not (self.end or before.end)


def _labels_of(packet: Packet, name: str) -> SpanLabels:
    labels = decode(packet.data, SpanLabels, name, packet.offset)
    limits = (0 <= labels.position < 1 << 62, 0 <= labels.step < 1 << 63, abs(labels.time_ns) < 1 << 63)
    listed = len(labels.token_ids) == len(labels.flags) == labels.rows > 0
    sizes = all(-(1 << 31) <= t < 1 << 31 for t in labels.token_ids) and all(0 <= f < 1 << 32 for f in labels.flags)
    if not (all(limits) and listed and sizes and 0 <= labels.n_prompt < 1 << 32):
        raise RecordingError(f"{name}: the labels in the packet at byte {packet.offset} do not hold together")
    return labels


def _step_of(spans: list[_LabelledSpan], forms: dict[str, SiteForm]) -> tuple[Step, list[Frame]]:
    offsets = np.cumsum([0, *(span.labels.rows for span in spans)]).tolist()
    meta = np.zeros(offsets[-1], ROW_META)
    listed = []
    for number, (span, offset) in enumerate(zip(spans, offsets, strict=False)):
        labels = span.labels
        mine = meta[offset : offset + labels.rows]
        mine["position"] = labels.position + np.arange(labels.rows)
        mine["token_id"], mine["flags"] = labels.token_ids, labels.flags
        mine["span"], mine["step"] = number, labels.step
        listed.append(Span(labels.request, labels.position, labels.rows, offset, span.end, labels.n_prompt))
    first = spans[0].labels
    step = Step(first.step, first.time_ns, tuple(listed), meta)
    frames = [frame_of(site, [span.rows[site] for span in spans], forms[site].dtype) for site in spans[0].rows]
    return step, frames

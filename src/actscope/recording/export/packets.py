"""packets: one file, a packet stream (see `actscope.recording.format.packets`) in the order of computation."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from actscope.recording.export.options import Progress
from actscope.recording.export.selection import ExportSource
from actscope.recording.format.packets import (
    HEADER,
    REQUEST,
    SPAN,
    PacketName,
    PacketWriter,
    RequestEnded,
    SiteForm,
    SpanLabels,
    StreamHeader,
)
from actscope.recording.format.row_labels import LABEL
from actscope.recording.reading.label_index import RequestSummary
from actscope.runtime.publish import private_opener

_WINDOW_BYTES = 16 << 20  # bytes of all sites together in one read


def write(source: ExportSource, to: Path, progress: Progress) -> dict[str, str]:
    """Write this format; see `registry.export`."""
    plan = _Plan(source)
    with open(to, "wb", opener=private_opener) as file:
        writer = PacketWriter(file)
        writer.record(HEADER, _header(source))
        for window in plan.windows():
            _write_window(writer, source, plan, window)
            progress("packets", window.stop, len(plan.row_ids))
    return {site.name: site.dtype for site in source.sites}


def _header(source: ExportSource) -> StreamHeader:
    described = source.describe({site.name: site.dtype for site in source.sites})
    return StreamHeader(
        sites={site.name: SiteForm(site.dtype, site.width) for site in source.sites},
        model=described["model"],
        recording=described["recording"],
        texts=described["texts"],
    )


class _Plan:
    """Rows of all sites, cut into spans: runs of consecutive positions of one request and step at the same sites."""

    def __init__(self, source: ExportSource) -> None:
        self._source = source
        ids = [site.row_ids for site in source.sites]
        self.row_ids: np.ndarray = ids[0]
        for more in ids[1:]:
            self.row_ids = np.union1d(self.row_ids, more)
        self.labels = np.empty(len(self.row_ids), LABEL)
        edge = np.zeros(len(self.row_ids), bool)
        for site, mine in zip(source.sites, ids, strict=True):
            at = np.searchsorted(self.row_ids, mine)
            self.labels[at] = site.labels
            held = np.zeros(len(self.row_ids), bool)
            held[at] = True
            edge[1:] |= held[1:] != held[:-1]
        for column in ("request", "step", "time_ns"):
            edge[1:] |= self.labels[column][1:] != self.labels[column][:-1]
        edge[1:] |= np.diff(self.labels["position"]) != 1
        edge[:1] = True
        self.starts = np.flatnonzero(edge)
        self._last = {request: row for row, request in enumerate(self.labels["request"].tolist())}
        recording, names = source.recording, source.recording.requests
        self.summary = lru_cache(maxsize=None)(lambda request: recording.request(names[request]))

    def windows(self) -> list[slice]:
        """Return the row ranges of single reads. A span is split only if it exceeds a window."""
        width = sum(site.row_bytes for site in self._source.sites)
        most = max(1, _WINDOW_BYTES // width)
        bounds = [0]
        while bounds[-1] < len(self.row_ids):
            upto = bounds[-1] + most
            at = np.searchsorted(self.starts, upto, side="right") - 1
            end = len(self.row_ids) if upto >= len(self.row_ids) else int(self.starts[at])
            bounds.append(end if end > bounds[-1] else min(upto, len(self.row_ids)))
        return [slice(a, b) for a, b in pairwise(bounds)]

    def spans(self, window: slice) -> list[slice]:
        """Return the spans of a window, each at most one chunk of the widest site."""
        most = min(site.batch_rows for site in self._source.sites)
        inside = self.starts[(self.starts > window.start) & (self.starts < window.stop)].tolist()
        edges = [window.start, *inside, window.stop]
        return [
            slice(start, min(stop, start + most))
            for begin, stop in pairwise(edges)
            for start in range(begin, stop, most)
        ]

    def is_last(self, span: slice) -> bool:
        """Return whether the span is the last of its request."""
        return bool(self._last[int(self.labels["request"][span.start])] < span.stop)


def _write_window(writer: PacketWriter, source: ExportSource, plan: _Plan, window: slice) -> None:
    ids = plan.row_ids[window]
    held: list[tuple[str, np.ndarray, np.ndarray]] = []
    for site in source.sites:
        first, after = np.searchsorted(site.row_ids, [ids[0], ids[-1] + 1]).tolist()
        held.append((site.name, site.row_ids[first:after], site.read(first, after)))
    for span in plan.spans(window):
        labels = plan.labels[span]
        request = plan.summary(int(labels["request"][0]))
        writer.record(SPAN, _span(request, labels))
        for name, mine, rows in held:
            first, after = np.searchsorted(mine, [plan.row_ids[span.start], plan.row_ids[span.stop - 1] + 1]).tolist()
            if after > first:
                place = PacketName(name, request.id, int(labels["position"][0]))
                writer.write(place.name, np.ascontiguousarray(rows[first:after]).reshape(-1).view(np.uint8).data)
        if request.ended and plan.is_last(span):
            writer.record(REQUEST, RequestEnded(request=request.id, present=request.present, aborted=request.aborted))


def _span(request: RequestSummary, labels: np.ndarray) -> SpanLabels:
    return SpanLabels(
        request=request.id,
        position=int(labels["position"][0]),
        rows=len(labels),
        step=int(labels["step"][0]),
        time_ns=int(labels["time_ns"][0]),
        n_prompt=request.n_prompt,
        token_ids=labels["token_id"].tolist(),
        flags=labels["flags"].tolist(),
    )

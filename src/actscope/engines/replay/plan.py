"""The steps of a recording in order, with the spans, labels and due times that a replay needs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from actscope.errors import RecordingError
from actscope.frames import ROW_META, RowFlag, Span, SpanFlag, Step
from actscope.recording.reading.label_index import RequestSummary
from actscope.recording.reading.recording import Recording
from actscope.ring.layout import MAX_REQUEST_ID

#: Bytes reserved for `~` and the number of a round after a request's id.
_ROUND_BYTES = 12


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """Rows `start .. stop - 1` of the plan, due `due_ns` nanoseconds after its beginning."""

    number: int
    start: int
    stop: int
    due_ns: int
    spans: tuple[Span, ...]

    @property
    def n_rows(self) -> int:
        """Return the number of rows of the step."""
        return self.stop - self.start


class ReplayPlan:
    """The rows to replay: their labels, and their numbers in the recording (`row_ids`, int64 [n], ascending).

    A request ends with its last row. A recording may lack its end: one made in a user's own loop need not report it, and one
    cut short by a crash has none.

    Args:
        recording: The recording.
        requests: Ids of the requests to replay; empty for all.
        idle_seconds: Maximum length of pauses without a running request.

    Raises:
        RecordingError: A request is not in the recording, or there are no labelled rows.
    """

    def __init__(self, recording: Recording, requests: Sequence[str] = (), *, idle_seconds: float = 1.0) -> None:
        labels, row_ids = recording.labels(), recording.row_ids
        names = recording.requests
        chosen = np.flatnonzero(np.isin(labels["request"], _numbers(recording, requests))) if requests else slice(None)
        self.labels: np.ndarray = labels[chosen]
        self.row_ids: np.ndarray = row_ids[chosen]
        if not len(self.labels):
            raise RecordingError(f"{recording.path}: there is nothing to replay: it has no labelled rows")
        present = np.unique(self.labels["request"]).tolist()
        self._summaries = {number: recording.request(names[number]) for number in present}
        self._n_prompt = {number: self._prompt_of(number) for number in present}
        self.steps = self._plan(idle_ns=int(idle_seconds * 1e9))
        self.meta: np.ndarray = self._label()

    @property
    def requests(self) -> list[RequestSummary]:
        """The requests to replay, in the order of their numbers in the recording."""
        return list(self._summaries.values())

    @property
    def n_rows(self) -> int:
        """Return the number of rows to replay in one round."""
        return len(self.labels)

    @property
    def largest_step(self) -> int:
        """Number of rows of the largest step."""
        return max(step.n_rows for step in self.steps)

    @property
    def duration_ns(self) -> int:
        """Time from the first step to the last in ns, at the recorded pace, with idle pauses shortened."""
        return self.steps[-1].due_ns

    def chunks(self, n_rows: int) -> Iterator[list[PlannedStep]]:
        """Yield the steps in order, in groups of at most `n_rows` rows (but at least one step)."""
        chunk: list[PlannedStep] = []
        for step in self.steps:
            if chunk and step.stop - chunk[0].start > n_rows:
                yield chunk
                chunk = []
            chunk.append(step)
        yield chunk

    def step(self, planned: PlannedStep, *, time_ns: int, generation: int, round_number: int = 1) -> Step:
        """Make the Step to publish. From round 2 on, the requests are named `<id>~<round>`."""
        spans = planned.spans
        if round_number > 1:
            spans = tuple(replace(span, request=f"{span.request}~{round_number}") for span in spans)
        return Step(planned.number, time_ns, spans, self.meta[planned.start : planned.stop], generation)

    def _plan(self, idle_ns: int) -> list[PlannedStep]:
        starts = _edges(self.labels["step"])
        stops = [*starts[1:].tolist(), self.n_rows]
        due = self._due(starts, idle_ns)
        spans = self._spans(starts)
        numbers = self.labels["step"][starts].tolist()
        rows = zip(numbers, starts.tolist(), stops, due, spans, strict=True)
        return [PlannedStep(number, start, stop, at, tuple(own)) for number, start, stop, at, own in rows]

    def _spans(self, steps: np.ndarray) -> list[list[Span]]:
        """Return the spans of each step: runs of consecutive positions of one request."""
        labels = self.labels
        follows = (labels["request"][1:] == labels["request"][:-1]) & (np.diff(labels["position"]) == 1)
        begins = np.union1d(np.flatnonzero(~follows) + 1, steps)
        first, last = self._first_and_last()
        after = np.append(begins[1:], len(labels))
        step_of = np.searchsorted(steps, begins, side="right") - 1
        spans: list[list[Span]] = [[] for _ in steps]
        names = {request: shown_name(summary.id) for request, summary in self._summaries.items()}
        for begin, end, step in zip(begins.tolist(), after.tolist(), step_of.tolist(), strict=True):
            request, position = int(labels["request"][begin]), int(labels["position"][begin])
            flags = SpanFlag.FIRST if first[request] == begin else SpanFlag(0)
            if begin <= last[request] < end:
                flags |= SpanFlag.END | (SpanFlag.ABORTED if self._summaries[request].aborted else SpanFlag(0))
            name, n_prompt = names[request], self._n_prompt[request]
            spans[step].append(Span(name, position, end - begin, begin - int(steps[step]), flags, n_prompt))
        return spans

    def _label(self) -> np.ndarray:
        """Return the labels as ROW_META [n]. Their `span` counts from the start of each step."""
        meta = np.empty(self.n_rows, ROW_META)
        for name in ("position", "token_id", "flags", "step"):
            meta[name] = self.labels[name]
        spans = [(i, span.n_rows) for step in self.steps for i, span in enumerate(step.spans)]
        meta["span"] = np.repeat(*np.array(spans, np.int64).T)
        return meta

    def _first_and_last(self) -> tuple[dict[int, int], dict[int, int]]:
        """Return the first and the last row of each request."""
        requests = self.labels["request"]
        found, first = np.unique(requests, return_index=True)
        _, from_end = np.unique(requests[::-1], return_index=True)
        last = len(requests) - 1 - from_end
        names = found.tolist()
        return dict(zip(names, first.tolist(), strict=True)), dict(zip(names, last.tolist(), strict=True))

    def _due(self, starts: np.ndarray, idle_ns: int) -> list[int]:
        """Return the due time of each step, in ns from the first. Pauses without a running request are cut to `idle_ns`.

        Times are of CLOCK_MONOTONIC, which restarts with the machine. A step back in time counts as no pause.
        """
        times = self.labels["time_ns"][starts]
        pauses = np.maximum(np.diff(times, prepend=times[:1]), 0)
        first, last = self._first_and_last()
        change = np.zeros(len(starts) + 1, np.int64)
        for request, row in first.items():
            change[np.searchsorted(starts, row, side="right")] += 1  # running from the step after its first …
            change[np.searchsorted(starts, last[request], side="right")] -= 1  # … up to its last
        idle = np.cumsum(change)[:-1] == 0
        pauses[idle] = np.minimum(pauses[idle], idle_ns)
        due: list[int] = np.cumsum(pauses).tolist()
        return due

    def _prompt_of(self, number: int) -> int:
        """Return the prompt's length: as recorded, else up to the last PREFILL row, else 1 (the first token is never drawn)."""
        if self._summaries[number].n_prompt:
            return self._summaries[number].n_prompt
        rows = self.labels[self.labels["request"] == number]
        prefill = rows["position"][(rows["flags"] & RowFlag.PREFILL) != 0]
        return max(1, int(prefill.max(initial=-1)) + 1)


def _numbers(recording: Recording, requests: Sequence[str]) -> list[int]:
    """Return the numbers of requests. Raises RecordingError, which lists known names, for one that is not in the recording."""
    known = {name: number for number, name in enumerate(recording.requests)}
    missing = [name for name in requests if name not in known]
    if missing:
        shown = ", ".join(list(known)[:10]) + (" …" if len(known) > 10 else "")
        raise RecordingError(
            f"{recording.path}: no request {', '.join(map(repr, missing))}; it has {len(known)}: {shown or 'none'}"
        )
    return [known[name] for name in requests]


def _edges(values: np.ndarray) -> np.ndarray:
    """Return the indices at which runs of equal values begin."""
    return np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1])


def shown_name(request: str) -> str:
    """Return a request's id in the ring: its own, or if that leaves no room for a round's number, a prefix with a digest."""
    raw = request.encode("utf-8", "replace")
    if len(raw) <= MAX_REQUEST_ID - _ROUND_BYTES:
        return raw.decode()
    return f"{raw[:80].decode(errors='ignore')}~{hashlib.blake2b(raw, digest_size=4).hexdigest()}"

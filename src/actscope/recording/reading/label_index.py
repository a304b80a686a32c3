"""Label index: all row labels of a recording, merged from their batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from actscope.errors import RecordingDamaged, RecordingError
from actscope.frames import RowFlag, SpanFlag
from actscope.recording.format.row_labels import LABEL, RowLabels, decode
from actscope.runtime.memory import check_room

#: Flags of rows that are not part of their request's text: rejected drafts, and rows after its end.
SPURIOUS = int(RowFlag.REJECTED | RowFlag.AFTER_EOS)


#: Bytes of memory for each labelled row while the index is built: labels and numbers, once by batch and once sorted.
_BYTES_OF_ROW = 2 * (LABEL.itemsize + 8)


def check_label_room(keys: np.ndarray, path: object) -> None:
    """Raise RecordingError unless the labels that these keys, KEY [n], announce fit into memory. `path` is for the message."""
    rows = int(keys["n_rows"].astype(np.int64).sum())
    check_room(rows * _BYTES_OF_ROW, RecordingError, f"{path}: the labels of {rows} rows")


def labels_of(key: np.void, body: bytes | memoryview) -> RowLabels:
    """Decode a batch of labels. Raises RecordingDamaged if it is malformed, or has not as many rows as its key announces."""
    found = decode(body)
    if len(found.labels) != int(key["n_rows"]):
        raise RecordingDamaged(f"a batch of labels has {len(found.labels)} rows, and its key says {key['n_rows']}")
    return found


@dataclass(frozen=True, slots=True)
class RequestSummary:
    """Counts and times of one request.

    Attributes:
        id: Request id.
        n_prompt: Prompt length in tokens.
        present: Request length in tokens, as far as the recording knows it.
        computed: Number of positions whose row is in the recording at every site.
        first_ns: Earliest time of its rows, CLOCK_MONOTONIC nanoseconds; 0 without rows.
        last_ns: Latest time of its rows, CLOCK_MONOTONIC nanoseconds; 0 without rows.
        ended: Whether the request has ended.
        aborted: Whether the request was aborted.
    """

    id: str
    n_prompt: int
    present: int
    computed: int
    first_ns: int
    last_ns: int
    ended: bool
    aborted: bool


class LabelIndex:
    """Labels `all` (LABEL [n]) of the rows `row_ids` (int64 [n], ascending), and `requests` in the order of their first step."""

    def __init__(self, batches: Iterable[RowLabels]) -> None:
        self.requests: list[str] = []
        self._number: dict[str, int] = {}
        self._n_prompt: list[int] = []
        self._flags: list[int] = []
        self._present: list[int] = []
        self._final: list[int] = []  # final length of each request in tokens; 0: unknown
        parts, ids = [np.empty(0, LABEL)], [np.empty(0, np.int64)]
        for batch in batches:
            parts.append(self._take(batch))
            ids.append(batch.row_ids)
        row_ids = np.concatenate(ids)
        order = np.argsort(row_ids, kind="stable")
        self.row_ids: np.ndarray = row_ids[order]
        self.all: np.ndarray = np.concatenate(parts)[order]
        self._flag_what_lies_behind_the_end()
        self._edges: tuple[np.ndarray, np.ndarray] | None = None

    def _take(self, batch: RowLabels) -> np.ndarray:
        numbers = np.array([self._known(request) for request in batch.requests], np.uint32)
        for span in batch.spans:
            request = int(numbers[span["request"]])
            self._flags[request] |= int(span["flags"])
            self._n_prompt[request] = max(self._n_prompt[request], int(span["n_prompt"]))
            after = int(span["first_position"]) + int(span["n_rows"])
            self._present[request] = max(self._present[request], after)
            ends = not span["n_rows"] and span["flags"] & SpanFlag.END
            self._final[request] = after if ends else 0  # a later span means that the request has not ended
        labels = batch.labels.copy()
        if len(numbers):
            labels["request"] = numbers[labels["request"]]
        return labels

    def _known(self, request: str) -> int:
        if request not in self._number:
            self._number[request] = len(self.requests)
            self.requests.append(request)
            for column in (self._n_prompt, self._flags, self._present, self._final):
                column.append(0)
        return self._number[request]

    def _flag_what_lies_behind_the_end(self) -> None:
        """Flag the rows at or beyond a request's final length as rejected drafts."""
        final = np.array(self._final, np.int64)
        if final.any():
            end = final[self.all["request"]]
            self.all["flags"][(end > 0) & (self.all["position"] >= end)] |= np.uint32(RowFlag.REJECTED)
            self._present = [min(p, f) if f else p for p, f in zip(self._present, self._final, strict=True)]

    def number_of(self, request: str) -> int | None:
        """Return the request's index into `requests`, or None if it is unknown."""
        return self._number.get(request)

    def of_request(self, request: int) -> np.ndarray:
        """Return the indices (int64) into `all` of one request's rows, in the order of computation."""
        if self._edges is None:
            order = np.argsort(self.all["request"], kind="stable")
            self._edges = order, np.searchsorted(self.all["request"][order], np.arange(len(self.requests) + 1))
        order, edges = self._edges
        found: np.ndarray = order[edges[request] : edges[request + 1]]
        return found

    def newest(self, indices: np.ndarray) -> np.ndarray:
        """Return, of one request's rows, the one computed last at each position, in the order of positions.

        Spurious rows are excluded.
        """
        genuine = indices[(self.all["flags"][indices] & SPURIOUS) == 0]
        positions = self.all["position"][genuine]
        order = np.lexsort((genuine, positions))
        last = np.ones(len(order), bool)
        last[:-1] = positions[order][1:] != positions[order][:-1]
        kept: np.ndarray = genuine[order[last]]
        return kept

    def summary(self, request: int, whole: np.ndarray) -> RequestSummary:
        """Return counts and times of one request. `whole`, bool [n]: which rows are there at every site."""
        rows = self.of_request(request)
        times = self.all["time_ns"][rows]
        flags = SpanFlag(self._flags[request])
        computed = self.newest(rows)
        last = int(self.all["position"][computed].max(initial=-1)) + 1
        after_end = (self.all["flags"][rows] & int(RowFlag.AFTER_EOS)) > 0
        known = min(self._present[request], int(self.all["position"][rows[after_end]].min(initial=1 << 62)))
        return RequestSummary(
            self.requests[request],
            self._n_prompt[request],
            max(last, known),
            int(whole[computed].sum()),
            int(times.min()) if len(times) else 0,
            int(times.max()) if len(times) else 0,
            SpanFlag.END in flags,
            SpanFlag.ABORTED in flags,
        )

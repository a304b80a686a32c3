"""All labels of a recording, put together from the batches of its ledger."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from actscope.frames import RowFlag, SpanFlag
from actscope.recording.format.row_labels import LABEL, RowLabels

#: Rows that say nothing of a token that is part of the request.
SPURIOUS = int(RowFlag.REJECTED | RowFlag.AFTER_EOS)


@dataclass(frozen=True, slots=True)
class RequestSummary:
    """One request: `present` positions are known of, `computed` of them have a row; times are of CLOCK_MONOTONIC."""

    id: str
    n_prompt: int
    present: int
    computed: int
    first_ns: int
    last_ns: int
    ended: bool
    aborted: bool


class LabelIndex:
    """`all` LABEL [n] in the order of `row_ids` int64 [n], which ascend; `requests` in the order of their first step."""

    def __init__(self, batches: Iterable[RowLabels]) -> None:
        self.requests: list[str] = []
        self._number: dict[str, int] = {}
        self._n_prompt: list[int] = []
        self._flags: list[int] = []
        self._present: list[int] = []
        self._final: list[int] = []  # how many tokens the request has in the end; 0: not told
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
            self._final[request] = after if ends else 0  # a request that goes on has not ended yet
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
        """Rows of drafts that the last pass computed, and that were not accepted."""
        final = np.array(self._final, np.int64)
        if final.any():
            end = final[self.all["request"]]
            self.all["flags"][(end > 0) & (self.all["position"] >= end)] |= np.uint32(RowFlag.REJECTED)
            self._present = [min(p, f) if f else p for p, f in zip(self._present, self._final, strict=True)]

    def number_of(self, request: str) -> int | None:
        return self._number.get(request)

    def of_request(self, request: int) -> np.ndarray:
        """Indices int64 into `all` of one request's rows, in their order."""
        if self._edges is None:
            order = np.argsort(self.all["request"], kind="stable")
            self._edges = order, np.searchsorted(self.all["request"][order], np.arange(len(self.requests) + 1))
        order, edges = self._edges
        found: np.ndarray = order[edges[request] : edges[request + 1]]
        return found

    def newest(self, indices: np.ndarray) -> np.ndarray:
        """Of one request's rows, for each position the one that was computed last; in the order of positions."""
        genuine = indices[(self.all["flags"][indices] & SPURIOUS) == 0]
        positions = self.all["position"][genuine]
        order = np.lexsort((genuine, positions))
        last = np.ones(len(order), bool)
        last[:-1] = positions[order][1:] != positions[order][:-1]
        kept: np.ndarray = genuine[order[last]]
        return kept

    def summary(self, request: int) -> RequestSummary:
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
            len(computed),
            int(times.min()) if len(times) else 0,
            int(times.max()) if len(times) else 0,
            SpanFlag.END in flags,
            SpanFlag.ABORTED in flags,
        )

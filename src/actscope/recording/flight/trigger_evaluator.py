"""Trigger evaluation: matches the probe scores of each step against the rules."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from actscope.errors import RecordingError
from actscope.frames import SPURIOUS_ROWS, Step
from actscope.recording.flight.state import TriggerFacts
from actscope.recording.flight.triggers import ProbeRule
from actscope.recording.flight.windows import KeepWindow, TokensOrTime
from actscope.recording.format.arrays import as_numpy
from actscope.runtime.decoding import decode_json

log = logging.getLogger("actscope.recording")


@dataclass(frozen=True, slots=True)
class Firing:
    """A rule that fired for a request in one step, first at `position` with `value`. `windows` are the rows to keep.

    `begins` is True when the rule did not hold at the request's previous row, or when the rule has a cooldown.
    """

    rule: ProbeRule
    request: str
    position: int
    value: float
    windows: tuple[KeepWindow, ...]
    begins: bool

    @property
    def why(self) -> str:
        """Return the reason that is written to the recording."""
        return f"{self.rule.text}: {self.value:.4g} at position {self.position}"


class _Column(msgspec.Struct):
    slot: int
    id: str
    since: int = 0


class _Table(msgspec.Struct):
    generation: int
    probes: list[_Column]


@dataclass(slots=True)
class _RequestState:
    """State of a rule for one request: its last scores, whether the rule held at its latest row, and the end of its cooldown."""

    recent: deque[float]
    holds: bool = False
    cooldown_position: int = -1
    cooldown_ns: int = -1

    def outside_cooldown(self, cooldown: TokensOrTime, step: Step, rows: np.ndarray) -> np.ndarray:
        """Return the rows (int64) outside the cooldown of the firing before them. Each of them fires and starts a cooldown."""
        firing = []
        for row, position in zip(rows.tolist(), step.meta["position"][rows].tolist(), strict=True):
            if position <= self.cooldown_position or step.time_ns <= self.cooldown_ns:
                continue
            firing.append(row)
            if cooldown.tokens is not None:
                self.cooldown_position = position + cooldown.tokens
            if cooldown.ns is not None:
                self.cooldown_ns = step.time_ns + cooldown.ns
        return np.array(firing, np.int64)


@dataclass(slots=True, eq=False)
class _RuleState:
    """A rule, its current score column, and its state for each request that needs one."""

    rule: ProbeRule
    column: _Column | None = None
    requests: dict[str, _RequestState] = field(default_factory=dict)
    firings: int = 0
    warned: bool = False

    def warn_if_absent(self, loaded: set[str]) -> None:
        """Log a warning, once, if the rule's probe is not among the loaded ones."""
        if self.rule.probe not in loaded and not self.warned:
            self.warned = True
            log.warning(
                "trigger %r waits: probe %s is not loaded (it may be added later); loaded are: %s",
                self.rule.text, self.rule.probe, ", ".join(sorted(loaded)) or "none",
            )  # fmt: skip

    def use(self, table: dict[str, _Column]) -> None:
        """Use the probe of this table. Discard the requests' states if it is another probe than before."""
        before, self.column = self.column, table.get(self.rule.probe)
        if before is None or self.column is None or before.since != self.column.since:
            self.requests.clear()

    def evaluate(self, step: Step, scores: np.ndarray, eligible: np.ndarray) -> list[Firing]:
        """Return the firings in this step. `eligible` is bool [n]: the rows at which any rule may fire."""
        if self.column is None:
            return []
        values = scores[:, self.column.slot]
        counts = eligible & np.isfinite(values)
        if self.rule.mean_over > 1:
            values = self._means(step, values, counts)
        hits = np.flatnonzero(self.rule.holds(values) & counts)
        found: list[Firing] = []
        hit_requests: set[str] = set()
        for index in np.unique(step.meta["span"][hits]).tolist():
            span = step.spans[index]
            mine = hits[(hits >= span.offset) & (hits < span.offset + span.n_rows)]
            hit_requests.add(span.request)
            firing = self._fire(step, span.request, mine, values)
            if firing is not None:
                found.append(firing)
            last = span.offset + int(np.flatnonzero(counts[span.offset : span.offset + span.n_rows])[-1])
            self._of(span.request).holds = bool(mine[-1] == last)
        self._reset_others(step, counts, hit_requests)
        return found

    def _means(self, step: Step, values: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return float64 [n]: the mean of the request's last `mean_over` scores at each counted row, NaN if there are fewer."""
        n, means = self.rule.mean_over, np.full(len(values), np.nan)
        for span in step.spans:
            rows = [i for i in range(span.offset, span.offset + span.n_rows) if counts[i]]
            if not rows:
                continue
            recent = self._of(span.request).recent
            series = [*recent, *values[rows].tolist()]
            recent.extend(series[-len(rows) :])
            if len(series) == n:  # the usual case: one row
                means[rows[-1]] = sum(series) / n
            elif len(series) > n:
                full = np.lib.stride_tricks.sliding_window_view(np.array(series), n).mean(axis=1)
                means[rows[-len(full) :]] = full
        return means

    def _of(self, request: str) -> _RequestState:
        found = self.requests.get(request)
        if found is None:
            found = self.requests[request] = _RequestState(deque(maxlen=max(1, self.rule.mean_over - 1)))
        return found

    def _fire(self, step: Step, request: str, rows: np.ndarray, values: np.ndarray) -> Firing | None:
        state, rule = self._of(request), self.rule
        if rule.cooldown is not None:
            rows = state.outside_cooldown(rule.cooldown, step, rows)
            if not len(rows):
                return None
        begins = not state.holds or rule.cooldown is not None
        self.firings += begins
        positions = step.meta["position"][rows]
        windows = _windows(rule, positions, step.time_ns)
        return Firing(rule, request, int(positions[0]), float(values[rows[0]]), windows, begins)

    def _reset_others(self, step: Step, counts: np.ndarray, hit: set[str]) -> None:
        """Reset `holds` of requests that had counted rows and no hit in this step, so that their next firing begins anew."""
        held = [request for request, state in self.requests.items() if state.holds and request not in hit]
        if not held:
            return
        seen = {s.request for s in step.spans if counts[s.offset : s.offset + s.n_rows].any()}
        for request in held:
            self.requests[request].holds = request not in seen


class TriggerEvaluator:
    """Evaluates rules on probe scores, float32 [n, width]. Not thread-safe.

    A rule costs a few array operations for each step; a rule with a mean also costs a Python loop over the spans.

    Probes are looked up by id in the table of the step's generation. A rule whose probe is missing from a table logs one warning
    and stays inactive until the probe appears. When a probe is replaced, its rule discards the earlier scores.
    """

    def __init__(self, rules: Sequence[ProbeRule], special_ids: Collection[int] = ()) -> None:
        self._rules = [_RuleState(rule) for rule in rules]
        self._special = np.zeros(max([*special_ids, 0]) + 2, bool)  # the last entry covers all larger ids and -1
        self._special[list(special_ids)] = True
        self._tables: dict[int, dict[str, _Column]] = {}
        self._generation = -1

    def learn(self, table: bytes) -> None:
        """Add a table of probes (`Bank.table`, JSON) for the steps of its generation. Keeps the newest 16 tables."""
        found = decode_json(table, _Table, RecordingError, "a table of probes")
        columns = {column.id: column for column in found.probes}
        self._tables[found.generation] = columns
        for rule in self._rules:
            rule.warn_if_absent(set(columns))
        while len(self._tables) > 16:
            del self._tables[min(self._tables)]

    def state(self) -> list[TriggerFacts]:
        """Return for each rule its text, the number of firings that began, and whether its probe is loaded."""
        return [{"rule": r.rule.text, "firings": r.firings, "probe_loaded": r.column is not None} for r in self._rules]

    def forget(self, request: str) -> None:
        """Discard the state of a finished request."""
        for rule in self._rules:
            rule.requests.pop(request, None)

    def evaluate(self, step: Step, scores: Any) -> list[Firing]:
        """Return the firings of all rules in this step, given its scores float32 [n, width], a numpy array or a torch tensor."""
        if not self._rules or not step.n_rows:
            return []
        if step.generation != self._generation:
            self._use(step.generation)
        values, _ = as_numpy(scores)
        ids = step.meta["token_id"]
        eligible = ~self._special[np.minimum(ids, len(self._special) - 1)]
        eligible &= (step.meta["flags"] & SPURIOUS_ROWS) == 0
        return [firing for rule in self._rules for firing in rule.evaluate(step, values, eligible)]

    def _use(self, generation: int) -> None:
        table = self._tables.get(generation)
        if table is not None:
            self._generation = generation
        for rule in self._rules:
            rule.use(table or {})  # without a table the columns are unknown, so scores are ignored


def _windows(rule: ProbeRule, positions: np.ndarray, time_ns: int) -> tuple[KeepWindow, ...]:
    """Return the union of the windows around these ascending positions of one step, as disjoint windows."""
    before = rule.before.tokens if rule.before is not None else None
    after = rule.after.tokens if rule.after is not None else None
    if before is None or after is None:  # one end is open or in time, so one window covers all
        at = int(positions[0] if after is None else positions[-1])
        return (KeepWindow.around(at, time_ns, rule.before, rule.after),)
    apart = np.flatnonzero(np.diff(positions) > before + after + 1) + 1
    runs = np.split(positions, apart)
    return tuple(KeepWindow(max(0, int(run[0]) - before), int(run[-1]) + after) for run in runs)

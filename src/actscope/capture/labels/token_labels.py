"""Labels of a pass over tokens: request and position of each row, from the arguments of forward alone."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from actscope.capture.labels import ambiguity
from actscope.capture.labels.ambiguity import AmbiguousLabels
from actscope.capture.labels.cache_state import CacheState, anchor_of, sample_of, state_of
from actscope.capture.labels.forward_inputs import ForwardInputs, check_positions
from actscope.capture.labels.position_filter import PositionFilter
from actscope.capture.labels.request_ids import RequestIds
from actscope.capture.labels.scopes import Scope, Story
from actscope.capture.labels.sequences import Sequences
from actscope.clock import monotonic_ns
from actscope.frames import NO_FLAGS, ROW_META, RowFlag, Span, SpanFlag, Step


@dataclass(frozen=True, slots=True)
class Labelled:
    """Labels of a pass that is about to run.

    `index`, int64 [n], selects rows of the flattened batch; None selects all.
    """

    step: Step
    index: np.ndarray | None
    shape: tuple[int, ...]
    """Leading dimensions of the hidden states that carry these rows."""
    sequences: Sequences
    left_out: int
    """Rows of real tokens that the sample or the granularity omits."""
    after_end: int
    """Rows computed for requests whose answer had ended. They are not taken."""
    finish: Callable[[], None]
    """Must be called after the complete pass, before the next pass over these sequences."""


class Requests:
    """Registry of the sequences that may still continue, by their cache or scope. Thread-safe."""

    def __init__(self, naming: RequestIds, keep: Callable[[str], bool]) -> None:
        self.naming = naming
        self.keep = keep
        self._by_cache: dict[int, tuple[weakref.ref[object], Sequences]] = {}
        self._ended: deque[Sequences] = deque()
        self._unreported: deque[Span] = deque()
        self._here = threading.local()
        self._lock = (
            threading.RLock()
        )  # reentrant: the garbage collector may drop a cache while this thread holds the lock

    def of(self, cache: object) -> Sequences | None:
        """Return the sequences of a cache, or None if its passes were not observed."""
        anchor = anchor_of(cache)
        found = self._by_cache.get(id(anchor))
        return found[1] if found is not None and found[0]() is anchor else None

    def columns_in(self, cache: object, state: CacheState) -> int:
        """Return the number of columns in a cache: what it tells itself, or else the count of the passes that were observed.

        Args:
            cache: A cache or recurrent state; None if there is none.
            state: What it tells (`state_of`).

        Raises:
            AmbiguousLabels: The cache does not tell, and passes over it were not observed.
        """
        sequences = self.of(cache)
        if state.columns is None:
            if sequences is None:
                raise AmbiguousLabels(ambiguity.STATE_UNSEEN)
            if sequences.sample is not None and not sequences.sample.equals(sample_of(cache)):
                raise AmbiguousLabels(ambiguity.CACHE_GREW)
            return sequences.columns
        if not state.certain and not state.columns and sequences is not None and sequences.columns:
            raise AmbiguousLabels(ambiguity.FOREIGN_CACHE)
        return state.columns

    def begin(self, inputs: ForwardInputs, scope: Scope) -> Sequences:
        """Return sequences for a pass without a known cache: the scope's latest, restarted, if the pass repeats their tokens."""
        story = scope.story
        earlier = story.latest if story is not None else None
        if earlier is not None and inputs.past == 0 and earlier.begins(inputs):
            return earlier.again()
        names = self.naming.name(scope.ids, inputs.lanes)
        if inputs.past:
            return Sequences.adopt(names, self.keep, inputs)
        return Sequences.begin(names, self.keep)

    def hold(self, sequences: Sequences, cache: object) -> None:
        """Keep these sequences open as long as this cache is alive."""
        anchor = anchor_of(cache)
        key = id(anchor)
        with self._lock:
            known = self._by_cache.get(key)
            if known is not None and known[1] is sequences:
                return
            if known is not None:
                self._drop(key)
            self._by_cache[key] = (weakref.ref(anchor, lambda _: self._drop(key)), sequences)
            sequences.holders += 1

    def tell(self, story: Story, sequences: Sequences) -> None:
        """Set the latest sequences of a scope."""
        with self._lock:
            if story.latest is not sequences:
                sequences.holders += 1
                self.close(story)
                story.latest = sequences

    def close(self, story: Story, *, aborted: bool = False) -> None:
        """End a scope and release its sequences. `aborted`: an exception ended it."""
        with self._lock:
            latest, story.latest = story.latest, None
            if latest is not None:
                latest.aborted |= aborted
                self._release(latest)

    def end_if_done(self, sequences: Sequences) -> None:
        """Mark the sequences as ended if no cache or scope references them."""
        with self._lock:
            if not sequences.holders:
                self._ended.append(sequences)

    def ran(self, sequences: Sequences) -> None:
        """Record these sequences as the last ones that this thread ran."""
        self._here.latest = sequences

    @property
    def last_here(self) -> tuple[str, ...]:
        """Requests of this thread's last pass."""
        latest: Sequences | None = getattr(self._here, "latest", None)
        return tuple(latest.requests) if latest is not None else ()

    def reach_of(self, request: str) -> int:
        """Return the position after a request's last labeled one; 0 if this thread's last pass does not contain the request.

        Positions after the request's end do not count.
        """
        latest: Sequences | None = getattr(self._here, "latest", None)
        if latest is None or request not in latest.requests:
            return 0
        lane = latest.requests.index(request)
        return int(min(latest.reach[lane], latest.ended_at[lane]))

    def close_all(self, *, aborted: bool = False) -> None:
        """Release the sequences of all caches. `aborted`: an exception ended the capture."""
        with self._lock:
            for key in list(self._by_cache):
                self._by_cache[key][1].aborted |= aborted
                self._drop(key)

    def take_ended(self, offset: int) -> list[Span]:
        """Return one END span without rows, at `offset`, for each request that has ended since the last call."""
        found: dict[str, Span] = {}
        while self._unreported:
            span = self._unreported.popleft()
            found[span.request] = replace(span, offset=offset)
        while self._ended:
            sequences = self._ended.popleft()
            flags = SpanFlag.END | SpanFlag.ABORTED if sequences.aborted else SpanFlag.END
            lanes = zip(sequences.requests, sequences.kept.tolist(), sequences.final.tolist(), strict=True)
            for request, kept, final in lanes:
                if kept:
                    found[request] = Span(request, final, 0, offset, flags)
        return list(found.values())

    def take_back(self, step: Step) -> None:
        """Requeue the END spans of a step that was not delivered."""
        self._unreported.extend(span for span in step.spans if span.flags & SpanFlag.END)

    def _drop(self, key: int) -> None:
        with self._lock:
            known = self._by_cache.pop(key, None)
            if known is not None:
                self._release(known[1])

    def _release(self, sequences: Sequences) -> None:
        sequences.holders -= 1
        if not sequences.holders and sequences.trouble is not ambiguity.CACHE_TAKEN:
            self._ended.append(sequences)


class TokenLabels:
    """Labels passes of a model that is called with token ids, or their embeddings. Thread-safe."""

    def __init__(self, requests: Requests, granularity: PositionFilter) -> None:
        self.requests = requests
        self.granularity = granularity

    def label(self, inputs: ForwardInputs, scope: Scope, number: int) -> Labelled:
        """Return the labels of a pass that is about to run, as step `number`. Raises AmbiguousLabels if they are ambiguous."""
        sequences = self.requests.of(inputs.cache) if inputs.past else None
        if sequences is not None:
            sequences.check(inputs)
            if inputs.past < sequences.columns:  # the cache was cropped: those positions are computed again
                sequences.crop(inputs.past)
        real = inputs.real
        fresh = sequences is None
        if sequences is None:
            check_positions(inputs.positions, real, np.cumsum(real, axis=1) - 1)
            sequences = self.requests.begin(inputs, scope)
        positions = sequences.tokens_before(inputs.past)[:, None] + np.cumsum(real, axis=1) - 1
        if not fresh:
            check_positions(inputs.positions, real, positions)
        return self._labelled(inputs, scope, number, sequences, real, positions)

    def _labelled(
        self,
        inputs: ForwardInputs,
        scope: Scope,
        number: int,
        sequences: Sequences,
        real: np.ndarray,
        positions: np.ndarray,
    ) -> Labelled:
        prompt = _prompt_columns(inputs, scope, sequences)
        if prompt.any():
            ends = (positions + 1) * (real & prompt)
            sequences.n_prompt = np.maximum(sequences.n_prompt, ends.max(axis=1))
        cells = Cells(positions, _flags(inputs, scope, sequences, prompt, positions, real), inputs.ids, real)
        return assemble(
            self.requests, self.granularity, sequences, cells, number, lambda: sequences.advance(inputs, positions)
        )

    def finish(self, labelled: Labelled, inputs: ForwardInputs, scope: Scope, cache: object) -> None:
        """Update the state after a complete pass; `cache` is the key-value cache that it returned, or None."""
        sequences = labelled.sequences
        labelled.finish()
        self.requests.ran(sequences)
        if cache is not None:
            state = state_of(cache)
            sequences.sample = sample_of(cache) if state is not None and state.columns is None else None
            self.requests.hold(sequences, cache)
        if scope.story is not None:
            self.requests.tell(scope.story, sequences)
        self.requests.end_if_done(sequences)


def _prompt_columns(inputs: ForwardInputs, scope: Scope, sequences: Sequences) -> np.ndarray:
    """Return which columns of this pass are prompt, not generated tokens: bool [columns].

    A call of `generate` determines it. Otherwise the first pass and any pass of several columns count as prompt.
    """
    generation = scope.generation
    whole = 0 if sequences.passes else inputs.columns
    if generation is not None and generation.is_of(sequences.requests, whole):
        return np.arange(inputs.past, inputs.past + inputs.columns) < generation.prompt_end(inputs.past)
    return np.full(inputs.columns, sequences.passes == 0 or inputs.columns > 1)


def _flags(
    inputs: ForwardInputs,
    scope: Scope,
    sequences: Sequences,
    prompt: np.ndarray,
    positions: np.ndarray,
    real: np.ndarray,
) -> np.ndarray:
    """Return the RowFlag of each row, uint32 [lanes, columns]. Also updates `sequences.ended_at`."""
    flags = np.where(prompt[None, :], np.uint32(RowFlag.PREFILL), np.uint32(0))
    flags = flags | np.where(positions < sequences.reach[:, None], np.uint32(RowFlag.RECOMPUTED), np.uint32(0))
    if scope.generation is not None and inputs.ids is not None and len(scope.generation.ends):
        sequences.go_on_at(positions, real & prompt[None, :])
        sequences.end_at(positions, np.isin(inputs.ids, scope.generation.ends) & real & ~prompt[None, :])
        over = positions >= sequences.ended_at[:, None]
        flags = flags | np.where(over, np.uint32(RowFlag.AFTER_EOS), np.uint32(0))
    return flags


@dataclass(frozen=True, slots=True)
class Cells:
    """Arrays [lanes, columns]: position, RowFlag, token id (None if unknown), and whether the cell is a token."""

    positions: np.ndarray
    flags: np.ndarray
    ids: np.ndarray | None
    real: np.ndarray


def assemble(
    requests: Requests,
    granularity: PositionFilter,
    sequences: Sequences,
    cells: Cells,
    number: int,
    finish: Callable[[], None],
) -> Labelled:
    """Return the step of these cells without those that the sample or granularity omits, or that follow a request's end."""
    over = (cells.flags & np.uint32(RowFlag.AFTER_EOS)) > 0
    mine = cells.real & ~over
    keep = mine & sequences.kept[:, None]
    if granularity.selects:
        keep &= granularity.wanted(cells.positions, sequences.n_prompt)
    counts = keep.sum(axis=1)
    n_rows = int(counts.sum())
    reach = np.where(mine, cells.positions + 1, 0).max(axis=1)
    spans = _spans(sequences, cells.positions, keep, counts, None if not granularity.selects else reach)
    ended = requests.take_ended(n_rows)
    meta = np.zeros(n_rows, ROW_META)
    meta["position"], meta["flags"], meta["step"] = cells.positions[keep], cells.flags[keep], number
    meta["token_id"] = -1 if cells.ids is None else cells.ids[keep]
    meta["span"] = np.repeat([i for i, span in enumerate(spans) if span.n_rows], counts[counts > 0])
    return Labelled(
        Step(number, monotonic_ns(), (*spans, *ended), meta),
        None if n_rows == keep.size else np.flatnonzero(keep),
        keep.shape,
        sequences,
        int(np.count_nonzero(mine)) - n_rows,
        int(np.count_nonzero(cells.real & over)),
        finish,
    )


def _spans(
    sequences: Sequences, positions: np.ndarray, keep: np.ndarray, counts: np.ndarray, reach: np.ndarray | None
) -> list[Span]:
    """Return one span per lane with rows.

    If positions are omitted, a further span without rows states the request's length: `reach`, int64 [lanes], 0 if this pass
    has no token of it.
    """
    spans: list[Span] = []
    offset = 0
    firsts = positions[np.arange(len(positions)), keep.argmax(axis=1)].tolist()
    for lane, count in enumerate(counts.tolist()):
        request, n_prompt = sequences.requests[lane], int(sequences.n_prompt[lane])
        if count:
            flags = SpanFlag.FIRST if not sequences.passes or not firsts[lane] else NO_FLAGS
            spans.append(Span(request, firsts[lane], count, offset, flags, n_prompt))
            offset += count
        if reach is not None and sequences.kept[lane] and reach[lane]:
            spans.append(Span(request, int(reach[lane]), 0, offset, NO_FLAGS, n_prompt))
    return spans

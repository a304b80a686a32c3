"""Publisher: turns the output of a pass into labeled steps in the score ring and the row ring. One thread at a time."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from actscope.clock import monotonic_ns
from actscope.counters import counted, counting
from actscope.engines.vllm.publishing.device_copy import HostPass
from actscope.engines.vllm.publishing.labels import PassLabels, Register, RequestState
from actscope.engines.vllm.publishing.prefix_scores import PrefixScores
from actscope.frames import NO_TIMES, ROW_META, SCORES, Frame, PassTimes, Span, SpanFlag, SplitFrame, Step
from actscope.ring.host import RingWriter
from actscope.taps.tap import TapBuffers

log = logging.getLogger("actscope.vllm")

#: Maximum number of cached-prefix rows in one step.
_CHUNK = 4096
#: Maximum number of cached-prefix rows looked up behind one pass: 1.6 ms for 64 probes. The ring's share is the other bound.
_CACHED_ROWS_PER_PASS = 8192
#: Cached rows that follow one pass fill at most this part of the ring, so that readers keep up and keep the rows of others.
_RING_SHARE = 4


@dataclass(slots=True)
class PassNote:
    """Host-side description of a pass, made when it is launched. It is queued with the pass's copies, in order.

    Attributes:
        requests: Requests of the pass, in row order.
        starts: int64 [n + 1]; first row of each request.
        begun: Requests scheduled for the first time, or again after preemption.
        ended: Ids of finished requests.
        generation: Generation of the probe bank.
        columns_of: Score columns that each site fills.
        since: int64 [width]; generation at which each column got its probe.
        blocks: (request, new KV blocks, whether they replace all earlier ones).
        copies: (source, destination) KV blocks that vLLM copies before the pass.
        n_rows: Number of scheduled tokens.
        times: When the pass crossed the borders of the engine; without tokens only when those of the pass before were drawn.
    """

    requests: Sequence[str]
    starts: np.ndarray
    begun: Sequence[RequestState]
    ended: Sequence[str]
    generation: int
    columns_of: dict[int, list[int]]
    since: np.ndarray
    blocks: Sequence[tuple[str, list[int], bool]] = ()
    copies: Sequence[tuple[int, int]] = ()
    n_rows: int = 0
    times: PassTimes = NO_TIMES


@counting("model")
@dataclass(slots=True)
class PublishedCounts:
    """Exact row counts over all passes. A row is one token of one pass, whatever the number of sites.

    Attributes:
        passes: Passes whose rows were published.
        rows: Rows in the score ring.
        uncertain_rows: Rows that no request could be named for with certainty; not delivered.
        dropped_rows: Rows of passes that were dropped on the way to the host, or that failed.
        failed_passes: Passes that could not be labelled or published; their rows are among `dropped_rows`.
        cached_rows: Rows taken from the scores of cached prompts.
        cached_dropped_rows: Positions of cached prompts whose stored scores were not delivered: their request ended, or was
            preempted, before its turn.
        tap_faults: Sites, summed over passes, whose tap did not run exactly once.
        raw_rows: Rows in the ring of raw rows.
        raw_dropped_rows: Rows that are not in the ring of raw rows although they were wanted.
    """

    passes: int = counted("work", "Passes of the model that were observed.")
    rows: int = counted("work", "Rows that were labeled and published, one for each token of a pass.")
    uncertain_rows: int = counted(
        "doubt",
        "Rows that could not be assigned to a request with certainty; they have no scores.",
        "Rows of prompt embeddings are always among them. If there are others, please report it, with vLLM's log.",
    )
    dropped_rows: int = counted(
        "loss",
        "Rows of passes that were dropped, because the copies of earlier passes were still under way or a pass failed.",
        "Tap fewer sites (ACTSCOPE_SITES, ACTSCOPE_ROW_SITES), or raise ACTSCOPE_BUFFER_GB.",
    )
    failed_passes: int = counted(
        "fault",
        "Passes that could not be labeled or published; their rows are among model_dropped_rows, generation went on.",
        "See vLLM's log for the first one, and report it.",
    )
    cached_rows: int = counted("work", "Rows whose scores were taken over with a cached prompt.")
    cached_dropped_rows: int = counted(
        "loss",
        "Positions of cached prompts whose stored scores were not delivered, because their request ended or was preempted "
        "before their turn.",
        "Raise ACTSCOPE_BUFFER_GB, or start vLLM with --no-enable-prefix-caching if every position must have scores.",
    )
    tap_faults: int = counted(
        "fault",
        "Taps that did not run exactly once in a pass; the scores and rows of their sites are missing there.",
        "See vLLM's log for the names of the sites. If all are missing, the compiled model has no taps: start vLLM with "
        "--enforce-eager or an empty compile cache (VLLM_DISABLE_COMPILE_CACHE=1), and report it.",
    )
    raw_rows: int = counted("work", "Raw rows that were sent to the recorder.")
    raw_dropped_rows: int = counted(
        "loss",
        "Raw rows that were not sent to the recorder, because their pass was dropped or a tap did not run.",
        "See model_dropped_rows and model_tap_faults.",
    )


@dataclass(slots=True, eq=False)
class _CachedGap:
    """Positions `low` to `high` of a request that came from the prefix cache and are not published yet."""

    known: RequestState
    low: int
    high: int


class Publisher:
    """Writes both rings.

    `rows_ring` is None if no raw rows are kept. `prefix` and `kv_group`, the KV cache group that holds the prefix cache's blocks,
    are None if scores of cached prompts are not kept. `ring_rows` is the capacity of the score ring.

    A cached prompt may be longer than the ring. Its scores follow several passes then, a part each, while the request runs.
    """

    def __init__(
        self,
        ring: RingWriter,
        rows_ring: RingWriter | None,
        prefix: PrefixScores | None,
        sites: Sequence[str],
        kept: Sequence[int],
        buffers: TapBuffers,
        kv_group: int | None = None,
        ring_rows: int = 65536,
    ) -> None:
        self.kv_group = kv_group
        self._cached_at_once = max(1, min(_CACHED_ROWS_PER_PASS, ring_rows // _RING_SHARE))
        self._cached_at_end = max(1, ring_rows // _RING_SHARE)
        self._gaps: deque[_CachedGap] = deque()
        self._ring, self._rows_ring, self._prefix = ring, rows_ring, prefix
        self._sites, self._kept = [*sites, "the SAE's site"], kept
        self._width, self._n_columns = buffers.width, buffers.n_columns
        self._register = Register()
        self._fired = np.zeros(len(buffers.fired), np.int64)
        self._silent: set[int] = set()
        self._refused: frozenset[int] = frozenset()
        self._unseen = 0  # passes with dropped rows since the last published one
        self._step = 0
        self._is_latest = False  # whether the latest pass was published, under the number `_step`
        self._weights = 0
        self.counts = PublishedCounts()

    def forget_passes(self, fired: np.ndarray) -> None:
        """Reset the tap counters after passes that served no request: warm-up, profiling, graph capture."""
        self._fired, self._unseen = fired.copy(), 0

    def expect_dummy(self) -> None:
        """Expect that the taps also count a pass that serves no request and is not published."""
        self._unseen += 1

    def weights_changed(self, version: int, fired: np.ndarray, refused: Collection[int]) -> None:
        """Forget scores of the old weights, and deliver nothing of `refused` taps. `fired` is as in `forget_passes`."""
        self.forget_passes(fired)
        self._weights = version
        self._refused = frozenset(refused)
        if self._prefix is not None:
            self._prefix.forget()

    def publish(self, note: PassNote, on_host: HostPass | None) -> None:
        """Publish one pass.

        `on_host` is None if the rows were dropped on the way, or if there was no pass and requests only began or ended.
        """
        if self._gaps:
            self._end_gaps(note)
        ended = self._register.end(note.ended)
        for known in note.begun:
            self._register.add(known)
        for request, blocks, anew in note.blocks:
            self._more_blocks(request, blocks, anew)
        if on_host is None:
            self._unseen += note.n_rows > 0
            self._publish_without_rows(note, ended)
            return
        try:
            self._publish_pass(note, on_host, ended)
        except Exception:  # a fault of ours must cost this pass alone: requests begin and end all the same
            if not self.counts.failed_passes:
                log.exception("a pass could not be published (further ones are only counted); generation goes on")
            self.counts.failed_passes += 1
            self._fired, self._unseen = on_host.fired.copy(), 0
            self._publish_without_rows(note, ended, on_host.slots)

    def _publish_pass(self, note: PassNote, on_host: HostPass, ended: tuple[Span, ...]) -> None:
        labels = self._register.label(
            note.requests, note.starts, on_host.positions, on_host.token_ids, self._step + 1, on_host.rejected
        )
        silent = sorted({*self._silent_sites(on_host.fired), *self._refused})
        scores = self._scores(on_host.scores, labels, silent, note.columns_of)
        self._step += 1
        spans = labels.spans
        if self._prefix is not None and on_host.slots is not None:
            self._keep(note, labels, scores, on_host.slots, self._prefix)
            if labels.gaps or self._gaps:
                spans = self._publish_cached(note, labels, self._prefix)
        step = self._new_step(spans + ended, labels.meta, note.generation, self._times_of(note, on_host))
        raw = None if self._rows_ring is None else self._raw_rows(step, ended, labels, scores, on_host.rows, silent)
        self._ring.write(step, [Frame(SCORES, scores)])
        self.counts.passes += 1
        self.counts.rows += step.n_rows
        self.counts.uncertain_rows += labels.uncertain
        if raw is not None and self._rows_ring is not None:
            self._rows_ring.write(*raw)
            self.counts.raw_rows += raw[0].n_rows

    # --- parts of a pass ---

    def _new_step(
        self, spans: tuple[Span, ...], meta: np.ndarray, generation: int, times: PassTimes = NO_TIMES
    ) -> Step:
        return Step(self._step, monotonic_ns(), spans, meta, generation, self._weights, times)

    def _times_of(self, note: PassNote, on_host: HostPass) -> PassTimes:
        """Return the times of a pass that is published. Those of the pass before it are known by this number less one."""
        times, told = note.times, self._is_latest
        self._is_latest = True
        if on_host.landed_ns:
            times = times._replace(ended_ns=on_host.landed_ns)
        return times if told else times._replace(before_sampling_ns=0, before_sampled_ns=0)

    def _times_without_rows(self, note: PassNote) -> PassTimes:
        """Return when the tokens of the latest published pass were drawn, for a step without rows under its number."""
        times, told = note.times, self._is_latest
        if note.n_rows:  # this pass has no number: what follows tells of its sampling, not of the published one's
            self._is_latest = False
            times = PassTimes(sampling_ns=times.before_sampling_ns, sampled_ns=times.before_sampled_ns)
        return times if told else NO_TIMES

    def _publish_without_rows(self, note: PassNote, ended: tuple[Span, ...], slots: np.ndarray | None = None) -> None:
        """Publish the ends, count the rows, and forget cached scores that the pass has overwritten (`slots`, None: unknown)."""
        self.counts.dropped_rows += note.n_rows
        times = self._times_without_rows(note)
        if self._prefix is not None and slots is None:
            self._prefix.copy_blocks(note.copies)
        if self._prefix is not None and note.n_rows:
            self._forget_written(note, slots, self._prefix)
        if self._rows_ring is not None and note.n_rows:
            self.counts.raw_dropped_rows += self._wanted_rows(note)
        if not ended:
            return
        step = self._new_step(ended, np.empty(0, ROW_META), note.generation, times)
        self._ring.write(step, [Frame(SCORES, np.empty((0, self._n_columns), np.float32))])
        if self._rows_ring is not None:
            self._rows_ring.write(step, [])

    def _wanted_rows(self, note: PassNote) -> int:
        """Return how many rows of a dropped pass were wanted raw; all of them if its requests are not known."""
        if not note.requests:
            return note.n_rows
        known = [self._register.get(request) for request in note.requests]
        sizes = np.diff(note.starts).tolist()
        return sum(n for n, one in zip(sizes, known, strict=True) if one is not None and one.wants_rows)

    def _forget_written(self, note: PassNote, slots: np.ndarray | None, prefix: PrefixScores) -> None:
        """Forget the scores of the KV slots that the pass may have written: its requests' slots from their next position on."""
        known = [self._register.get(request) for request in note.requests]
        if not known or None in known or (slots is not None and note.copies):  # what it wrote is not known
            prefix.forget()
            return
        prefix.forget(np.empty(0, np.int64) if slots is None else slots)
        for one in known:
            if one is not None:
                prefix.forget_behind(one)

    def _more_blocks(self, request: str, blocks: list[int], anew: bool) -> None:
        known = self._register.get(request)
        if known is None:
            return
        known.blocks = list(blocks) if anew else known.blocks + blocks
        if anew:  # after preemption: it may be computed again from any position
            known.next_position = 0
            self._drop_gaps([gap for gap in self._gaps if gap.known is known])

    def _silent_sites(self, fired: np.ndarray) -> list[int]:
        """Return the sites whose tap did not run exactly once in this pass. None of their data is delivered."""
        ran = fired - self._fired - self._unseen
        self._fired, self._unseen = fired.copy(), 0
        silent = np.flatnonzero(ran != 1).tolist()
        if silent:
            self.counts.tap_faults += len(silent)
            new = [site for site in silent if site not in self._silent]
            self._silent.update(new)
            for site in new:
                log.error(
                    "the tap at %s ran %d times in a pass, expected once: its scores and rows are not delivered "
                    "(further ones are only counted); generation continues",
                    self._sites[site],
                    ran[site],
                )
        return silent

    def _scores(
        self, scores: np.ndarray, labels: PassLabels, silent: list[int], columns_of: dict[int, list[int]]
    ) -> np.ndarray:
        chosen = scores if labels.index is None else scores[labels.index]
        columns = [column for site in silent for column in columns_of.get(site, ())]
        if len(self._sites) - 1 in silent:
            columns += range(self._width, self._n_columns)
        if columns:
            chosen = chosen.copy()
            chosen[:, columns] = np.nan
        return chosen

    def _raw_rows(
        self,
        step: Step,
        ended: tuple[Span, ...],
        labels: PassLabels,
        scores: np.ndarray,
        rows: np.ndarray | None,
        silent: list[int],
    ) -> tuple[Step, list[SplitFrame]] | None:
        """Return what the ring of raw rows gets of a pass: the rows of the requests that want them, and all ends.

        Each row starts with its scores. `rows` is None if no request of the pass wants any. None: there is nothing to write.
        """
        wanting = [known.wants_rows for known in labels.known]
        if any(site in self._kept for site in silent):
            spans = zip(labels.spans, wanting, strict=True)
            self.counts.raw_dropped_rows += sum(span.n_rows for span, wants in spans if wants)
            rows = None
        if rows is None or not any(wanting):
            return (replace(step, spans=ended, meta=step.meta[:0]), []) if ended else None
        if labels.index is not None:
            rows = rows[labels.index]
        if not all(wanting):
            step, mask = _only(step, labels, wanting, ended)
            scores, rows = scores[mask], rows[mask]
        else:
            step = replace(step, spans=(*labels.spans, *ended))
        step = replace(step, spans=_without_early_first(step.spans, labels))
        heads = np.ascontiguousarray(scores).view(rows.dtype)
        return _with_option_flags(step, labels), [SplitFrame(SCORES, (heads, rows))]

    def _keep(
        self, note: PassNote, labels: PassLabels, scores: np.ndarray, slots: np.ndarray, prefix: PrefixScores
    ) -> None:
        """Store this pass's scores under their KV slots.

        Must run before cached scores are looked up: vLLM also shares blocks that are computed in this very pass.
        """
        prefix.copy_blocks(note.copies)
        prefix.since = note.since
        if labels.index is not None:
            prefix.forget(slots)
            slots = slots[labels.index]
        prefix.keep(slots, labels.meta, scores, note.generation)

    def _publish_cached(self, note: PassNote, labels: PassLabels, prefix: PrefixScores) -> tuple[Span, ...]:
        """Publish scores of positions found in the prefix cache, as computed for earlier requests: as many as one pass allows.

        A request's blocks are its own only in passes that it takes part in, so the rest waits for its next one.

        Returns the spans of the pass, without FIRST on those whose request already had a cached span.
        """
        spans = {span.request: span for span in labels.spans}
        self._gaps.extend(_CachedGap(*gap) for gap in labels.gaps)
        room = self._cached_at_once
        for gap in list(self._gaps):
            if room <= 0:
                break
            own = spans.get(gap.known.name)
            if own is None or gap.known.last_step != self._step:
                continue
            before = self.counts.cached_rows
            room -= self._publish_part(gap, room, own.flags, note.generation, prefix)
            if self.counts.cached_rows > before:
                spans[gap.known.name] = replace(own, flags=SpanFlag(0))
            if gap.low >= gap.high:
                self._gaps.remove(gap)
        return tuple(spans.values())

    def _publish_part(self, gap: _CachedGap, room: int, flags: SpanFlag, generation: int, prefix: PrefixScores) -> int:
        """Publish the next positions of a gap, at most `room`. Return how many were looked up."""
        known, low = gap.known, gap.low
        gap.low = min(gap.high, low + room)
        for meta, scores in prefix.find(known, low, gap.low, _CHUNK):
            meta["step"] = self._step
            span = Span(known.name, int(meta["position"][0]), len(meta), 0, flags, known.n_prompt)
            flags = SpanFlag(0)
            step = self._new_step((span,), meta, generation)
            self._ring.write(step, [Frame(SCORES, scores)])
            self.counts.cached_rows += len(meta)
        return gap.low - low

    def _end_gaps(self, note: PassNote) -> None:
        """Publish the cached scores of requests that have ended, as many as the ring has room for; count the others as dropped.

        Their blocks may belong to others from this pass on, so this comes before its scores are kept.
        """
        ended = set(note.ended)
        over = [gap for gap in self._gaps if gap.known.request in ended]
        room = self._cached_at_end
        for gap in over:
            if self._prefix is not None and gap.known.last_step == self._step and room > 0:  # not preempted meanwhile
                room -= self._publish_part(gap, room, SpanFlag(0), note.generation, self._prefix)
        self._drop_gaps(over)

    def _drop_gaps(self, gaps: Sequence[_CachedGap]) -> None:
        for gap in gaps:
            self._gaps.remove(gap)
            self.counts.cached_dropped_rows += gap.high - gap.low


def _without_early_first(spans: tuple[Span, ...], labels: PassLabels) -> tuple[Span, ...]:
    """Remove FIRST where rows of the request came before, in passes that were dropped: the recorder counts them as lost."""
    late = {
        k.name for k, s in zip(labels.known, labels.spans, strict=True) if s.flags and s.first_position > k.computed
    }
    if not late:
        return spans
    return tuple(replace(s, flags=s.flags & ~SpanFlag.FIRST) if s.request in late else s for s in spans)


def _with_option_flags(step: Step, labels: PassLabels) -> Step:
    """Mark the spans of requests that have recording options, so that the recorder waits for them."""
    with_options = {known.name for known in labels.known if known.has_options}
    if not with_options:
        return step
    spans = tuple(
        replace(s, flags=s.flags | SpanFlag.HAS_OPTIONS) if s.request in with_options else s for s in step.spans
    )
    return replace(step, spans=spans)


def _only(step: Step, labels: PassLabels, wanting: list[bool], ended: tuple[Span, ...]) -> tuple[Step, np.ndarray]:
    """Return the step restricted to the requests that want rows, and a bool mask of its rows."""
    spans: list[Span] = []
    offset = 0
    for span, wants in zip(labels.spans, wanting, strict=True):
        if wants:
            spans.append(replace(span, offset=offset))
            offset += span.n_rows
    mask = np.array(wanting, bool)[labels.meta["span"].astype(np.intp)] if len(labels.meta) else np.zeros(0, bool)
    meta = labels.meta[mask]
    meta["span"] = np.repeat(np.arange(len(spans)), [span.n_rows for span in spans])
    return replace(step, spans=(*spans, *ended), meta=meta), mask

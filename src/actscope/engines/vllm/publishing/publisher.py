"""Publisher: turns the output of a pass into labeled steps in the score ring and the row ring. One thread at a time."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from actscope.clock import monotonic_ns
from actscope.counters import counted, counting
from actscope.engines.vllm.publishing.device_copy import HostPass
from actscope.engines.vllm.publishing.labels import PassLabels, Register, RequestState
from actscope.engines.vllm.publishing.prefix_scores import PrefixScores
from actscope.frames import ROW_META, SCORES, Frame, Span, SpanFlag, SplitFrame, Step
from actscope.ring.host import RingWriter
from actscope.taps.tap import TapBuffers

log = logging.getLogger("actscope.vllm")

#: Maximum number of cached-prefix rows in one step.
_CHUNK = 4096


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


@counting("model")
@dataclass(slots=True)
class PublishedCounts:
    """Exact row counts over all passes. A row is one token of one pass, whatever the number of sites."""

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
    cached_rows: int = counted("work", "Rows whose scores were taken over with a cached prompt.")
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


class Publisher:
    """Writes both rings.

    `rows_ring` is None if no raw rows are kept. `prefix` and `kv_group`, the KV cache group that holds the prefix cache's blocks,
    are None if scores of cached prompts are not kept.
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
    ) -> None:
        self.kv_group = kv_group
        self._ring, self._rows_ring, self._prefix = ring, rows_ring, prefix
        self._sites, self._kept = [*sites, "the SAE's site"], kept
        self._width, self._n_columns = buffers.width, buffers.n_columns
        self._register = Register()
        self._fired = np.zeros(len(buffers.fired), np.int64)
        self._silent: set[int] = set()
        self._refused: frozenset[int] = frozenset()
        self._unseen = 0  # passes with dropped rows since the last published one
        self._step = 0
        self.counts = PublishedCounts()

    def forget_passes(self, fired: np.ndarray) -> None:
        """Reset the tap counters after passes that served no request: warm-up, profiling, graph capture."""
        self._fired, self._unseen = fired.copy(), 0

    def weights_changed(self, fired: np.ndarray, refused: Collection[int]) -> None:
        """Forget scores of the old weights, and deliver nothing of `refused` taps. `fired` is as in `forget_passes`."""
        self.forget_passes(fired)
        self._refused = frozenset(refused)
        if self._prefix is not None:
            self._prefix.forget()

    def publish(self, note: PassNote, on_host: HostPass | None) -> None:
        """Publish one pass.

        `on_host` is None if the rows were dropped on the way, or if there was no pass and requests only began or ended.
        """
        ended = self._register.end(note.ended)
        for known in note.begun:
            self._register.add(known)
        for request, blocks, anew in note.blocks:
            self._more_blocks(request, blocks, anew)
        if on_host is None:
            self._publish_without_rows(note, ended)
            return
        self._step += 1
        self.counts.passes += 1
        labels = self._register.label(
            note.requests, note.starts, on_host.positions, on_host.token_ids, self._step, on_host.rejected
        )
        self.counts.uncertain_rows += labels.uncertain
        silent = sorted({*self._silent_sites(on_host.fired), *self._refused})
        scores = self._scores(on_host.scores, labels, silent, note.columns_of)
        spans = labels.spans
        if self._prefix is not None and on_host.slots is not None:
            self._keep(note, labels, scores, on_host.slots, self._prefix)
            spans = self._publish_cached(note, labels, self._prefix)
        step = Step(self._step, monotonic_ns(), spans + ended, labels.meta, note.generation)
        self._ring.write(step, [Frame(SCORES, scores)])
        self.counts.rows += step.n_rows
        if on_host.rows is not None and self._rows_ring is not None:
            self._publish_rows(step, ended, labels, scores, on_host.rows, silent, self._rows_ring)

    # --- parts of a pass ---

    def _publish_without_rows(self, note: PassNote, ended: tuple[Span, ...]) -> None:
        self.counts.dropped_rows += note.n_rows
        self._unseen += note.n_rows > 0
        if self._prefix is not None:
            self._prefix.copy_blocks(note.copies)
            if note.n_rows:
                self._prefix.forget()
        if self._rows_ring is not None and note.n_rows:
            self.counts.raw_dropped_rows += note.n_rows
        if not ended:
            return
        step = Step(self._step, monotonic_ns(), ended, np.empty(0, ROW_META), note.generation)
        self._ring.write(step, [Frame(SCORES, np.empty((0, self._n_columns), np.float32))])
        if self._rows_ring is not None:
            self._rows_ring.write(step, [])

    def _more_blocks(self, request: str, blocks: list[int], anew: bool) -> None:
        known = self._register.get(request)
        if known is not None:
            known.blocks = list(blocks) if anew else known.blocks + blocks

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

    def _publish_rows(
        self,
        step: Step,
        ended: tuple[Span, ...],
        labels: PassLabels,
        scores: np.ndarray,
        rows: np.ndarray,
        silent: list[int],
        ring: RingWriter,
    ) -> None:
        """Publish raw rows of the requests that want them. Each row starts with its scores."""
        if any(site in self._kept for site in silent):
            self.counts.raw_dropped_rows += step.n_rows
            return
        wanting = [known.wants_rows for known in labels.known]
        if not any(wanting) and not ended:
            return
        if labels.index is not None:
            rows = rows[labels.index]
        if not all(wanting):
            step, mask = _only(step, labels, wanting, ended)
            scores, rows = scores[mask], rows[mask]
        heads = np.ascontiguousarray(scores).view(rows.dtype)
        ring.write(_with_option_flags(step, labels), [SplitFrame(SCORES, (heads, rows))])
        self.counts.raw_rows += step.n_rows

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
        """Publish scores of positions found in the prefix cache, as computed for earlier requests.

        Returns the spans of the pass, without FIRST on those whose request already had a cached span.
        """
        spans = {span.request: span for span in labels.spans}
        for known, low, high in labels.gaps:
            for meta, scores in prefix.find(known, low, high, _CHUNK):
                meta["step"] = self._step
                own = spans[known.name]
                span = Span(known.name, int(meta["position"][0]), len(meta), 0, own.flags, known.n_prompt)
                spans[known.name] = replace(own, flags=SpanFlag(0))
                step = Step(self._step, monotonic_ns(), (span,), meta, note.generation)
                self._ring.write(step, [Frame(SCORES, scores)])
                self.counts.cached_rows += len(meta)
        return tuple(spans.values())


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
    return Step(step.number, step.time_ns, (*spans, *ended), meta, step.generation), mask

"""Row labels: the request, position and token of each row of a pass, and its flags.

Positions and token ids are read from the model's own input buffers; the scheduler's plan is not used for them. The host only
adds history: how far each request had been computed before, so that recomputed rows can be flagged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actscope.frames import ROW_META, RowFlag, Span, SpanFlag
from actscope.ring.request_ids import ring_id

_FIRST, _NONE, _END = SpanFlag.FIRST, SpanFlag(0), SpanFlag.END
_AFTER_EOS = int(RowFlag.AFTER_EOS)


@dataclass(slots=True)
class RequestState:
    """Host-side state of a running request.

    Attributes:
        request: Request id, as the engine uses it.
        n_prompt: Prompt length in tokens.
        high: Positions below it were already published: computed and not rejected, or cached.
        stop_ids: Token ids that end an answer.
        limit: Position of the last token that `max_tokens` allows. A row there or later comes after the end.
        ended: Whether a row has shown that the answer is over. Later rows are flagged AFTER_EOS.
        published: Whether a span of the request was published. The first one carries FIRST.
        wants_rows: Whether its raw rows leave the model's process.
        has_options: Whether it has per-request recording options, delivered out of band (see RequestOptions).
        labelled: False for prompt embeddings, whose token ids are meaningless.
        name: Its name in the rings: `request`, or a shorter one for a long id.
        computed: Number of positions in the KV cache when the request was scheduled.
        blocks: Its KV blocks in the full-attention group.
        next_position: Position after the last one that a labelled pass computed. KV slots from there on may hold rows that were
            not seen.
        last_step: Step of the last labelled pass that it took part in.
        prompt: Its prompt token ids, if scores of cached prompts are kept.
    """

    request: str
    n_prompt: int
    high: int = 0
    stop_ids: frozenset[int] = frozenset()
    limit: int = 1 << 62
    ended: bool = False
    published: bool = False
    wants_rows: bool = False
    has_options: bool = False
    labelled: bool = True
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    next_position: int = 0
    last_step: int = 0
    prompt: Sequence[int] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        self.name = self.name or ring_id(self.request)


@dataclass(frozen=True, slots=True)
class PassLabels:
    """Labels of the rows of a pass that can be attributed.

    Attributes:
        index: Rows of the pass that are labeled, in order; None if all are.
        spans: One span per request.
        meta: ROW_META [n].
        known: The state of each span's request.
        gaps: (request, start, stop): positions before the request's rows that came from the prefix cache and were not published.
        uncertain: Number of rows that could not be attributed.
    """

    index: np.ndarray | None
    spans: tuple[Span, ...]
    meta: np.ndarray
    known: tuple[RequestState, ...]
    gaps: tuple[tuple[RequestState, int, int], ...] = ()
    uncertain: int = 0


class Register:
    """The running requests, by the engine's id. Not thread-safe."""

    def __init__(self) -> None:
        self._known: dict[str, RequestState] = {}

    def __len__(self) -> int:
        return len(self._known)

    def get(self, request: str) -> RequestState | None:
        """Return the state of a request, or None."""
        return self._known.get(request)

    def add(self, known: RequestState) -> RequestState:
        """Add a request when it is scheduled. After preemption or streaming input, keep its earlier progress."""
        before = self._known.get(known.request)
        if before is not None:
            known.high, known.published, known.ended = before.high, before.published, before.ended
            if known.n_prompt != before.n_prompt:  # streaming input: what was computed ahead of the new text is void
                known.high, known.ended = min(before.high, known.computed), False
        self._known[known.request] = known
        return known

    def end(self, requests: Iterable[str]) -> tuple[Span, ...]:
        """Remove finished requests and return their END spans (none for requests that never produced a row)."""
        gone = [self._known.pop(request, None) for request in sorted(requests)]
        return tuple(Span(k.name, 0, 0, 0, _END, k.n_prompt) for k in gone if k is not None and k.published)

    def label(
        self,
        requests: Sequence[str],
        starts: np.ndarray,
        positions: np.ndarray,
        token_ids: np.ndarray,
        step: int,
        rejected: np.ndarray | None = None,
    ) -> PassLabels:
        """Label the rows of one pass and advance the requests.

        Requests that are unknown, cannot be labeled, or whose positions do not rise by one are left out; their rows count as
        `uncertain`.

        Args:
            requests: The requests of the pass, in row order.
            starts: int [n + 1]; rows `starts[i]` to `starts[i + 1]` belong to `requests[i]`.
            positions: int64 [n_rows], from the model's input buffer.
            token_ids: int32 [n_rows], from the model's input buffer.
            step: Step number for the labels.
            rejected: int [n]; the last `rejected[i]` rows of each request are of rejected draft tokens. None without drafts.
        """
        sizes = np.diff(starts)
        known = [self._known.get(request) for request in requests]
        sound = _contiguous(positions, starts)
        whole = (sound & (sizes > 0)).tolist()
        good = [k is not None and k.labelled and ok for k, ok in zip(known, whole, strict=True)]
        if all(good):
            return self._label([k for k in known if k is not None], sizes, None, positions, token_ids, step, rejected)
        keep = np.array(good, bool)
        index = np.flatnonzero(np.repeat(keep, sizes))
        chosen = [k for k, ok in zip(known, good, strict=True) if ok and k is not None]
        fewer = None if rejected is None else rejected[keep]
        labels = self._label(chosen, sizes[keep], index, positions[index], token_ids[index], step, fewer)
        uncertain = int(sizes.sum()) - len(index)
        return PassLabels(index, labels.spans, labels.meta, labels.known, labels.gaps, uncertain)

    def _label(
        self,
        known: list[RequestState],
        sizes: np.ndarray,
        index: np.ndarray | None,
        positions: np.ndarray,
        token_ids: np.ndarray,
        step: int,
        rejected: np.ndarray | None,
    ) -> PassLabels:
        meta = np.zeros(len(positions), ROW_META)
        meta["position"], meta["token_id"], meta["step"] = positions, token_ids, step
        span_of = np.repeat(np.arange(len(known)), sizes)
        meta["span"] = span_of
        n_prompt = np.array([k.n_prompt for k in known], np.int64)
        high = np.array([k.high for k in known], np.int64)
        flags = np.where(positions < n_prompt[span_of], int(RowFlag.PREFILL), 0)
        flags |= np.where(positions < high[span_of], int(RowFlag.RECOMPUTED), 0)
        ends = np.cumsum(sizes)
        if rejected is not None and rejected.any():
            behind = ends[span_of] - np.arange(len(positions)) <= rejected[span_of]
            flags |= np.where(behind, int(RowFlag.REJECTED), 0)
        meta["flags"] = flags
        firsts = positions[ends - sizes].tolist() if known else []
        gaps = tuple((k, k.high, first) for k, first in zip(known, firsts, strict=True) if first > k.high)
        spans = _advance(known, sizes.tolist(), firsts, meta, None if rejected is None else rejected.tolist(), step)
        return PassLabels(index, spans, meta, tuple(known), gaps)


def _advance(
    known: list[RequestState],
    sizes: list[int],
    firsts: list[int],
    meta: np.ndarray,
    rejected: list[int] | None,
    step: int,
) -> tuple[Span, ...]:
    """Return the spans of a pass, flag the rows that follow an end, and note how far each request has come.

    This loop is what a pass costs for each request, on the model's thread: a request's only row needs no array.
    """
    spans = []
    after_end = []
    tokens = meta["token_id"].tolist()
    offset = 0
    for i, (k, n, first) in enumerate(zip(known, sizes, firsts, strict=True)):
        spans.append(Span(k.name, first, n, offset, _NONE if k.published else _FIRST, k.n_prompt))
        k.published, k.last_step = True, step
        behind = first + n
        accepted = n if rejected is None else n - min(rejected[i], n)
        if behind > k.n_prompt and (k.stop_ids or behind > k.limit):
            if accepted == n == 1:
                k.ended = k.ended or first >= k.limit or tokens[offset] in k.stop_ids
                if k.ended:
                    after_end.append(offset)
            else:
                _mark_what_follows_the_end(k, meta[offset : offset + n])
        if accepted:
            k.next_position = first + accepted
            k.high = max(k.high, k.next_position)
        offset += n
    if after_end:
        meta["flags"][after_end] |= _AFTER_EOS
    return tuple(spans)


def _mark_what_follows_the_end(known: RequestState, meta: np.ndarray) -> None:
    """Flag rows AFTER_EOS from the first end token on.

    The engine feeds back a token that ends the answer only if it ran ahead, so that row and all later ones follow the end.
    """
    if not known.ended:
        generated = meta["position"] >= known.n_prompt
        rejected = (meta["flags"] & int(RowFlag.REJECTED)) != 0
        stops = generated & ~rejected & np.isin(meta["token_id"], list(known.stop_ids))
        stops |= (meta["position"] >= known.limit) & ~rejected
        known.ended = bool(stops.any())
        first = int(np.argmax(stops)) if known.ended else len(meta)
    else:
        first = 0
    meta["flags"][first:] |= _AFTER_EOS


def _contiguous(positions: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return, for each request, whether its positions rise by one and start at 0 or above: bool [n]."""
    if not len(positions):
        return np.zeros(len(starts) - 1, bool)
    breaks = np.zeros(len(positions), bool)
    breaks[1:] = np.diff(positions) != 1
    inner = starts[:-1][starts[:-1] < len(positions)]
    breaks[inner] = positions[inner] < 0
    bad = np.concatenate([[0], np.cumsum(breaks)])
    return np.asarray(bad[starts[1:]] - bad[starts[:-1]] == 0)


def known_of(new: Any, group: int | None, *, rows: bool, has_options: bool) -> RequestState:
    """Return the state of a new request from vLLM's NewRequestData.

    Args:
        new: vLLM's NewRequestData.
        group: Index of the full-attention KV group, or None if scores of cached prompts are not kept.
        rows: Whether its raw rows are wanted.
        has_options: Whether it has per-request recording options.
    """
    params = new.sampling_params
    stop: frozenset[int] = frozenset()
    limit = 1 << 62
    if params is not None:
        stop = frozenset(i for i in (params.eos_token_id, *(params.stop_token_ids or ())) if i is not None)
        limit = new.prompt_len + (params.max_tokens or limit) - 1
    blocks = list(new.block_ids[group]) if group is not None and new.block_ids else []
    return RequestState(
        new.req_id,
        new.prompt_len,
        stop_ids=stop,
        limit=limit,
        wants_rows=rows,
        has_options=has_options,
        labelled=new.prompt_embeds is None,
        computed=new.num_computed_tokens,
        blocks=blocks,
        next_position=new.num_computed_tokens,
        prompt=new.prompt_token_ids if group is not None else None,
    )

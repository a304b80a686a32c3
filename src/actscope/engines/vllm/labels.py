"""Labels: which request, position and token each row of a pass belongs to, and what else is to be known of it.

Positions and token ids come from the buffers that the model itself was given; the scheduler's word is used for nothing that
can be read there. What the host adds is memory: how far each request had come before, so that recomputed rows are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actscope.frames import ROW_META, RowFlag, Span, SpanFlag
from actscope.ring.layout import MAX_REQUEST_ID

_FIRST, _NONE, _END = SpanFlag.FIRST, SpanFlag(0), SpanFlag.END


@dataclass(slots=True)
class RequestState:
    """What is remembered of a request that runs.

    `high`: positions below it have been told of: computed and not rejected, or cached. `blocks`: its KV blocks in the
    full-attention group, and `prompt` its tokens, where scores of cached prompts are kept. `stop_ids` end an answer, and a row
    at `limit` or behind is of a token that is the last one allowed. `wants_rows`: whether its rows leave the model's process.
    `labelled` is False for prompt embeddings, whose token ids mean nothing, and for an id that no ring holds, which would take
    the rows of all others in the pass with it. `computed`: its positions in the KV cache when it was scheduled.
    """

    request: str
    n_prompt: int
    high: int = 0
    stop_ids: frozenset[int] = frozenset()
    limit: int = 1 << 62
    ended: bool = False
    told: bool = False
    wants_rows: bool = False
    wish: bool = False
    labelled: bool = True
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    prompt: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class PassLabels:
    """The rows of a pass that can be labelled: their places `index` in the pass (None: all, in order), spans and labels.

    `gaps`: (request, from, to): positions before the request's rows that were never told of, since they came from the cache.
    """

    index: np.ndarray | None
    spans: tuple[Span, ...]
    meta: np.ndarray
    known: tuple[RequestState, ...]
    gaps: tuple[tuple[RequestState, int, int], ...] = ()
    uncertain: int = 0


class Register:
    """The requests that run, by the engine's id. Not thread-safe: it lives on one thread."""

    def __init__(self) -> None:
        self._known: dict[str, RequestState] = {}

    def __len__(self) -> int:
        return len(self._known)

    def get(self, request: str) -> RequestState | None:
        return self._known.get(request)

    def add(self, known: RequestState) -> RequestState:
        """A request is scheduled for the first time, or once more after preemption: then what it had computed is remembered."""
        before = self._known.get(known.request)
        if before is not None:
            known.high, known.told, known.ended = before.high, before.told, before.ended
            if known.n_prompt != before.n_prompt:  # streaming input: what was computed ahead of the new text is void
                known.high, known.ended = min(before.high, known.computed), False
        self._known[known.request] = known
        return known

    def end(self, requests: Iterable[str]) -> tuple[Span, ...]:
        """These requests are over: their END spans. What never had a row has none."""
        gone = [self._known.pop(request, None) for request in sorted(requests)]
        return tuple(Span(k.request, 0, 0, 0, _END, k.n_prompt) for k in gone if k is not None and k.told)

    def label(
        self,
        requests: Sequence[str],
        starts: np.ndarray,
        positions: np.ndarray,
        token_ids: np.ndarray,
        step: int,
        rejected: np.ndarray | None = None,
    ) -> PassLabels:
        """Label one pass: rows `starts[i] .. starts[i + 1]` are of `requests[i]`; `rejected[i]` at their end are drafts in vain.

        A request is left out, and its rows counted as uncertain, where it is unknown or its positions do not follow
        each other.
        """
        sizes = np.diff(starts)
        known = [self._known.get(request) for request in requests]
        sound = _contiguous(positions, starts)
        good = [k is not None and k.labelled and bool(s) and n > 0 for k, s, n in zip(known, sound, sizes, strict=True)]
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
        spans = self._spans(known, sizes, firsts, meta)
        self._advance(known, sizes, ends, positions, rejected)
        return PassLabels(index, spans, meta, tuple(known), gaps)

    def _spans(
        self, known: list[RequestState], sizes: np.ndarray, firsts: list[int], meta: np.ndarray
    ) -> tuple[Span, ...]:
        spans = []
        offset = 0
        for k, n, first in zip(known, sizes.tolist(), firsts, strict=True):
            spans.append(Span(k.request, first, n, offset, _NONE if k.told else _FIRST, k.n_prompt))
            k.told = True
            if first + n > k.n_prompt and (k.stop_ids or first + n > k.limit):
                _mark_what_follows_the_end(k, meta[offset : offset + n])
            offset += n
        return tuple(spans)

    def _advance(
        self,
        known: list[RequestState],
        sizes: np.ndarray,
        ends: np.ndarray,
        positions: np.ndarray,
        rejected: np.ndarray | None,
    ) -> None:
        accepted = ends - 1 if rejected is None else ends - 1 - np.minimum(rejected, sizes)
        for k, last, n, row in zip(known, accepted.tolist(), sizes.tolist(), ends.tolist(), strict=True):
            if last >= row - n:
                k.high = max(k.high, int(positions[last]) + 1)


def _mark_what_follows_the_end(known: RequestState, meta: np.ndarray) -> None:
    """A generated token that ends an answer is fed back only when the engine ran ahead: its row came after the end."""
    if not known.ended:
        generated = meta["position"] >= known.n_prompt
        rejected = (meta["flags"] & int(RowFlag.REJECTED)) != 0
        stops = generated & ~rejected & np.isin(meta["token_id"], list(known.stop_ids))
        stops |= (meta["position"] >= known.limit) & ~rejected
        known.ended = bool(stops.any())
        first = int(np.argmax(stops)) if known.ended else len(meta)
    else:
        first = 0
    meta["flags"][first:] |= int(RowFlag.AFTER_EOS)


def _contiguous(positions: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """For each request, whether its positions rise by one and begin at 0 or above: bool [n]."""
    if not len(positions):
        return np.zeros(len(starts) - 1, bool)
    breaks = np.zeros(len(positions), bool)
    breaks[1:] = np.diff(positions) != 1
    inner = starts[:-1][starts[:-1] < len(positions)]
    breaks[inner] = positions[inner] < 0
    bad = np.concatenate([[0], np.cumsum(breaks)])
    return np.asarray(bad[starts[1:]] - bad[starts[:-1]] == 0)


def known_of(new: Any, group: int | None, *, rows: bool, wish: bool) -> RequestState:
    """What vLLM's NewRequestData says of a request; `rows`: its raw rows are wanted; `wish`: it asked for something."""
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
        wish=wish,
        labelled=new.prompt_embeds is None and len(new.req_id.encode(errors="replace")) <= MAX_REQUEST_ID,
        computed=new.num_computed_tokens,
        blocks=blocks,
        prompt=new.prompt_token_ids if group is not None else None,
    )

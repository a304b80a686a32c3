"""Attribution: maps each row of a padded batch to its request and position.

The HF engine runs a left-padded batch. Row `b * width + i` of the flattened hidden states is column `start + i` of sequence `b`;
its absolute position is that column minus the sequence's padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actscope.frames import ROW_META, RowFlag, Span, SpanFlag


@dataclass(frozen=True, slots=True)
class PaddedSequence:
    """One sequence of a padded batch; `padding` is the number of padding columns before its first token."""

    request: str
    padding: int
    n_prompt: int


@dataclass(frozen=True, slots=True)
class Attribution:
    """The real rows of a pass: their indices in the flattened batch, spans and labels."""

    index: np.ndarray  # int64 [n]: rows of the flattened batch, in the order of the spans
    spans: tuple[Span, ...]
    meta: np.ndarray  # ROW_META [n]


def attribute(lanes: Sequence[PaddedSequence], token_ids: np.ndarray, start: int, step: int) -> Attribution:
    """Label one pass over columns `start` to `start + width` of `lanes`; token_ids is int [len(lanes), width].

    Padding has no row in the result. Rows within a request's prompt carry RowFlag.PREFILL; later rows are generated tokens.
    """
    width = token_ids.shape[1]
    spans, index, offset = [], [], 0
    for b, lane in enumerate(lanes):
        skipped = min(max(lane.padding - start, 0), width)
        n_rows = width - skipped
        if not n_rows:
            continue
        position = start + skipped - lane.padding
        flags = SpanFlag.FIRST if position == 0 else SpanFlag(0)
        spans.append(Span(lane.request, position, n_rows, offset, flags, lane.n_prompt))
        index.append(np.arange(b * width + skipped, (b + 1) * width))
        offset += n_rows
    rows = np.concatenate(index) if index else np.empty(0, np.int64)
    return Attribution(rows, tuple(spans), _label(spans, token_ids.reshape(-1)[rows], step))


def _label(spans: Sequence[Span], token_ids: np.ndarray, step: int) -> np.ndarray:
    meta = np.zeros(len(token_ids), ROW_META)
    meta["token_id"], meta["step"] = token_ids, step
    for i, span in enumerate(spans):
        rows = meta[span.offset : span.offset + span.n_rows]
        rows["span"] = i
        rows["position"] = np.arange(span.first_position, span.first_position + span.n_rows)
        rows["flags"][: max(0, span.n_prompt - span.first_position)] = RowFlag.PREFILL
    return meta

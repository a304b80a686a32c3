"""Attribution: each row of a padded batch gets its own request, position and token id, and padding gets none."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actscope.frames import RowFlag, SpanFlag
from actscope.taps.attribution import PaddedSequence, attribute

prompts = st.lists(st.integers(1, 12), min_size=1, max_size=6)


@given(prompts, st.integers(1, 7), st.integers(0, 5))
def test_chunked_left_padded_prefill_labels_every_position_once(lengths: list[int], chunk: int, n_new: int) -> None:
    """Against the definition, cell by cell, for any mixture of lengths, chunk width and generated columns."""
    width = max(lengths) + n_new
    padding = [max(lengths) - n for n in lengths]
    ids = np.arange(len(lengths) * width).reshape(len(lengths), width)
    lanes = [PaddedSequence(f"r{b}", pad, n) for b, (pad, n) in enumerate(zip(padding, lengths, strict=True))]
    seen = {}
    for step, start in enumerate(range(0, width, chunk), 1):
        part = ids[:, start : start + chunk]
        found = attribute(lanes, part, start, step)
        assert [s.offset for s in found.spans] == np.cumsum([0, *(s.n_rows for s in found.spans)])[:-1].tolist()
        for row, meta in zip(found.index, found.meta, strict=True):
            span = found.spans[meta["span"]]
            b = int(span.request[1:])
            assert part.reshape(-1)[row] == meta["token_id"] == ids[b, padding[b] + meta["position"]]
            assert span.first_position <= meta["position"] < span.first_position + span.n_rows
            assert bool(meta["flags"] & RowFlag.PREFILL) == (meta["position"] < lengths[b])
            assert (SpanFlag.FIRST in span.flags) == (span.first_position == 0)
            assert (span.request, int(meta["position"])) not in seen
            seen[span.request, int(meta["position"])] = step
    assert set(seen) == {(f"r{b}", p) for b, n in enumerate(lengths) for p in range(n + n_new)}

"""Scores that survive prefix hits: what each slot of the KV cache had for scores when its keys and values were computed.

vLLM decides which prompts share blocks; it hashes tokens, adapters and salts for that. The scores lie here at the same slots as
the keys and values in its cache, so a block that is found again brings its scores with it, and one that is overwritten loses
them with its keys. Nothing is hashed a second time, and nothing can disagree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from actscope.engines.vllm.labels import RequestState
from actscope.frames import ROW_META, RowFlag

#: Rows that are no part of what a later prompt can find.
_REJECTED = int(RowFlag.REJECTED)


class PrefixScores:
    """Scores by KV slot, in host memory: float32 [n_slots, width], touched only where rows were computed.

    `since` of a column is the generation at which its probe was put there: what was scored before says nothing of it.
    """

    def __init__(self, n_blocks: int, block_size: int, width: int) -> None:
        n_slots = n_blocks * block_size
        self._block_size = block_size
        self._scores = np.zeros((n_slots, width), np.float32)
        self._token = np.full(n_slots, -1, np.int32)
        self._position = np.full(n_slots, -1, np.int64)
        self._generation = np.zeros(n_slots, np.int64)
        self.since = np.zeros(width, np.int64)

    def forget(self, slots: np.ndarray | None = None) -> None:
        """What lies in these slots, or in all, is not known any more: rows went there that nobody has seen."""
        if slots is None:
            self._position.fill(-1)
        else:
            self._position[slots[(slots >= 0) & (slots < len(self._position))]] = -1

    def keep(self, slots: np.ndarray, meta: np.ndarray, scores: np.ndarray, generation: int) -> None:
        """Rows have been computed into these slots; a slot below 0 is none."""
        good = (slots >= 0) & (slots < len(self._token)) & ((meta["flags"] & _REJECTED) == 0)
        if not good.all():
            slots, meta, scores = slots[good], meta[good], scores[good]
        self._scores[slots] = scores
        self._token[slots] = meta["token_id"]
        self._position[slots] = meta["position"]
        self._generation[slots] = generation

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """vLLM has copied blocks (source, destination)."""
        size = self._block_size
        for source, target in pairs:
            into, out_of = slice(target * size, (target + 1) * size), slice(source * size, (source + 1) * size)
            for column in (self._scores, self._token, self._position, self._generation):
                column[into] = column[out_of]

    def find(self, known: RequestState, low: int, high: int, chunk: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(labels, scores) of positions `low .. high` of a request, as far as they are known, in runs of at most `chunk`.

        A slot is used only if it holds that position, and in a prompt that token: whatever else lies there is not this request's.
        """
        blocks = np.asarray(known.blocks, np.int64)
        positions = np.arange(low, min(high, len(blocks) * self._block_size))
        slots = blocks[positions // self._block_size] * self._block_size + positions % self._block_size
        good = self._position[slots] == positions
        if known.prompt is not None:
            expected = np.asarray(known.prompt[low : positions[-1] + 1] if len(positions) else [], np.int64)
            good[: len(expected)] &= self._token[slots[: len(expected)]] == expected
        for start, stop in _runs(good, chunk):
            part = slots[start:stop]
            meta = np.zeros(stop - start, ROW_META)
            meta["position"], meta["token_id"] = positions[start:stop], self._token[part]
            flags = np.where(meta["position"] < known.n_prompt, int(RowFlag.PREFILL), 0)
            meta["flags"] = flags | int(RowFlag.CACHED)
            scores = self._scores[part]
            scores[self._generation[part][:, None] < self.since[None, :]] = np.nan
            yield meta, scores


def _runs(good: np.ndarray, chunk: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of what is good without a gap, in pieces."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], good, [False]]).astype(np.int8)))
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        for at in range(start, stop, chunk):
            yield at, min(at + chunk, stop)

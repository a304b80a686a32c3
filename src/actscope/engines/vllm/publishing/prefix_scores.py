"""Scores of cached prompt blocks, stored by KV slot so that they survive prefix cache hits.

vLLM decides which prompts share blocks by hashing tokens, adapters and salts. Scores are stored under the same KV slots as the
keys and values: a reused block brings its scores along, and an overwritten block loses them. Nothing is hashed again, so the two
cannot disagree.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np

from actscope.engines.vllm.publishing.labels import RequestState
from actscope.engines.vllm.runners import KvPool
from actscope.frames import ROW_META, RowFlag

log = logging.getLogger("actscope.vllm")

#: Most host memory for the scores.
_MOST_BYTES = 8 << 30
#: Rejected drafts are never part of a cached prompt.
_REJECTED = int(RowFlag.REJECTED)


class PrefixScores:
    """Scores by KV slot in host memory: float32 [n_slots, width].

    Pages are touched only where rows were computed. `since` int64 [width] is the generation at which each column got its probe;
    scores of an older generation are not valid for that column.
    """

    @classmethod
    def fitting(cls, pool: KvPool, width: int) -> PrefixScores | None:
        """Return a store for all slots of `pool`; None, with a warning, if it would need too much memory."""
        needed = pool.n_blocks * pool.block_size * (width * 4 + 20)
        if needed > _MOST_BYTES:
            log.warning(
                "scores of cached prompts would need %.1f GB of host memory (%d slots), more than %.1f: they are off",
                needed / 1e9,
                pool.n_blocks * pool.block_size,
                _MOST_BYTES / 1e9,
            )
            return None
        return cls(pool.n_blocks, pool.block_size, width)

    def __init__(self, n_blocks: int, block_size: int, width: int) -> None:
        n_slots = n_blocks * block_size
        self._block_size = block_size
        self._scores = np.zeros((n_slots, width), np.float32)
        self._token = np.full(n_slots, -1, np.int32)
        self._position = np.full(n_slots, -1, np.int64)
        self._generation = np.zeros(n_slots, np.int64)
        self.since = np.zeros(width, np.int64)

    def forget(self, slots: np.ndarray | None = None) -> None:
        """Invalidate slots (all if None): they were overwritten by a pass that was not observed."""
        if slots is None:
            self._position.fill(-1)
        else:
            self._position[slots[(slots >= 0) & (slots < len(self._position))]] = -1

    def forget_behind(self, known: RequestState) -> None:
        """Invalidate the slots of a request into which passes that were not seen may have written: from its next position on."""
        size = self._block_size
        first = known.next_position // size
        for index, block in enumerate(known.blocks[first:], first):
            keep = max(0, known.next_position - index * size)
            self._position[block * size + keep : (block + 1) * size] = -1

    def keep(self, slots: np.ndarray, meta: np.ndarray, scores: np.ndarray, generation: int) -> None:
        """Store the scores of rows computed into `slots`. Skips rejected rows and slots out of range."""
        good = (slots >= 0) & (slots < len(self._token)) & ((meta["flags"] & _REJECTED) == 0)
        if not good.all():
            slots, meta, scores = slots[good], meta[good], scores[good]
        self._scores[slots] = scores
        self._token[slots] = meta["token_id"]
        self._position[slots] = meta["position"]
        self._generation[slots] = generation

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Mirror vLLM's copies of KV blocks, given as (source, destination)."""
        size = self._block_size
        for source, target in pairs:
            into, out_of = slice(target * size, (target + 1) * size), slice(source * size, (source + 1) * size)
            for column in (self._scores, self._token, self._position, self._generation):
                column[into] = column[out_of]

    def find(self, known: RequestState, low: int, high: int, chunk: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (meta, scores) of the known positions from `low` to `high` of a request, in runs of at most `chunk` rows.

        A slot is used only if it holds that position and, within the prompt, that token. Scores that predate a column's current
        probe are NaN.
        """
        size = self._block_size
        first, after = low // size, -(-high // size)  # a long prompt is looked up in parts: only the blocks of this one
        blocks = np.asarray(known.blocks[first:after], np.int64)
        positions = np.arange(low, max(low, min(high, len(known.blocks) * size)))
        slots = blocks[positions // size - first] * size + positions % size
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
    """Yield (start, stop) of each run of True, split into pieces of at most `chunk`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], good, [False]]).astype(np.int8)))
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        for at in range(start, stop, chunk):
            yield at, min(at + chunk, stop)

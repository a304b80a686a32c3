"""Batching of pieces of similar length, so that little is computed for padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actscope.extraction.contract import Piece

#: Maximum number of tokens in one forward pass, padding included.
BATCH_TOKENS = 8192
#: Fixed cost of a forward pass, in tokens. Measured on the built-in model on a CPU: 16 passes against 32 of the same pieces.
_COST = 256


@dataclass(frozen=True, slots=True)
class PieceBatch:
    """Pieces of one forward pass.

    Attributes:
        places: Indices of the pieces in the list passed to `batches`.
        width: Length of the longest piece, in tokens.
    """

    places: tuple[int, ...]
    width: int

    @property
    def padded_tokens(self) -> int:
        """Return the number of tokens that the pass computes, padding included."""
        return self.width * len(self.places)


def batches(pieces: Sequence[Piece], batch_tokens: int = BATCH_TOKENS, edge: int | None = None) -> list[PieceBatch]:
    """Divide pieces into batches, deterministically.

    Of all divisions of the pieces in order of length, this is the cheapest, where a batch costs its tokens (padding included)
    plus a fixed amount.

    Args:
        pieces: The pieces. Each appears in exactly one batch, from the longest to the shortest.
        batch_tokens: Maximum number of tokens in a batch, padding included. A batch of one piece may exceed it.
        edge: If given, pieces longer than this never share a batch with shorter ones. Some models compute a whole batch
            differently once it contains a sequence beyond a certain length (see `actscope.extraction.hf.length_edge`).

    Returns:
        The batches.
    """
    lengths = np.array([len(piece.token_ids) for piece in pieces], np.int64)
    order = np.argsort(-lengths, kind="stable")
    ends = _ends(lengths[order], batch_tokens, edge)
    found: list[PieceBatch] = []
    start = 0
    while start < len(order):
        places = order[start : ends[start]].tolist()
        found.append(PieceBatch(tuple(places), int(lengths[places[0]])))
        start = ends[start]
    return found


def padding_share(pieces: Sequence[Piece], batch_tokens: int = BATCH_TOKENS, edge: int | None = None) -> float:
    """Return the share of padding in the tokens that are computed, 0 to 1."""
    padded = sum(batch.padded_tokens for batch in batches(pieces, batch_tokens, edge))
    return 1 - sum(len(piece.token_ids) for piece in pieces) / padded if padded else 0.0


def _ends(lengths: np.ndarray, batch_tokens: int, edge: int | None) -> list[int]:
    """Return the best end of a batch that begins at each place, for descending `lengths`. Dynamic program from the last place."""
    n = len(lengths)
    beyond = 0 if edge is None else int((lengths > edge).sum())
    cheapest, ends = np.zeros(n + 1, np.int64), [n] * n
    for start in range(n - 1, -1, -1):
        room = min(max(1, batch_tokens // max(1, int(lengths[start]))), (beyond if start < beyond else n) - start)
        costs = lengths[start] * np.arange(1, room + 1) + cheapest[start + 1 : start + room + 1]
        best = int(costs.argmin())
        cheapest[start], ends[start] = costs[best] + _COST, start + best + 1
    return ends

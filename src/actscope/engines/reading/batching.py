"""Putting pieces of like length together, so that little is computed for padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actscope.engines.reading.contract import Piece

#: Tokens of one forward, padding included.
BATCH_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Batch:
    """Pieces that go through the model in one forward: their places in the list that was given, and the longest's length."""

    places: tuple[int, ...]
    width: int

    @property
    def padded_tokens(self) -> int:
        return self.width * len(self.places)


def batches(pieces: Sequence[Piece], batch_tokens: int = BATCH_TOKENS, edge: int | None = None) -> list[Batch]:
    """Every piece in one batch, from the longest batch to the shortest; the same pieces always give the same batches.

    A batch has at most `batch_tokens` tokens with its padding, or one piece. Pieces longer than `edge` are never put together
    with others that are not: there are models that read a whole batch differently from some length on.
    """
    lengths = [len(piece.token_ids) for piece in pieces]
    found: list[Batch] = []
    places: list[int] = []
    for place in sorted(range(len(pieces)), key=lambda i: (-lengths[i], i)):
        width = lengths[places[0]] if places else lengths[place]
        crosses = edge is not None and lengths[place] <= edge < width
        if places and (crosses or width * (len(places) + 1) > batch_tokens):
            found.append(Batch(tuple(places), width))
            places = []
        places.append(place)
    return [*found, Batch(tuple(places), lengths[places[0]])] if places else found


def padding_share(pieces: Sequence[Piece], batch_tokens: int = BATCH_TOKENS, edge: int | None = None) -> float:
    """The share of the tokens computed that is padding, 0 to 1."""
    padded = sum(batch.padded_tokens for batch in batches(pieces, batch_tokens, edge))
    return 1 - sum(len(piece.token_ids) for piece in pieces) / padded if padded else 0.0

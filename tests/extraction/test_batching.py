"""Pieces are put together by length: all of them, within bounds, the same way each time, with little padding."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from actscope.extraction.batching import PieceBatch, batches, padding_share
from actscope.extraction.contract import Piece

LENGTHS = st.lists(st.integers(1, 60), max_size=40)


def pieces_of(lengths: list[int]) -> list[Piece]:
    return [Piece(i, 0, np.zeros(n, np.int32), np.ones(n, bool)) for i, n in enumerate(lengths)]


@given(lengths=LENGTHS, batch_tokens=st.integers(1, 300))
def test_every_piece_is_in_one_batch_and_no_batch_is_too_large(lengths: list[int], batch_tokens: int) -> None:
    """A piece that is longer than the bound goes alone."""
    found = batches(pieces_of(lengths), batch_tokens)
    assert sorted(place for batch in found for place in batch.places) == list(range(len(lengths)))
    for batch in found:
        assert batch.width == max(lengths[place] for place in batch.places)
        assert batch.padded_tokens <= batch_tokens or len(batch.places) == 1


@given(lengths=LENGTHS, edge=st.integers(0, 60))
def test_no_batch_crosses_the_edge(lengths: list[int], edge: int) -> None:
    """Either all pieces of a batch are longer than the edge, or none is."""
    for batch in batches(pieces_of(lengths), 200, edge):
        assert len({lengths[place] > edge for place in batch.places}) == 1


def cheapest(lengths: list[int], batch_tokens: int) -> int:
    """By trying every division of the lengths, which descend."""
    if not lengths:
        return 0
    most = max(1, batch_tokens // lengths[0])
    return min(
        lengths[0] * n + 256 + cheapest(lengths[n:], batch_tokens) for n in range(1, min(most, len(lengths)) + 1)
    )


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 900), max_size=8), batch_tokens=st.integers(1, 4000))
def test_no_other_division_is_cheaper(lengths: list[int], batch_tokens: int) -> None:
    """Counting tokens with their padding, and 256 for each batch."""
    found = batches(pieces_of(lengths), batch_tokens)
    cost = sum(batch.padded_tokens + 256 for batch in found)
    assert cost == cheapest(sorted(lengths, reverse=True), batch_tokens)


def test_the_longest_come_first_and_equal_ones_in_their_order() -> None:
    """The first batch is the largest, and pieces of one length keep their order."""
    found = batches(pieces_of([8, 2000, 8, 8, 2000]), 4000)
    assert found == [PieceBatch((1, 4), 2000), PieceBatch((0, 2, 3), 8)]
    assert all(one.width >= other.width for one, other in pairwise(batches(pieces_of([5, 900, 30, 200] * 9), 2000)))


def test_the_share_of_padding_is_what_is_computed_in_vain() -> None:
    """The share is 0 for pieces of one length, and for no pieces."""
    assert padding_share(pieces_of([10, 10, 10])) == 0
    assert padding_share([]) == 0
    assert padding_share(pieces_of([40, 20])) == 0.25

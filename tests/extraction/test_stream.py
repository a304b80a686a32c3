"""An epoch is one stream of rows: every text once, in an order that is known, and any row of it is found again."""

from __future__ import annotations

import pytest
from support.hf.tiny import byte_tokenizer

from actscope.errors import SettingsError
from actscope.extraction.cutting import Cutter
from actscope.extraction.stream import TextStream
from actscope.extraction.texts import open_texts
from actscope.permutation import Permutation

N = 23


def stream(**options: object) -> TextStream:
    cutter = Cutter(byte_tokenizer(), context=100)
    return TextStream(open_texts("builtin:story", n=N), cutter, **{"chunk_texts": 5, **options})  # type: ignore[arg-type]


def test_every_text_comes_once_in_the_order_of_the_epoch() -> None:
    """Chunk by chunk, the last one shorter."""
    epoch = stream(seed=3, epoch=1)
    assert epoch.n_chunks == 5
    seen = [piece.text for chunk in range(5) for piece in epoch.pieces(chunk) if piece.number == 0]
    assert seen == Permutation(N, 3, 1).part(0, N).tolist()


def test_without_shuffling_texts_come_as_they_lie() -> None:
    """Whatever the seed."""
    epoch = stream(shuffle=False, seed=9)
    assert [n for chunk in range(5) for n in epoch.numbers(chunk)] == list(range(N))


def test_a_chunk_is_the_same_each_time_and_depends_on_no_other() -> None:
    """Another stream that only reads its last chunk has the same pieces there."""
    one, other = stream().pieces(4), stream().pieces(4)
    assert [(p.text, p.number, p.token_ids.tolist()) for p in one] == [
        (p.text, p.number, p.token_ids.tolist()) for p in other
    ]


def test_a_row_is_found_again_by_its_number() -> None:
    """`locate` is the inverse of counting rows, from the start or from any chunk on, and gives the stream's end for its end."""
    epoch = stream()
    rows = [epoch.rows_in(chunk) for chunk in range(5)]
    for chunk in range(5):
        for skip in (0, 1, rows[chunk] - 1):
            assert epoch.locate(sum(rows[:chunk]) + skip) == (chunk, skip)
            assert epoch.locate(sum(rows[2:chunk]) + skip, from_chunk=min(2, chunk)) == (chunk, skip)
    assert epoch.locate(sum(rows)) == (5, 0)
    assert epoch.locate(0, from_chunk=5) == (5, 0)


def test_a_row_beyond_the_end_is_refused() -> None:
    """The message says by how many rows, and what may have changed."""
    epoch = stream()
    total = sum(epoch.rows_in(chunk) for chunk in range(5))
    with pytest.raises(SettingsError, match="7 rows before it"):
        epoch.locate(total + 7)


def test_a_chunk_that_is_not_there_is_refused() -> None:
    """Chunks before the first and after the last are refused, and so is a chunk size of 0."""
    for chunk in (-1, 5):
        with pytest.raises(IndexError, match="of 5"):
            stream().pieces(chunk)
    with pytest.raises(SettingsError, match="chunk_texts 0"):
        stream(chunk_texts=0)

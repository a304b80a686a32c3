"""The collector of one read puts each row into its place once; no engine is needed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actscope.errors import EngineError
from actscope.extraction.contract import Piece
from actscope.extraction.vllm.row_collector import RowCollector, WideRowLayout
from actscope.frames import ROW_META, Span
from actscope.ring.host import StepRecord

D = 2
FLOATS = WideRowLayout(1, ("a", "b"), D, torch.float32)


def piece(text: int, tokens: list[int], wanted: list[int]) -> Piece:
    return Piece(text, 0, np.array(tokens, np.int32), np.array(wanted, bool))


def step(*spans: tuple[str, int, list[int]], shift: float = 0.0, cut: WideRowLayout = FLOATS) -> StepRecord:
    """A pass with (request, first position, tokens) of each request; a row's elements are ten times its token, and up."""
    tokens = [token for _, _, of_one in spans for token in of_one]
    meta = np.zeros(len(tokens), ROW_META)
    meta["token_id"] = tokens
    meta["position"] = [first + i for _, first, of_one in spans for i in range(len(of_one))]
    meta["span"] = np.repeat(np.arange(len(spans)), [len(of_one) for _, _, of_one in spans])
    named = tuple(Span(request, first, len(of_one)) for request, first, of_one in spans)
    width = cut.heads + len(cut.sites) * cut.d
    wide = np.array(tokens, np.float32)[:, None] * 10 + np.arange(width, dtype=np.float32) + shift
    rows = (
        wide
        if cut.dtype == torch.float32
        else torch.from_numpy(wide).to(cut.dtype).view(torch.int16).numpy().view(np.uint16)
    )
    return StepRecord(1, 0, 0, named, meta, rows)


def number_of(request: str) -> int:
    return int(request) if request.isdigit() else -1


PIECES = [piece(5, [1, 2, 3], [0, 1, 1]), piece(6, [4, 5], [1, 0])]


def test_rows_of_chunks_and_mixed_passes_come_in_the_order_of_the_pieces() -> None:
    """The order of passes does not matter, nor do rows of other requests between them."""
    ledger = RowCollector(PIECES, [FLOATS], torch.float32)
    ledger.take(0, step(("1", 0, [4, 5]), ("someone", 0, [9, 9]), ("0", 2, [3])), number_of)
    assert ledger.missing() == [0] and ledger.has(1)
    assert ledger.describe_missing() == "1 of 3 rows, the first of text 5, piece 0, at a, b"
    ledger.take(0, step(("0", 0, [1, 2])), number_of)
    rows = ledger.rows()
    assert not ledger.missing()
    assert rows.values["a"].tolist() == [[21, 22], [31, 32], [41, 42]]
    assert rows.values["b"].tolist() == [[23, 24], [33, 34], [43, 44]]
    assert rows.labels["text"].tolist() == [5, 5, 6] and rows.labels["position"].tolist() == [1, 2, 0]


def test_what_is_computed_again_is_taken_once() -> None:
    """The first row of a position is kept, and the row of the token sampled after the text is ignored."""
    ledger = RowCollector(PIECES, [FLOATS], torch.float32)
    ledger.take(0, step(("1", 0, [4, 5])), number_of)
    ledger.take(0, step(("1", 0, [4, 5, 77]), ("0", 0, [1, 2, 3]), shift=0.5), number_of)
    assert ledger.rows().values["a"][:, 0].tolist() == [21.5, 31.5, 41]


def test_a_row_of_another_token_is_an_error() -> None:
    """One label that does not fit makes all others doubtful, so the read fails."""
    ledger = RowCollector(PIECES, [FLOATS], torch.float32)
    with pytest.raises(EngineError, match="text 5, piece 0, position 1: expected a row of token 2, found one of 8"):
        ledger.take(0, step(("0", 0, [1, 8])), number_of)


def test_a_row_is_there_when_all_stages_have_sent_it() -> None:
    """Pipeline stages send rows of their own sites, each at its own time."""
    later = WideRowLayout(2, ("c",), D, torch.float32)
    ledger = RowCollector(PIECES[1:], [FLOATS, later], torch.float32)
    ledger.take(0, step(("0", 0, [4, 5])), number_of)
    assert ledger.describe_missing().endswith("at c")
    ledger.take(1, step(("0", 0, [4, 5]), cut=later), number_of)
    assert not ledger.missing() and ledger.rows().values["c"].tolist() == [[42, 43]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_rows_are_cast_to_what_was_asked(dtype: torch.dtype) -> None:
    """The ring holds bits; the scores at a row's head take two elements each."""
    cut = WideRowLayout(2, ("a",), D, torch.bfloat16)
    ledger = RowCollector(PIECES, [cut], dtype)
    ledger.take(0, step(("0", 0, [1, 2, 3]), ("1", 0, [4, 5]), cut=cut), number_of)
    found = ledger.rows().values["a"]
    assert found.dtype == dtype and found.tolist() == [[22, 23], [32, 33], [42, 43]]

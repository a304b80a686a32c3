"""Texts become pieces: every token once, the BOS where the model expects it, rows where they are wanted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.hf.tiny import byte_tokenizer, tiny
from tokenizers import AddedToken, processors

from actscope.engines import builtin
from actscope.engines.builtin.text import generate
from actscope.engines.hf.labelled import tokenize
from actscope.engines.hf.loading import load
from actscope.errors import EngineError, SettingsError
from actscope.extraction.contract import Piece
from actscope.extraction.cutting import Cutter, tokenizer_of

BOS, EOS = 256, 257


def with_bos(eos: bool = False) -> Any:
    """The tokenizer of bytes, which now puts a BOS before each text, and an EOS behind it where that is asked for."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if eos else "<s> $A", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    return tokenizer


def ids(pieces: list[Piece]) -> list[list[int]]:
    return [piece.token_ids.tolist() for piece in pieces]


def plain_ids(text: str) -> list[int]:
    found: list[int] = byte_tokenizer()(text, add_special_tokens=False)["input_ids"]
    return found


@given(text=st.text(min_size=1, max_size=60), context=st.integers(2, 20))
@settings(max_examples=60, deadline=None)
def test_pieces_together_hold_every_token_of_a_text_once(text: str, context: int) -> None:
    """In its order, at most `context` at a time, with the BOS in front of each; none is left out at the end."""
    pieces = Cutter(with_bos(), context=context).cut([7], [text])
    assert all(piece.token_ids[0] == BOS and len(piece.token_ids) <= context for piece in pieces)
    assert [token for piece in pieces for token in piece.token_ids[1:].tolist()] == plain_ids(text)
    assert [piece.number for piece in pieces] == list(range(len(pieces)))
    assert {piece.text for piece in pieces} == {7}
    assert all(len(piece.token_ids) == context for piece in pieces[:-1])


@pytest.mark.parametrize("text", ["plain", "<s>user: rendered\n", "</s>odd", "", "in <s> the middle"])
@pytest.mark.parametrize("tokenizer", [byte_tokenizer(), with_bos(), with_bos(eos=True)])
def test_a_short_text_has_the_ids_that_labelled_text_has(text: str, tokenizer: Any) -> None:
    """Probes are trained on the same positions that are read here."""
    loaded = replace(tiny("llama"), tokenizer=tokenizer)
    pieces = Cutter(tokenizer, context=100, mask="none").cut([0], [text])
    assert ids(pieces) == [tokenize(loaded, text)[0]][: len(pieces)]
    assert len(pieces) == (0 if not tokenize(loaded, text)[0] else 1)


def test_built_in_texts_begin_with_one_bos() -> None:
    """The text itself has a BOS, and each later piece gets one."""
    loaded = load(builtin.NAME)
    texts = [next(generate(seed, "long")).text for seed in range(3)]
    pieces = Cutter(loaded.tokenizer, context=64).cut(range(3), texts)
    bos = loaded.tokenizer.bos_token_id
    assert len(pieces) > 10
    assert all(piece.token_ids[0] == bos and bos not in piece.token_ids[1:] for piece in pieces)
    for number, text in enumerate(texts):
        own = [piece.token_ids[min(piece.number, 1) :] for piece in pieces if piece.text == number]
        assert np.concatenate(own).tolist() == tokenize(loaded, text)[0]


def test_a_text_without_a_bos_gets_none_in_its_later_pieces() -> None:
    """No BOS is added if the tokenizer adds none, or if the text began with another special token."""
    assert ids(Cutter(byte_tokenizer(), context=4).cut([0], ["abcdef"])) == [plain_ids("abcd"), plain_ids("ef")]
    rendered = Cutter(with_bos(), context=4).cut([0], ["</s>abcde"])
    assert ids(rendered) == [[EOS, *plain_ids("abc")], plain_ids("de")]


def test_special_tokens_have_no_row() -> None:
    """The BOS, the EOS that ends a text, one in the middle, and one that the vocabulary alone calls special."""
    tokenizer = with_bos(eos=True)
    tokenizer.backend_tokenizer.add_special_tokens([AddedToken("<turn>", special=True)])
    pieces = Cutter(tokenizer, context=100).cut([5], ["ab<turn>c<s>"])
    assert pieces[0].wanted.tolist() == [False, True, True, False, True, False, False]
    labels = pieces[0].labels()
    assert labels["position"].tolist() == [1, 2, 4]
    assert labels["token_id"].tolist() == plain_ids("abc")
    assert set(labels["text"].tolist()) == {5}


def test_the_bos_alone_may_be_left_out_or_nothing() -> None:
    """mask="bos" spares position 0 where it is the BOS and only there; mask="none" wants every row."""
    for mask, wanted in (("bos", [False, True, True, True]), ("none", [True] * 4)):
        pieces = Cutter(with_bos(), context=10, mask=mask).cut([0], ["a<s></s>"])  # type: ignore[arg-type]
        assert pieces[0].wanted.tolist() == wanted
    assert Cutter(byte_tokenizer(), context=10, mask="bos").cut([0], ["ab"])[0].wanted.all()


def test_a_piece_without_a_wanted_row_is_left_out() -> None:
    """Empty texts and texts of special tokens have no piece; the numbers of the others do not move."""
    cutter = Cutter(with_bos(), context=3)
    pieces = cutter.cut([4, 9, 2], ["", "ab</s></s>cd", "</s>"])
    assert [(piece.text, piece.number) for piece in pieces] == [(9, 0), (9, 2)]
    assert ids(pieces) == [[BOS, *plain_ids("ab")], [BOS, *plain_ids("cd")]]
    assert cutter.cut([], []) == []


def test_cutting_says_nothing_of_long_texts(caplog: pytest.LogCaptureFixture) -> None:
    """A text longer than the model is no mistake here."""
    tokenizer = with_bos()
    tokenizer.model_max_length = 8
    assert len(Cutter(tokenizer, context=8).cut([0], ["a" * 100])) == 15
    assert not caplog.records


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"context": 1}, "context 1: expected at least 2"),
        ({"context": 513, "max_context": 512}, "reads at most 512"),
        ({"context": 8, "mask": "all"}, "expected one of special, bos, none"),
    ],
)
def test_what_cannot_be_cut_is_refused(options: dict[str, Any], says: str) -> None:
    """The message names the setting."""
    with pytest.raises(SettingsError, match=says):
        Cutter(byte_tokenizer(), **options)


def test_the_tokenizer_is_had_without_the_model() -> None:
    """By the model's name; what is none is an EngineError."""
    assert tokenizer_of(builtin.NAME)("hi")["input_ids"] == load(builtin.NAME).tokenizer("hi")["input_ids"]
    with pytest.raises(EngineError, match="no/where"):
        tokenizer_of("./no/where")

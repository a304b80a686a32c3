"""Cutting texts into pieces that a model can read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from actscope.engines import builtin
from actscope.errors import EngineError, SettingsError
from actscope.extraction.contract import Piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Which tokens have no row: "special", every special token; "bos", only a BOS at position 0; "none".
Mask = Literal["special", "bos", "none"]


class Cutter:
    """Texts in, pieces of at most `context` tokens out; nothing of a text is left out, and no piece holds two texts.

    A text gets the special tokens that the tokenizer itself puts around one, unless it begins with a special token already
    (a rendered chat). What is longer than `context` goes on in further pieces, each at position 0 again; where the text
    began with the BOS, they do too, so that the model has its attention sink. Two pieces overlap in nothing else: the first
    tokens of a later piece are read without what came before them.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        context: int,
        mask: Mask = "special",
        max_context: int | None = None,
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise SettingsError("cutting texts needs a fast tokenizer, one with a tokenizer.json")
        if mask not in get_args(Mask):
            raise SettingsError(f"mask {mask!r}: expected one of {', '.join(get_args(Mask))}")
        if context < 2:
            raise SettingsError(f"context {context}: expected at least 2 tokens, a BOS and one more")
        if max_context is not None and context > max_context:
            raise SettingsError(f"context {context}: this model reads at most {max_context} tokens at once")
        self.context = context
        self.mask = mask
        self._tokenizer = tokenizer
        self._bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
        self._marks = tuple(tokenizer.all_special_tokens)
        self._special = _table(special_ids(tokenizer))

    def cut(self, numbers: Sequence[int], texts: Sequence[str]) -> list[Piece]:
        """The pieces of these texts, text by text. A piece of which no row is wanted is left out; its number is not reused."""
        return [
            piece
            for text, ids in zip(numbers, self._encode(texts), strict=True)
            for piece in self._pieces(int(text), ids)
        ]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        rendered = [text.startswith(self._marks) for text in texts]
        ids: list[list[int]] = [[]] * len(texts)
        for bare in (False, True):
            chosen = [i for i, is_rendered in enumerate(rendered) if is_rendered == bare]
            if not chosen:
                continue
            encoded = self._tokenizer(
                [texts[i] for i in chosen],
                add_special_tokens=not bare,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
            for i, found in zip(chosen, encoded["input_ids"], strict=True):
                ids[i] = found
        return ids

    def _pieces(self, text: int, ids: Sequence[int]) -> Iterator[Piece]:
        for number, own in enumerate(self._stretches(np.array(ids, np.int32))):
            wanted = self._wanted(own)
            if wanted.any():
                yield Piece(text, number, own, wanted)

    def _stretches(self, ids: np.ndarray) -> Iterator[np.ndarray]:
        yield ids[: self.context]
        head = ids[:1] if len(ids) and ids[0] == self._bos else ids[:0]
        step = self.context - len(head)
        for start in range(self.context, len(ids), step):
            yield np.concatenate((head, ids[start : start + step]))

    def _wanted(self, ids: np.ndarray) -> np.ndarray:
        if self.mask == "special":
            special: np.ndarray = self._special[np.minimum(ids, len(self._special) - 1)]
            return ~special
        wanted = np.ones(len(ids), bool)
        if self.mask == "bos":
            wanted[:1] = ids[:1] != self._bos
        return wanted


def tokenizer_of(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id, a local directory or `actscope/builtin`, without the model. Raises EngineError."""
    from transformers import AutoTokenizer

    source = str(builtin.model_path()) if model == builtin.NAME else model
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise EngineError(f"cannot load the tokenizer of {model!r}: {error}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise EngineError(f"{model}: its tokenizer has no tokenizer.json; convert it to a fast tokenizer first")
    return tokenizer


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Those that the tokenizer has a role for, and those that its vocabulary merely calls special."""
    added = tokenizer.added_tokens_decoder.items()
    return {*tokenizer.all_special_ids, *(number for number, token in added if token.special)}


def _table(ids: set[int]) -> np.ndarray:
    """bool, true at these ids; its last place, for all ids that are higher, is false."""
    table = np.zeros(max(ids, default=0) + 2, bool)
    table[list(ids)] = True
    return table

"""Tokenize texts and cut them into pieces that fit a model's context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from actscope.engines.checkpoint_code import loading
from actscope.engines.local.names import directory_of
from actscope.errors import EngineError, SettingsError
from actscope.extraction.contract import Piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Which tokens yield no row: "special", all special tokens; "bos", only a BOS at position 0; "none", no token.
Mask = Literal["special", "bos", "none"]


class Cutter:
    """Cuts texts into pieces of at most `context` tokens. Every token is in a piece, and no piece spans two texts.

    A text gets the special tokens that the tokenizer adds by itself, unless it already begins with a special token (as a
    rendered chat does). A text longer than `context` continues in further pieces, each from position 0. If the text begins
    with the BOS, so does every piece, to give the model its attention sink. Pieces do not overlap otherwise: the first tokens
    of a later piece are read without the context before them.

    Args:
        tokenizer: A fast tokenizer of transformers.
        context: Maximum number of tokens in a piece, at least 2.
        mask: Which tokens yield no row.
        max_context: The model's maximum context, if known.

    Raises:
        SettingsError: An argument is out of range, or the tokenizer is not a fast one.
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
        """Cut texts into pieces.

        Args:
            numbers: Numbers of the texts, for the pieces' labels.
            texts: The texts.

        Returns:
            The pieces, text by text. A piece without a wanted row is omitted, and its number is not reused.
        """
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


def tokenizer_of(model: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the fast tokenizer of a model (any name that `load` takes), without the model.

    Raises EngineError if it cannot be loaded, is not a fast tokenizer, or needs code from its checkpoint that is not trusted.
    """
    from transformers import AutoTokenizer

    source = str(directory_of(model) or model)
    with loading(model, "its tokenizer (tokenizer.json, tokenizer_config.json)", "Give a model with a fast tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    if not getattr(tokenizer, "is_fast", False):
        raise EngineError(f"{model}: its tokenizer has no tokenizer.json; convert it to a fast tokenizer first")
    return tokenizer


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of all special tokens: those with a role in the tokenizer, and added tokens flagged as special."""
    added = tokenizer.added_tokens_decoder.items()
    return {*tokenizer.all_special_ids, *(number for number, token in added if token.special)}


def _table(ids: set[int]) -> np.ndarray:
    """Return a bool lookup table, true at these ids. Its last entry, for all higher ids, is false."""
    table = np.zeros(max(ids, default=0) + 2, bool)
    table[list(ids)] = True
    return table

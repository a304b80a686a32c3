"""Cutting a unit into the pieces that the model reads, with the owning text of every token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from actscope.errors import SettingsError
from actscope.extraction.contract import Piece
from actscope.extraction.cutting import Cutter, special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Text of a token that belongs to no text: the BOS of a packed context, or a separator.
NO_TEXT = -1


@dataclass(frozen=True, slots=True, eq=False)
class OwnedPiece:
    """Piece, with the text of each of its tokens: int64 [n], NO_TEXT for tokens that belong to no text."""

    piece: Piece
    texts: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class UnitPieces:
    """All pieces of a unit. `left_over`: number of tokens at its end that did not fill a context."""

    pieces: list[OwnedPiece]
    left_over: int = 0

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens in all pieces."""
        return sum(len(owned.piece.token_ids) for owned in self.pieces)

    @property
    def n_rows(self) -> int:
        """Return the number of rows that the pieces give at each site."""
        return sum(owned.piece.n_rows for owned in self.pieces)


class Apart:
    """Cutting of each text on its own into pieces of at most `context` tokens, by Cutter."""

    def __init__(self, cutter: Cutter) -> None:
        self._cutter = cutter

    def cut(self, numbers: Sequence[int], texts: Sequence[str]) -> UnitPieces:
        """Cut each text on its own. No token is left over."""
        pieces = self._cutter.cut(numbers, texts)
        return UnitPieces([OwnedPiece(piece, np.full(len(piece.token_ids), piece.text, np.int64)) for piece in pieces])


class Packed:
    """Packing of texts into contexts of exactly `context` tokens, as in SAELens (concat_and_batch_sequences).

    Each context begins with the BOS, if the tokenizer has one. A separator stands between two texts, unless the next text begins
    with it; `separator_of` says which token it is. The model reads a context as one sequence: a token attends to earlier texts
    of its context too. A text that does not fit continues in the next context. Tokens at the end of a unit that do not fill a
    context are left out.

    A piece's number is that of the context in its unit. Its text is that of the first token that belongs to one.
    """

    def __init__(
        self, whole: Cutter, tokenizer: PreTrainedTokenizerBase, *, context: int, separator: str, mask: str
    ) -> None:
        """Pack texts that `whole` encodes without cutting them. `mask`: tokens that give no row, as for Cutter.

        Raises SettingsError if the tokenizer has no token that can separate texts, and `separator` is not "none".
        """
        self._whole = whole
        self._context = context
        self._bos = _id(tokenizer, "bos_token_id", "cls_token_id")
        self._separator = separator_of(tokenizer, separator).token_id
        bos = [] if self._bos is None else [self._bos]
        self._masked = np.array({"special": sorted(special_ids(tokenizer)), "bos": bos}.get(mask, []), np.int32)

    def cut(self, numbers: Sequence[int], texts: Sequence[str]) -> UnitPieces:
        """Pack the texts into full contexts. Tokens that do not fill the last one are only counted."""
        found: list[OwnedPiece] = []
        ids: list[int] = []
        owners: list[int] = []
        for piece in self._whole.cut(numbers, texts):
            own = piece.token_ids.tolist()
            own = own[1:] if own and own[0] == self._bos else own
            for token, owner in self._lead(ids, own):
                self._push(token, owner, ids, owners, found)
            for token in own:
                if not ids:
                    self._begin(token, ids, owners)
                self._push(token, piece.text, ids, owners, found)
        return UnitPieces(found, left_over=len(ids))

    def _lead(self, ids: list[int], own: list[int]) -> Iterator[tuple[int, int]]:
        """Yield the separator before a text that does not begin a context."""
        if ids and own and self._separator is not None and own[0] != self._separator:
            yield self._separator, NO_TEXT

    def _begin(self, token: int, ids: list[int], owners: list[int]) -> None:
        if self._bos is not None and token != self._bos:
            ids.append(self._bos)
            owners.append(NO_TEXT)

    def _push(self, token: int, owner: int, ids: list[int], owners: list[int], found: list[OwnedPiece]) -> None:
        ids.append(token)
        owners.append(owner)
        if len(ids) == self._context:
            found.append(self._context_of(len(found), ids, owners))
            ids.clear()
            owners.clear()

    def _context_of(self, number: int, ids: list[int], owners: list[int]) -> OwnedPiece:
        token_ids, texts = np.array(ids, np.int32), np.array(owners, np.int64)
        wanted = ~np.isin(token_ids, self._masked)
        known = texts[texts != NO_TEXT]
        return OwnedPiece(Piece(int(known[0]) if len(known) else 0, number, token_ids, wanted), texts)


@dataclass(frozen=True, slots=True)
class Separator:
    """Token between packed texts: its role ("bos", "eos" or "none") and its id, None for "none"."""

    role: str
    token_id: int | None


def separator_of(tokenizer: PreTrainedTokenizerBase, wanted: str) -> Separator:
    """Return the token that separates packed texts.

    "bos" is the tokenizer's BOS or CLS token, "eos" its EOS or SEP token. A tokenizer that lacks the one that is wanted gives
    the other; the plan and the manifest then name that one.

    Args:
        tokenizer: The tokenizer.
        wanted: "bos", "eos" or "none".

    Raises:
        SettingsError: The tokenizer has none of the four tokens, so nothing would show where a text ends.
    """
    if wanted == "none":
        return Separator("none", None)
    roles = {"bos": ("bos_token_id", "cls_token_id"), "eos": ("eos_token_id", "sep_token_id")}
    for role in (wanted, "eos" if wanted == "bos" else "bos"):
        found = _id(tokenizer, *roles[role])
        if found is not None:
            return Separator(role, found)
    raise SettingsError(
        f"separator {wanted}: this tokenizer has no BOS, CLS, EOS or SEP token, so packed texts would run into each other; "
        "set one (tokenizer.eos_token = ..., then save_pretrained), read each text on its own, or accept it with separator none"
    )


def _id(tokenizer: PreTrainedTokenizerBase, *names: str) -> int | None:
    """Return the first of these token ids that the tokenizer has, or None."""
    return next((int(found) for name in names if (found := getattr(tokenizer, name, None)) is not None), None)

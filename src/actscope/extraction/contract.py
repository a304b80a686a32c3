"""What reading is made of: numbered texts, pieces of them, and the rows that a model gives for the pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

#: Whose row it is: the text's number in its dataset, which piece of the text, the position in that piece (what the model took
#: for the token's position), and the token.
ROW_LABEL = np.dtype([("text", "<u8"), ("piece", "<u4"), ("position", "<u4"), ("token_id", "<i4")])


class Texts(Protocol):
    """A dataset: `len(texts)` texts, numbered from 0. The same number always gives the same text."""

    name: str
    """What it was asked for by."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever any text does; hex. It may take a while to compute when it is first asked for."""
        ...

    def __len__(self) -> int: ...

    def read(self, numbers: Sequence[int]) -> list[str]:
        """The texts with these numbers, in this order."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A stretch of one text that the model reads as one sequence, from position 0.

    token_ids int32 [n], with the tokenizer's BOS where it has one; wanted bool [n]: the positions whose rows are delivered.
    """

    text: int
    number: int
    token_ids: np.ndarray
    wanted: np.ndarray

    @property
    def n_rows(self) -> int:
        """How many rows it gives."""
        return int(self.wanted.sum())

    def labels(self) -> np.ndarray:
        """ROW_LABEL [n_rows]."""
        positions = np.flatnonzero(self.wanted)
        labels = np.empty(len(positions), ROW_LABEL)
        labels["text"], labels["piece"] = self.text, self.number
        labels["position"], labels["token_id"] = positions, self.token_ids[positions]
        return labels


@dataclass(frozen=True, slots=True, eq=False)
class ExtractedRows:
    """The rows of some pieces: piece by piece, position by position.

    values[site] [n, d] on the CPU, in the reader's dtype; labels ROW_LABEL [n].
    """

    values: dict[str, Tensor]
    labels: np.ndarray


@dataclass(frozen=True, slots=True)
class ReaderFacts:
    """What a reader says of its model. `dtype` is that of its rows: "float32", "bfloat16" or "float16".

    `deterministic`: whether the same pieces in the same order give the same bits; where not, it is the engine's kernels that
    cannot promise it.
    """

    engine: str
    model: str
    revision: str
    sites: tuple[str, ...]
    d_model: int
    dtype: str
    deterministic: bool = True


class Reader(Protocol):
    """A model that reads pieces."""

    facts: ReaderFacts

    def read(self, pieces: Sequence[Piece]) -> ExtractedRows:
        """The rows of these pieces. The same pieces in the same order give the same bits, whatever was read before; see
        `facts.deterministic`.

        Raises EngineError when the model fails, or when a row cannot be had: never fewer rows than the pieces want.
        """
        ...

    def close(self) -> None:
        """Free the model."""
        ...

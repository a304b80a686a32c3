"""Types of extraction: numbered texts, pieces of texts, rows of pieces, and the reader that computes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

#: Label of an extracted row: number of the text in its dataset, number of the piece in the text, position in the piece (the
#: position that the model used), and token id.
ROW_LABEL = np.dtype([("text", "<u8"), ("piece", "<u4"), ("position", "<u4"), ("token_id", "<i4")])


class Texts(Protocol):
    """A dataset of `len(texts)` texts, numbered from 0. A number always denotes the same text."""

    name: str
    """The specification with which the dataset was opened."""

    @property
    def fingerprint(self) -> str:
        """Hash of the texts, in hex, to detect a changed dataset. The first access may be slow."""
        ...

    def __len__(self) -> int: ...

    def read(self, numbers: Sequence[int]) -> list[str]:
        """Return the texts with these numbers, in this order."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A part of one text that the model reads as one sequence, from position 0.

    Attributes:
        text: Number of the text in its dataset.
        number: Number of the piece in its text, from 0.
        token_ids: int32 [n], special tokens included.
        wanted: bool [n], true for the positions whose rows are delivered.
    """

    text: int
    number: int
    token_ids: np.ndarray
    wanted: np.ndarray

    @property
    def n_rows(self) -> int:
        """Number of rows that the piece yields."""
        return int(self.wanted.sum())

    def labels(self) -> np.ndarray:
        """Return the labels of the piece's rows, ROW_LABEL [n_rows]."""
        positions = np.flatnonzero(self.wanted)
        labels = np.empty(len(positions), ROW_LABEL)
        labels["text"], labels["piece"] = self.text, self.number
        labels["position"], labels["token_id"] = positions, self.token_ids[positions]
        return labels


@dataclass(frozen=True, slots=True, eq=False)
class ExtractedRows:
    """Rows of pieces, in the order of the pieces and of the positions in each.

    Attributes:
        values: For each site [n, d] on the CPU, in the reader's dtype.
        labels: ROW_LABEL [n].
    """

    values: dict[str, Tensor]
    labels: np.ndarray


@dataclass(frozen=True, slots=True)
class ReaderFacts:
    """Description of a reader and its model.

    Attributes:
        engine: "hf" or "vllm".
        model: Name of the model.
        revision: Revision of the model.
        sites: Names of the sites that are read.
        d_model: Width of the rows.
        dtype: Element type of the rows: "float32", "bfloat16" or "float16".
        deterministic: Whether the same pieces in the same order always give the same bits. If False, the engine's kernels do
            not guarantee it.
    """

    engine: str
    model: str
    revision: str
    sites: tuple[str, ...]
    d_model: int
    dtype: str
    deterministic: bool = True


class Reader(Protocol):
    """A model opened for extraction."""

    facts: ReaderFacts

    def read(self, pieces: Sequence[Piece]) -> ExtractedRows:
        """Compute the rows of pieces.

        If `facts.deterministic`, the same pieces in the same order give the same bits, whatever was read before.

        Args:
            pieces: The pieces, each no longer than the reader's context.

        Returns:
            All wanted rows of all pieces, never fewer.

        Raises:
            EngineError: The model failed, or a row could not be obtained.
        """
        ...

    def close(self) -> None:
        """Free the model."""
        ...

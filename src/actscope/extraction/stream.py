"""The stream of rows of one epoch, in an order that anyone can compute again."""

from __future__ import annotations

import numpy as np

from actscope.errors import SettingsError
from actscope.extraction.contract import Piece, Texts
from actscope.extraction.cutting import Cutter
from actscope.permutation import Permutation

CHUNK_TEXTS = 256


class TextStream:
    """All texts once, in chunks of `chunk_texts`: chunk k holds the texts at places k * chunk_texts .. of the epoch's order.

    The order is `Permutation(len(texts), seed, epoch)`, or that of the dataset with shuffle=False. The same texts, cutter
    and numbers give the same pieces on every machine, and no chunk depends on another.
    """

    def __init__(
        self,
        texts: Texts,
        cutter: Cutter,
        *,
        seed: int = 0,
        epoch: int = 0,
        chunk_texts: int = CHUNK_TEXTS,
        shuffle: bool = True,
    ) -> None:
        if chunk_texts < 1:
            raise SettingsError(f"chunk_texts {chunk_texts}: expected at least 1")
        self.texts = texts
        self.cutter = cutter
        self.chunk_texts = chunk_texts
        self._order = Permutation(len(texts), seed, epoch) if shuffle else None

    @property
    def n_chunks(self) -> int:
        return -(-len(self.texts) // self.chunk_texts)

    def numbers(self, chunk: int) -> np.ndarray:
        """The numbers of the chunk's texts, int64, in the order of the stream."""
        if not 0 <= chunk < self.n_chunks:
            raise IndexError(f"chunk {chunk} of {self.n_chunks}")
        start = chunk * self.chunk_texts
        stop = min(start + self.chunk_texts, len(self.texts))
        return self._order.part(start, stop) if self._order is not None else np.arange(start, stop)

    def pieces(self, chunk: int) -> list[Piece]:
        """The pieces of the chunk's texts: their rows, one after the other, are the stream's."""
        numbers = self.numbers(chunk).tolist()
        return self.cutter.cut(numbers, self.texts.read(numbers))

    def rows_in(self, chunk: int) -> int:
        """How many rows the chunk gives. Reads and tokenizes its texts, but needs no model."""
        return sum(piece.n_rows for piece in self.pieces(chunk))

    def locate(self, row: int, from_chunk: int = 0) -> tuple[int, int]:
        """Where the `row`-th row from the start of `from_chunk` on lies: (chunk, rows of the chunk before it).

        The end of the stream is (n_chunks, 0). Raises SettingsError for a row beyond it.
        """
        left = row
        for chunk in range(from_chunk, self.n_chunks):
            rows = self.rows_in(chunk)
            if left < rows:
                return chunk, left
            left -= rows
        if left:
            raise SettingsError(
                f"row {row} from chunk {from_chunk} on: the stream ends {left} rows before it; were other texts, "
                "another tokenizer or another context used when the row was counted?"
            )
        return self.n_chunks, 0

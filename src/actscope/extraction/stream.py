"""The stream of pieces of one epoch, in a reproducible order."""

from __future__ import annotations

import numpy as np

from actscope.errors import SettingsError
from actscope.extraction.contract import Piece, Texts
from actscope.extraction.cutting import Cutter
from actscope.permutation import Permutation

CHUNK_TEXTS = 256


class TextStream:
    """All texts once, in chunks: chunk k holds the texts at places `k * chunk_texts ..` of the epoch's order.

    The order is `Permutation(len(texts), seed, epoch)`, or the dataset's own with shuffle=False. The same arguments give
    the same pieces on every machine, and no chunk depends on another.

    Args:
        texts: The dataset.
        cutter: Cuts texts into pieces.
        seed: Seed of the order.
        epoch: Number of the epoch; each has an order of its own.
        chunk_texts: Texts per chunk, at least 1.
        shuffle: Whether the texts are shuffled.
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
        """Return the number of chunks of an epoch; the last may be shorter."""
        return -(-len(self.texts) // self.chunk_texts)

    def numbers(self, chunk: int) -> np.ndarray:
        """Return the numbers of the chunk's texts, int64, in the order of the stream. Raises IndexError beyond the last chunk."""
        if not 0 <= chunk < self.n_chunks:
            raise IndexError(f"chunk {chunk} of {self.n_chunks}")
        start = chunk * self.chunk_texts
        stop = min(start + self.chunk_texts, len(self.texts))
        return self._order.part(start, stop) if self._order is not None else np.arange(start, stop)

    def pieces(self, chunk: int) -> list[Piece]:
        """Read and cut the chunk's texts. The rows of these pieces, in order, are the chunk's rows in the stream."""
        numbers = self.numbers(chunk).tolist()
        return self.cutter.cut(numbers, self.texts.read(numbers))

    def rows_in(self, chunk: int) -> int:
        """Return the number of the chunk's rows. Reads and tokenizes its texts, but needs no model."""
        return sum(piece.n_rows for piece in self.pieces(chunk))

    def locate(self, row: int, from_chunk: int = 0) -> tuple[int, int]:
        """Find a row of the stream. Reads and tokenizes the texts up to it.

        Args:
            row: Number of the row, counted from the start of `from_chunk`.
            from_chunk: The chunk at which counting begins.

        Returns:
            The row's chunk, and the number of rows before it in that chunk. The end of the stream is `(n_chunks, 0)`.

        Raises:
            SettingsError: The row is beyond the end of the stream.
        """
        left = row
        for chunk in range(from_chunk, self.n_chunks):
            rows = self.rows_in(chunk)
            if left < rows:
                return chunk, left
            left -= rows
        if left:
            raise SettingsError(
                f"row {row} from chunk {from_chunk} on: the stream ends {left} rows before it; was the row counted with other "
                "texts, another tokenizer or another context?"
            )
        return self.n_chunks, 0

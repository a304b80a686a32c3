"""Codec interface: an encoder with the state of one site, and the encoded block that it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class Encoded:
    """One encoded block of rows `[n, d]`.

    Attributes:
        codec: Wire code (see CODECS) of the codec that encoded the block; `auto` delegates to another.
        payload: The bytes; with codec `none` they share memory with the rows.
        row_errors: float32 [n], relative L2 error ||x - x'|| / ||x|| of each row, measured by decoding; None if lossless.
            0 for a row that is stored exactly, including rows with NaN or infinity.
        state: Number of the codec state (an SVD basis) that decoding needs; 0 if none.
        new_state: Bytes of that state if this block is the first to need it. They must be stored before the block.
    """

    codec: int
    payload: bytes | memoryview
    row_errors: np.ndarray | None
    state: int = 0
    new_state: bytes | None = None


class Encoder(Protocol):
    """Encoder of the blocks of one site, in order. Used by one thread at a time."""

    def encode(self, rows: np.ndarray, dtype: str) -> Encoded:
        """Encode rows `[n, d]` in the carrier of `dtype`. Raises CodecError if the codec does not accept them."""
        ...

    def report(self) -> Mapping[str, object]:
        """Return choices and measurements so far, as JSON values."""
        ...

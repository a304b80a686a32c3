"""What a codec is: an encoder with one site's state, and what it gives for a block of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class Encoded:
    """One block of rows `[n, d]` as bytes.

    codec: wire code (see CODECS) of what really encoded it; `auto` delegates.
    payload: the bytes; with codec `none` they share memory with the rows.
    row_errors: float32 [n], relative L2 error ||x - x'|| / ||x|| of each row, measured by decoding; None: lossless.
        0 for a row that was kept exactly, whatever is in it.
    state: number of the codec state (an SVD basis) that decoding needs; 0: none.
    new_state: that state's bytes, when this block is the first to need it; they must be stored before the block.
    """

    codec: int
    payload: bytes | memoryview
    row_errors: np.ndarray | None
    state: int = 0
    new_state: bytes | None = None


class Encoder(Protocol):
    """Encodes the blocks of one site, in order; used by one thread at a time."""

    def encode(self, rows: np.ndarray, dtype: str) -> Encoded:
        """Rows `[n, d]` in the carrier of `dtype`; CodecError when the codec does not take them."""
        ...

    def report(self) -> dict[str, Any]:
        """What was chosen and measured so far: plain values that JSON holds."""
        ...

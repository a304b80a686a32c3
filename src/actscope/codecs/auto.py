"""`auto`, `auto:B`: whichever codec packs this site's rows best, of those that are fast enough.

Candidates encode the first block. The one with the best ratio is taken among those that reach a floor of speed; `none`
when no other does. They are measured again after many blocks. `auto` tries codecs that lose nothing; `auto:B` also
`error_bounded:B`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from actscope.codecs.contract import Encoded, Encoder
from actscope.codecs.dtypes import checked_rows
from actscope.codecs.error_bounded import ErrorBounded
from actscope.codecs.general import LZ4, NONE, SHUFFLE_ZSTD, ZSTD, General
from actscope.codecs.lossless import Lossless

#: GB of rows a second of one core's time that a codec must reach.
FLOOR_GBPS = 0.15
#: Blocks until the candidates are measured again.
REMEASURE_BLOCKS = 1024
#: Blocks with fewer bytes say too little about ratio and speed: the next one is measured again.
_ENOUGH_BYTES = 256 << 10
_MOST_BYTES = 8 << 20


class Auto:
    """Delegates to one of the candidates; `Encoded.codec` says to which."""

    def __init__(self, bound: float | None = None) -> None:
        self._candidates: dict[str, Callable[[], Encoder]] = {
            "none": lambda: General(NONE),
            "lz4": lambda: General(LZ4),
            "zstd": lambda: General(ZSTD),
            "shuffle_zstd": lambda: General(SHUFFLE_ZSTD),
            "lossless": Lossless,
        }
        if bound is not None:
            ErrorBounded(bound)  # a bound out of range is refused here, not at the first block
            self._candidates[f"error_bounded:{bound:g}"] = lambda: ErrorBounded(bound)
        self._chosen: Encoder = General(NONE)
        self._name = "none"
        self._blocks = self._next = 0
        self._measured_at = -1
        self._measured: dict[str, dict[str, float]] = {}

    def encode(self, rows: np.ndarray, dtype: str) -> Encoded:
        rows = checked_rows(rows, dtype)
        if self._blocks >= self._next and rows.size:
            self._choose(rows, dtype)
        self._blocks += 1
        return self._chosen.encode(rows, dtype)

    def _choose(self, rows: np.ndarray, dtype: str) -> None:
        sample = rows[: max(1, _MOST_BYTES // rows[0].nbytes)]
        encoders = {name: make() for name, make in self._candidates.items()}
        encoders[self._name] = self._chosen if self._measured else encoders[self._name]
        self._measured = {name: _measure(encoder, sample, dtype) for name, encoder in encoders.items()}
        self._name = chosen(self._measured)
        self._chosen = encoders[self._name]
        self._measured_at = self._blocks
        self._next = self._blocks + (REMEASURE_BLOCKS if sample.nbytes >= _ENOUGH_BYTES else 1)

    def report(self) -> dict[str, Any]:
        return {
            "chosen": self._name,
            "measured": self._measured,
            "measured_at_block": self._measured_at,
            "floor_gbps": FLOOR_GBPS,
            "blocks": self._blocks,
            "of_chosen": self._chosen.report(),
        }


def _measure(encoder: Encoder, sample: np.ndarray, dtype: str) -> dict[str, float]:
    """Ratio, and GB of rows for each second of this thread's own time, so that a busy machine does not count."""
    encoder.encode(sample, dtype)  # the first call pays for fresh memory
    began = time.thread_time_ns()
    encoded = encoder.encode(sample, dtype)
    took = max(1, time.thread_time_ns() - began)
    return {"ratio": sample.nbytes / max(1, len(encoded.payload)), "gbps": sample.nbytes / took}


def chosen(measured: dict[str, dict[str, float]]) -> str:
    """The best ratio among those that reach the floor, `none` always among them; the first of equals."""
    fast = [name for name, figures in measured.items() if figures["gbps"] >= FLOOR_GBPS] or ["none"]
    return max(fast, key=lambda name: measured[name]["ratio"])

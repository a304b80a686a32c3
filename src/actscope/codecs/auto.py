"""`auto`, `auto:B`: the codec with the best compression ratio for a site's rows among those that are fast enough.

Every candidate encodes the first block. The encoder selects the best ratio among the candidates that reach a minimum
speed, or `none` if no candidate does. It measures again after `REMEASURE_BLOCKS` blocks. `auto` tries lossless codecs;
`auto:B` also tries `error_bounded:B`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypedDict

import numpy as np

from actscope.codecs.contract import Encoded, Encoder
from actscope.codecs.dtypes import checked_rows
from actscope.codecs.error_bounded import ErrorBounded
from actscope.codecs.general import LZ4, NONE, SHUFFLE_ZSTD, ZSTD, General
from actscope.codecs.lossless import Lossless

#: Minimum speed of a codec in GB of rows (10^9 bytes) per second of CPU time.
FLOOR_GBPS = 0.15
#: Number of blocks between measurements.
REMEASURE_BLOCKS = 1024
#: Smaller blocks do not give reliable ratios and speeds, so the next block is measured too.
_ENOUGH_BYTES = 256 << 10
_MOST_BYTES = 8 << 20


class AutoReport(TypedDict):
    """Choices and measurements of `Auto`. `measured` holds the ratio and GB/s of each candidate."""

    chosen: str
    measured: dict[str, dict[str, float]]
    measured_at_block: int
    floor_gbps: float
    blocks: int
    of_chosen: Mapping[str, object]


class Auto:
    """Encoder that delegates to the best candidate. `Encoded.codec` names the candidate."""

    def __init__(self, bound: float | None = None) -> None:
        self._candidates: dict[str, Callable[[], Encoder]] = {
            "none": lambda: General(NONE),
            "lz4": lambda: General(LZ4),
            "zstd": lambda: General(ZSTD),
            "shuffle_zstd": lambda: General(SHUFFLE_ZSTD),
            "lossless": Lossless,
        }
        if bound is not None:
            ErrorBounded(bound)  # raises for a bound out of range now instead of at the first block
            self._candidates[f"error_bounded:{bound:g}"] = lambda: ErrorBounded(bound)
        self._chosen: Encoder = General(NONE)
        self._name = "none"
        self._blocks = self._next = 0
        self._measured_at = -1
        self._measured: dict[str, dict[str, float]] = {}

    def encode(self, rows: np.ndarray, dtype: str) -> Encoded:
        """Encode rows [n, d] with the chosen candidate, after measuring all candidates again if that is due."""
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

    def report(self) -> AutoReport:
        """Return the chosen candidate, its report, and the latest ratio and GB/s of every candidate."""
        return {
            "chosen": self._name,
            "measured": self._measured,
            "measured_at_block": self._measured_at,
            "floor_gbps": FLOOR_GBPS,
            "blocks": self._blocks,
            "of_chosen": self._chosen.report(),
        }


def _measure(encoder: Encoder, sample: np.ndarray, dtype: str) -> dict[str, float]:
    """Return the ratio and the GB/s of this thread's CPU time, which other load on the machine does not affect."""
    encoder.encode(sample, dtype)  # warm-up: the first call also faults in memory pages
    began = time.thread_time_ns()
    encoded = encoder.encode(sample, dtype)
    took = max(1, time.thread_time_ns() - began)
    return {"ratio": sample.nbytes / max(1, len(encoded.payload)), "gbps": sample.nbytes / took}


def chosen(measured: dict[str, dict[str, float]]) -> str:
    """Return the codec with the best ratio among those that reach `FLOOR_GBPS`, the first of equals; `none` if none does."""
    fast = [name for name, figures in measured.items() if figures["gbps"] >= FLOOR_GBPS] or ["none"]
    return max(fast, key=lambda name: measured[name]["ratio"])

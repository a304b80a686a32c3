"""A uniform quantiser for rows: `x' = q * step + mean`, one step for each row, one mean for each channel of a block.

Rounding to a grid of this step errs by step / sqrt(12) in each of d channels (Bennett 1948), so that a relative L2
error B wants `step = B * ||x|| * sqrt(12 / d)`. That is the mean of it: how far one row errs is a matter of luck, and so each
is measured. Steps are kept as the upper half of a float32, means too: the encoder works with what the decoder will read,
in the same float32 operations, and so sees the rows that the decoder gives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from actscope.codecs.bitfields import LOW_BITS, limit
from actscope.codecs.dtypes import from_float32, to_float32

#: Squared norms outside this are not worked on: float32 would lose digits of them, or overflow.
_SQUARED_NORMS = (1e-24, 1e24)
_SAMPLE_ROWS = 256
_SAMPLE_INTEGERS = 12_345
#: Fewer rows than these do not pay for a table of means, or of the channels' order.
_ROWS_FOR_MEANS = 192
_ROWS_FOR_ORDER = 768
#: What an integer beyond the range of its planes costs, in bits.
_ESCAPE_BITS = 64.0


def squared_norms(rows: np.ndarray) -> np.ndarray:
    """float32 [n] of float32 [n, d]."""
    if hasattr(np, "vecdot"):
        return np.vecdot(rows, rows)  # type: ignore[no-any-return]
    return np.einsum("ij,ij->i", rows, rows)  # type: ignore[no-any-return]


def workable(squared: np.ndarray) -> np.ndarray:
    """bool [n]: rows whose norm float32 holds; not those with NaN, infinity, nothing, or next to nothing in them."""
    low, high = _SQUARED_NORMS
    return (squared > low) & (squared < high)


def upper_half(values: np.ndarray) -> np.ndarray:
    """float32 cut to its upper 16 bits, towards zero: uint16 of the same shape."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def step_bits(squared: np.ndarray, error: np.ndarray | float, d: int) -> np.ndarray:
    """Steps, as uint16 [n], at which rows of these squared norms err by about `error`, or a little less."""
    return upper_half((np.sqrt(squared) * np.float32(np.sqrt(12 / d)) * error).astype(np.float32))


def widened(bits: np.ndarray) -> np.ndarray:
    """uint16 upper halves as the float32 that they stand for."""
    return to_float32(bits, "bfloat16")


@dataclass(frozen=True, slots=True)
class Plan:
    """How the rows of one block are quantised and laid out.

    mean_bits: uint16 [d], the channels' means, or None. order: uint16 [d], channels by their spread, or None: rows
    stay rows. k: how many low bits are kept apart (see `bitfields`). wide: integers need 32 bits.
    """

    mean_bits: np.ndarray | None
    order: np.ndarray | None
    k: int
    wide: bool

    def for_rows(self, n: int) -> Plan:
        """Without the tables that so few rows do not pay for."""
        mean_bits = self.mean_bits if n >= _ROWS_FOR_MEANS else None
        return replace(self, mean_bits=mean_bits, order=self.order if n >= _ROWS_FOR_ORDER else None)

    @property
    def mean(self) -> np.ndarray | None:
        return None if self.mean_bits is None else widened(self.mean_bits)

    @property
    def integers(self) -> np.dtype:
        return np.dtype(np.int32 if self.wide else np.int16)


def planned(rows: np.ndarray, dtype: str, error: float) -> Plan | None:
    """A plan from a sample of the rows [n, d]; None when no row of it can be quantised."""
    n, d = rows.shape
    sample = to_float32(rows[:: max(1, n // _SAMPLE_ROWS)], dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        squared = squared_norms(sample)
    usable = workable(squared)
    if not usable.any():
        return None
    sample, squared = sample[usable], squared[usable]
    scale = (1 / widened(step_bits(squared, error, d)).astype(np.float64)).astype(np.float32)[:, None]
    mean_bits = upper_half(sample.mean(axis=0)) if n >= _ROWS_FOR_MEANS else None
    if mean_bits is not None:
        sample = sample - widened(mean_bits)
    q = np.rint(sample * scale)
    order = np.argsort(np.abs(q).mean(axis=0)).astype(np.uint16) if n >= _ROWS_FOR_ORDER and d <= 1 << 16 else None
    return Plan(mean_bits, order, _low_bits(q), bool(np.abs(q).max() > 1 << 13))


def _low_bits(q: np.ndarray) -> int:
    """The cheapest cut by the entropy of a sample's tops, integers beyond the cut's range counted in."""
    flat = np.clip(q.reshape(-1)[:: max(1, q.size // _SAMPLE_INTEGERS)], -(1 << 30), 1 << 30).astype(np.int32)
    return min(LOW_BITS, key=lambda k: _cost(flat, k))


def _cost(flat: np.ndarray, k: int) -> float:
    """Bits for an integer."""
    top = flat >> k
    inside = (flat >= -limit(k)) & (flat < limit(k))
    share = np.bincount(top[inside] + 128, minlength=256) / flat.size
    share = share[share > 0]
    return k - float((share * np.log2(share)).sum()) + _ESCAPE_BITS * float(1 - inside.mean())


def quantised(x: np.ndarray, mean: np.ndarray | None, steps: np.ndarray, scratch: np.ndarray, q: np.ndarray) -> None:
    """float32 [r, d] to integers `q` of the same shape; `scratch` is float32 of that shape too. Steps float32 [r, 1]."""
    inverse = np.float32(1) / steps
    if mean is None:
        np.multiply(x, inverse, out=scratch)
    else:
        np.subtract(x, mean, out=scratch)
        scratch *= inverse
    np.rint(scratch, out=scratch)
    np.copyto(q, scratch, casting="unsafe")


def reconstructed(q: np.ndarray, mean: np.ndarray | None, steps: np.ndarray, out: np.ndarray) -> None:
    """Integers [r, d] to float32 `out`. Encoder and decoder both come through here."""
    np.copyto(out, q)
    out *= steps
    if mean is not None:
        out += mean


def squared_errors(x: np.ndarray, approximate: np.ndarray, dtype: str) -> np.ndarray:
    """float32 [r]: squared L2 distance of rows, once `approximate` is rounded to `dtype`; it is overwritten."""
    if dtype != "float32":
        approximate = to_float32(from_float32(approximate, dtype), dtype)
    np.subtract(approximate, x, out=approximate)
    return squared_norms(approximate)

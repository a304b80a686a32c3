"""A uniform quantiser for rows: `x' = q * step`, one step for each row.

Rounding to a grid of this step errs by step / sqrt(12) in each of d channels (Bennett 1948), so that a relative L2
error B wants `step = B * ||x|| * sqrt(12 / d)`. That is the mean of it: how far one row errs is a matter of luck, and so
each is measured. Steps are kept as the upper half of a float32: the encoder works with what the decoder will read, in
the same float32 operations, and so sees the rows that the decoder gives. A channel's integers lie about a centre
of their own, which is taken off before they are written.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from actscope.codecs.coding.bitfields import LOW_BITS, limit
from actscope.codecs.dtypes import carrier, to_float32

#: Squared norms outside this are not worked on: float32 would lose digits of them, or overflow.
_SQUARED_NORMS = (1e-24, 1e24)
_SAMPLE_ROWS = 256
_SAMPLE_INTEGERS = 12_345
#: Fewer rows than these do not pay for a table of centres.
_ROWS_FOR_CENTRES = 192
#: What an integer beyond the range of its planes costs, in bits.
_ESCAPE_BITS = 64.0
#: Sampled integers up to here leave room for others in int16.
_NARROW = 1 << 13


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


def widened(bits: np.ndarray) -> np.ndarray:
    """uint16 upper halves as the float32 that they stand for."""
    return to_float32(bits, "bfloat16")


def step_bits(squared: np.ndarray, error: float, d: int) -> np.ndarray:
    """Steps, as uint16 [n], at which rows of these squared norms err by about `error`, or a little less."""
    return upper_half(np.sqrt(squared) * np.float32(np.sqrt(12 / d) * error))


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the rows of a block are quantised and laid out.

    integers: int16, or int32 where the sample asks for it. centres: [d] of these, zero where rows are few.
    k: how many low bits are kept apart (see `bitfields`).
    """

    integers: np.dtype
    centres: np.ndarray
    k: int


def planned(rows: np.ndarray, dtype: str, error: float) -> Quantization | None:
    """A plan from a sample of the rows [n, d]; None when no row of it can be quantised."""
    n, d = rows.shape
    sample = to_float32(rows[:: max(1, n // _SAMPLE_ROWS)], dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        squared = squared_norms(sample)
    usable = workable(squared)
    if not usable.any():
        return None
    steps = widened(step_bits(squared[usable], error, d))
    usable[usable] = steps > 0
    q = np.rint(sample[usable] / steps[steps > 0].astype(np.float64)[:, None])
    centres = np.rint(q.mean(axis=0)) if n >= _ROWS_FOR_CENTRES and len(q) else np.zeros(d)
    wide = bool(len(q) and np.abs(q).max() > _NARROW)
    integers = np.dtype(np.int32 if wide else np.int16)
    return Quantization(integers, centres.astype(integers), _low_bits(q - centres, LOW_BITS if wide else LOW_BITS[:-2]))


def _low_bits(q: np.ndarray, choices: tuple[int, ...]) -> int:
    """The cheapest cut by the entropy of a sample's tops, integers beyond the cut's range counted in."""
    flat = q.reshape(-1)[:: max(1, q.size // _SAMPLE_INTEGERS)].astype(np.int64)
    return min(choices, key=lambda k: _cost(flat, k))


def _cost(flat: np.ndarray, k: int) -> float:
    """Bits for an integer."""
    inside = (flat >= -limit(k)) & (flat < limit(k))
    share = np.bincount((flat[inside] >> k) + 128) / max(1, flat.size)
    share = share[share > 0]
    return k - float((share * np.log2(share)).sum()) + _ESCAPE_BITS * float(1 - inside.mean())


def quantised(x: np.ndarray, steps: np.ndarray, scratch: np.ndarray, q: np.ndarray) -> None:
    """float32 [r, d] to integers `q` of the same shape; `scratch` is float32 of that shape too. Steps float32 [r, 1]."""
    np.multiply(x, np.float32(1) / steps, out=scratch)
    np.rint(scratch, out=scratch)
    np.copyto(q, scratch, casting="unsafe")


def reconstructed(q: np.ndarray, steps: np.ndarray, out: np.ndarray) -> None:
    """Integers [r, d] to float32 `out`. Encoder and decoder both come through here."""
    np.copyto(out, q, casting="same_kind")
    out *= steps


def narrowed(rows: np.ndarray, dtype: str) -> np.ndarray:
    """Reconstructed float32 rows in the carrier of their dtype; they are overwritten. bfloat16 rounds halves away from zero.

    That takes one addition; which way halves go does not matter as long as the encoder knows (see `as_narrowed`).
    """
    if dtype != "bfloat16":
        return rows.astype(carrier(dtype), copy=False)
    bits = rows.view(np.uint32)
    bits += 0x8000
    bits >>= 16
    return bits.astype(np.uint16)


def as_narrowed(rows: np.ndarray, dtype: str) -> np.ndarray:
    """The same, as float32 again; in place where that can be."""
    if dtype != "bfloat16":
        return to_float32(rows.astype(carrier(dtype), copy=False), dtype)
    bits = rows.view(np.uint32)
    bits += 0x8000
    bits &= 0xFFFF0000
    return rows


def squared_errors(x: np.ndarray, approximate: np.ndarray, dtype: str) -> np.ndarray:
    """float32 [r]: squared L2 distance of rows, once `approximate` is in their dtype; it is overwritten."""
    approximate = as_narrowed(approximate, dtype)
    np.subtract(approximate, x, out=approximate)
    return squared_norms(approximate)

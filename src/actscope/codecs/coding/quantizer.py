"""Uniform quantizer for rows: `x' = q * step`, with one step per row.

Rounding to a grid has an RMS error of step / sqrt(12) in each of d channels (Bennett 1948, "Spectra of Quantized
Signals"). A relative L2 error B therefore needs `step = B * ||x|| * sqrt(12 / d)`. This holds on average; single rows
deviate, so the error of each row is measured. Steps are stored as the upper half of a float32. The encoder uses the stored
steps and the decoder's float32 operations, so it measures exactly the rows that the decoder produces. The integers of a
channel scatter around a center, which is subtracted before they are written.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from actscope.codecs.coding.bitfields import LOW_BITS, limit
from actscope.codecs.dtypes import carrier, to_float32

#: Rows with squared norms outside this range are not quantized: float32 would lose digits or overflow.
_SQUARED_NORMS = (1e-24, 1e24)
_SAMPLE_ROWS = 256
_SAMPLE_INTEGERS = 12_345
#: With fewer rows, a table of centers costs more than it saves.
_ROWS_FOR_CENTRES = 192
#: Cost of an escape in bits.
_ESCAPE_BITS = 64.0
#: If sampled integers stay below this limit, int16 leaves a margin for the others.
_NARROW = 1 << 13


def squared_norms(rows: np.ndarray) -> np.ndarray:
    """Return the squared L2 norm of each row, float32 [n], of float32 [n, d]."""
    if hasattr(np, "vecdot"):
        return np.vecdot(rows, rows)  # type: ignore[no-any-return]
    return np.einsum("ij,ij->i", rows, rows)  # type: ignore[no-any-return]


def workable(squared: np.ndarray) -> np.ndarray:
    """Return which squared norms (float32 [n]) are in range: bool [n], False for NaN, infinity, zero and tiny values."""
    low, high = _SQUARED_NORMS
    return (squared > low) & (squared < high)


def upper_half(values: np.ndarray) -> np.ndarray:
    """Truncate float32 toward zero to its upper 16 bits: uint16 of the same shape."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def widened(bits: np.ndarray) -> np.ndarray:
    """Return uint16 upper halves as float32."""
    return to_float32(bits, "bfloat16")


def step_bits(squared: np.ndarray, error: float, d: int) -> np.ndarray:
    """Return steps, uint16 [n], for a relative error of about `error`, or slightly less, given squared norms [n]."""
    return upper_half(np.sqrt(squared) * np.float32(np.sqrt(12 / d) * error))


@dataclass(frozen=True, slots=True)
class Quantization:
    """Quantization plan of a block.

    integers: int16, or int32 if the sample needs it. centres: one integer per channel [d], zero for small blocks.
    k: number of low bits that are stored separately (see `bitfields`).
    """

    integers: np.dtype
    centres: np.ndarray
    k: int


def planned(rows: np.ndarray, dtype: str, error: float) -> Quantization | None:
    """Return a plan from a sample of the rows [n, d]; None if no sampled row can be quantized."""
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
    """Return the k with the lowest estimated cost on a sample, escapes included."""
    flat = q.reshape(-1)[:: max(1, q.size // _SAMPLE_INTEGERS)].astype(np.int64)
    return min(choices, key=lambda k: _cost(flat, k))


def _cost(flat: np.ndarray, k: int) -> float:
    """Return the estimated bits per integer: k, the entropy of the top byte, and escapes."""
    inside = (flat >= -limit(k)) & (flat < limit(k))
    share = np.bincount((flat[inside] >> k) + 128) / max(1, flat.size)
    share = share[share > 0]
    return k - float((share * np.log2(share)).sum()) + _ESCAPE_BITS * float(1 - inside.mean())


def quantised(x: np.ndarray, steps: np.ndarray, scratch: np.ndarray, q: np.ndarray) -> None:
    """Quantize `x`, float32 [r, d], with steps, float32 [r, 1], to integers `q` [r, d]. `scratch` is float32 [r, d]."""
    np.multiply(x, np.float32(1) / steps, out=scratch)
    np.rint(scratch, out=scratch)
    np.copyto(q, scratch, casting="unsafe")


def reconstructed(q: np.ndarray, steps: np.ndarray, out: np.ndarray) -> None:
    """Write `q * steps` to `out`, float32 [r, d]. Used by both encoder and decoder."""
    np.copyto(out, q, casting="same_kind")
    out *= steps


def narrowed(rows: np.ndarray, dtype: str) -> np.ndarray:
    """Return reconstructed float32 rows in the carrier of their dtype. Overwrites `rows`.

    bfloat16 rounds halves away from zero, which takes a single addition. The encoder applies the same rounding
    (`as_narrowed`).
    """
    if dtype != "bfloat16":
        return rows.astype(carrier(dtype), copy=False)
    bits = rows.view(np.uint32)
    bits += 0x8000
    bits >>= 16
    return bits.astype(np.uint16)


def as_narrowed(rows: np.ndarray, dtype: str) -> np.ndarray:
    """Like `narrowed`, but return float32; in place for bfloat16 and float32."""
    if dtype != "bfloat16":
        return to_float32(rows.astype(carrier(dtype), copy=False), dtype)
    bits = rows.view(np.uint32)
    bits += 0x8000
    bits &= 0xFFFF0000
    return rows


def squared_errors(x: np.ndarray, approximate: np.ndarray, dtype: str) -> np.ndarray:
    """Return squared L2 distances, float32 [r], after rounding `approximate` to `dtype`. Overwrites `approximate`."""
    approximate = as_narrowed(approximate, dtype)
    np.subtract(approximate, x, out=approximate)
    return squared_norms(approximate)

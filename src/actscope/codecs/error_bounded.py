"""`error_bounded:B`: every row has a relative L2 error ||x - x'|| / ||x|| of at most B, or is stored bit-exactly.

Each row is quantized with its own step (see `quantizer`), and its error is measured on the values that the decoder will
produce. A row over the bound is quantized again with a smaller step. Rows that stay over the bound, and rows that are
zero or contain NaN or infinity, are stored exactly. Finally the payload is decoded and compared with what was measured.

    head        version u8, k u8, bytes of an integer u8 (2 or 4), 0 u8, escapes u32
    steps       upper halves of float32, one per row, all low bytes and then all high bytes; 0: the row is stored exactly
    centers     one integer per channel
    integers    the quantized values minus the centers; see `integer_planes`
    [exact]     payload of codec `lossless`, of the rows whose step is 0, in order
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from actscope.codecs.coding.bitfields import LOW_BITS
from actscope.codecs.coding.compressors import Buffer
from actscope.codecs.coding.integer_planes import MOST_ELEMENTS, IntegerPlanes, chunk_rows
from actscope.codecs.coding.planes import PlaneReader, PlaneWriter
from actscope.codecs.coding.quantizer import (
    Quantization,
    narrowed,
    planned,
    quantised,
    reconstructed,
    squared_errors,
    squared_norms,
    step_bits,
    upper_half,
    widened,
    workable,
)
from actscope.codecs.coding.scratch import borrowed
from actscope.codecs.coding.shuffle import shuffle, unshuffle
from actscope.codecs.contract import Encoded
from actscope.codecs.dtypes import FLOATS, carrier, checked_rows, to_float32
from actscope.codecs.lossless import Lossless, decode_lossless
from actscope.errors import CodecError

ERROR_BOUNDED = 6
BOUNDS = (1e-6, 0.5)
_HEAD = struct.Struct("<BBBBI")
_VERSION = 1
_INTEGERS: dict[int, np.dtype[np.signedinteger]] = {2: np.dtype("<i2"), 4: np.dtype("<i4")}
#: Sums of squares are float32. The bound is reduced by this factor, so that rounding cannot push the true error above B.
_MARGIN = 1 - 2**-12
#: Target fraction of rows under the bound at the first try. A higher fraction would make steps finer than necessary.
_FIRST_TRY = 0.98
#: A row over the bound is retried with this fraction of the bound as its target, so that one retry usually suffices.
_MENDING = 0.98
_TRIES = 8
#: Number of blocks that share a plan, unless the fraction of escapes exceeds `_MOST_ESCAPES`.
_PLAN_BLOCKS = 32
_MOST_ESCAPES = 0.005
#: Above this compressed fraction a block is also coded losslessly. If that is smaller, so are the next blocks.
_LOSSLESS_MIGHT_WIN = 0.64
_BLOCKS_UNTIL_RETRY = 64
#: Valid range of steps (upper halves): normal float32 numbers.
_STEP_BITS = (0x0080, 0x7F80)
_ONE = 0x3F80
#: Elements quantized at a time: enough to amortize the calls, few enough to stay in a core's caches.
_AT_ONCE = 256 << 10


@dataclass(slots=True)
class ErrorBoundedCounts:
    """Counts of an encoder."""

    rows: int = 0
    mended: int = 0
    exact: int = 0
    lossless_blocks: int = 0
    escapes: int = 0
    worst: float = 0.0


class ErrorBounded:
    """Error-bounded encoder for float32, float16 and bfloat16; other dtypes use `lossless`. Errors are of rows in their dtype."""

    def __init__(self, bound: float) -> None:
        if not BOUNDS[0] <= bound <= BOUNDS[1]:
            raise CodecError(
                f"codec 'error_bounded': expected a bound of {BOUNDS[0]:g} to {BOUNDS[1]:g}, found {bound:g}"
            )
        self.bound = bound
        self._target = 0.965 * bound
        self._writer = PlaneWriter()
        self._lossless = Lossless()
        self._lossless_for = 0
        self._planned: Quantization | None = None
        self._planned_for = ("", 0)
        self._plan_left = 0
        self._counts = ErrorBoundedCounts()

    def encode(self, rows: np.ndarray, dtype: str) -> Encoded:
        """Encode rows [n, d] within the bound, or with `lossless` where that is smaller.

        Raises:
            CodecError: The rows do not fit `dtype`, or the payload does not decode to the values that were measured.
        """
        rows = checked_rows(rows, dtype)
        self._counts.rows += len(rows)
        plan = self._plan(rows, dtype)
        if plan is None:
            return self._losslessly(rows, dtype)
        block = Block(rows, dtype, plan, self.bound * _MARGIN)
        with np.errstate(all="ignore"):  # rows with NaN or infinity pass through here and are stored exactly
            block.quantise(self._target)
        self._target = block.next_target(self._target)
        payload = block.payload(self._writer, self._lossless)
        if not block.comes_back(payload):
            raise CodecError("error-bounded rows: what was written does not decode to what was measured: bad memory?")
        if self._lossless_is_smaller(rows, dtype, payload):
            return self._losslessly(rows, dtype)
        self._count(block)
        return Encoded(ERROR_BOUNDED, payload, block.errors)

    def _plan(self, rows: np.ndarray, dtype: str) -> Quantization | None:
        if dtype not in FLOATS or not 0 < rows.size < MOST_ELEMENTS:
            return None
        if self._lossless_for:
            self._lossless_for -= 1
            return None
        if self._plan_left <= 0 or self._planned_for != (dtype, rows.shape[1]):
            self._planned = planned(rows, dtype, self._target)
            self._plan_left, self._planned_for = _PLAN_BLOCKS, (dtype, rows.shape[1])
        self._plan_left -= 1
        return self._planned

    def _losslessly(self, rows: np.ndarray, dtype: str) -> Encoded:
        self._counts.lossless_blocks += 1
        return self._lossless.encode(rows, dtype)

    def _lossless_is_smaller(self, rows: np.ndarray, dtype: str, payload: bytes) -> bool:
        if len(payload) < _LOSSLESS_MIGHT_WIN * rows.nbytes:
            return False
        smaller = len(self._lossless.payload(rows, dtype)) <= len(payload)
        self._lossless_for = _BLOCKS_UNTIL_RETRY if smaller else 0
        return smaller

    def _count(self, block: Block) -> None:
        self._counts.mended += block.mended
        self._counts.exact += int((block.steps == 0).sum())
        self._counts.escapes += block.planes.escapes
        if block.planes.escapes > _MOST_ESCAPES * block.planes.n * block.planes.d:
            self._plan_left = min(self._plan_left, 0)
        self._counts.worst = max(self._counts.worst, float(block.errors.max()))

    def report(self) -> dict[str, float]:
        """Return bound, current target and worst error, and counts of rows (all, mended, exact), lossless blocks and escapes."""
        counts = self._counts
        return {
            "bound": self.bound,
            "target": self._target,
            "rows": counts.rows,
            "rows_mended": counts.mended,
            "rows_exact": counts.exact,
            "blocks_lossless": counts.lossless_blocks,
            "escapes": counts.escapes,
            "worst": counts.worst,
        }


def _rows_at_once(d: int) -> int:
    return max(1, _AT_ONCE // d)


class Block:
    """A block [n, d] being encoded."""

    def __init__(self, rows: np.ndarray, dtype: str, plan: Quantization, bound: float) -> None:
        self._rows, self._dtype, self._plan, self._bound = rows, dtype, plan, np.float32(bound)
        n, d = rows.shape
        self.steps = np.zeros(n, np.uint16)
        self.first_errors = np.empty(0, np.float32)
        self.errors = np.zeros(n, np.float32)
        self.mended = 0
        self.planes = IntegerPlanes(n, d, plan.k).prepare()

    def quantise(self, target: float) -> None:
        """Fill planes and steps. The first try of each row uses the error `target`."""
        n, d = self._rows.shape
        q = self._q = borrowed("block of integers", (n, d), self._plan.integers)
        norms, errors = np.empty(n, np.float32), self.errors
        for begin in range(0, n, _rows_at_once(d)):
            part = slice(begin, begin + _rows_at_once(d))
            self._first_try(part, q[part], norms, errors, target)
        usable = self.steps != 0
        errors[~usable] = 0
        self.first_errors = errors[usable]
        self._mend(np.flatnonzero(usable & ~(errors <= self._bound)), q, norms, errors)
        exact = self.steps == 0
        if exact.any():
            q[exact] = 0
            errors[exact] = 0
        for begin in range(0, n, chunk_rows(d)):
            chunk = q[begin : begin + chunk_rows(d)]
            chunk -= self._plan.centres
            self.planes.put(begin, chunk)

    def _first_try(self, part: slice, q: np.ndarray, norms: np.ndarray, errors: np.ndarray, target: float) -> None:
        x = to_float32(self._rows[part], self._dtype, borrowed("x", self._rows[part].shape, np.float32))
        norms[part] = squared_norms(x)
        bits = step_bits(norms[part], target, x.shape[1])
        usable = workable(norms[part]) & (bits >= _STEP_BITS[0]) & (bits < _STEP_BITS[1])
        self.steps[part] = np.where(usable, bits, 0)
        bits[~usable] = _ONE
        errors[part] = self._try(x, norms[part], bits, q)

    def _try(self, x: np.ndarray, norms: np.ndarray, bits: np.ndarray, q: np.ndarray) -> np.ndarray:
        """Quantize rows with these steps and return their relative errors, float32 [r]."""
        steps, scratch = widened(bits)[:, None], borrowed("reconstructed", x.shape, np.float32)
        quantised(x, steps, scratch, q)
        reconstructed(q, steps, scratch)
        errors: np.ndarray = np.sqrt(squared_errors(x, scratch, self._dtype) / norms)
        return errors

    def _mend(self, over: np.ndarray, q: np.ndarray, norms: np.ndarray, errors: np.ndarray) -> None:
        """Retry the rows over the bound with smaller steps, up to `_TRIES` times. Set step 0 (stored exactly) for the rest."""
        self.mended = over.size
        for _ in range(_TRIES):
            if not over.size:
                return
            shrink = np.nan_to_num(_MENDING * self._bound / errors[over], nan=0.0)
            bits = upper_half(widened(self.steps[over]) * np.clip(shrink, 0.25, 0.99).astype(np.float32))
            self.steps[over] = np.maximum(bits, _STEP_BITS[0])
            again = np.empty((over.size, q.shape[1]), q.dtype)
            errors[over] = self._try(to_float32(self._rows[over], self._dtype), norms[over], self.steps[over], again)
            q[over] = again
            over = over[~(errors[over] <= self._bound)]
        self.steps[over] = 0

    def next_target(self, target: float) -> float:
        """Return the target at which a fraction `_FIRST_TRY` of these rows would have met the bound at the first try."""
        errors = self.first_errors
        if errors.size < 32 or not np.isfinite(errors).all():
            return target
        reached = float(np.quantile(errors, _FIRST_TRY))
        wanted = target * min(max(float(self._bound) / max(reached, 1e-12), 0.8), 1.25)
        return min(max(wanted, 0.25 * float(self._bound)), 4.0 * float(self._bound))

    def payload(self, writer: PlaneWriter, lossless: Lossless) -> bytes:
        """Return the encoded block: head, steps, centres, quantized planes, then the rows that are stored exactly."""
        plan = self._plan
        for plane in shuffle(self.steps.view(np.uint8), 2):
            writer.add(plane)
        writer.add(plan.centres)
        self.planes.write(writer)
        exact = self.steps == 0
        if exact.any():
            writer.add_bytes(lossless.payload(np.ascontiguousarray(self._rows[exact]), self._dtype))
        return writer.take(_HEAD.pack(_VERSION, plan.k, plan.integers.itemsize, 0, self.planes.escapes))

    def comes_back(self, payload: bytes) -> bool:
        """Return whether the payload decodes to the integers, steps and exact rows whose errors were measured.

        The decoder applies the same arithmetic (`reconstructed`) to them, so the measured errors hold for the payload.
        """
        n, d = self._rows.shape
        decoded = Decoded(payload, n, d, self._dtype)
        exact = self.steps == 0
        return (
            np.array_equal(decoded.steps, self.steps)
            and np.array_equal(decoded.centres, self._plan.centres)
            and decoded.exact_rows.tobytes() == (self._rows[exact].tobytes() if exact.any() else b"")
            and all(_same(q, self._q[begin : begin + len(q)]) for begin, q in decoded.centred())
        )


def _same(left: np.ndarray, right: np.ndarray) -> bool:
    """Return whether two C-contiguous arrays hold the same bytes. Compares 8-byte words if possible."""
    word = np.uint64 if left.nbytes % 8 == 0 else np.uint16
    return not np.not_equal(left.reshape(-1).view(word), right.reshape(-1).view(word)).any()


def decode_error_bounded(payload: Buffer, n: int, d: int, dtype: str) -> np.ndarray:
    """Decode rows [n, d]. Raises CodecError if the payload does not hold exactly n x d elements."""
    decoded = Decoded(payload, n, d, dtype)
    rows = np.empty((n, d), carrier(dtype))
    decoded.into(rows)
    return rows


class Decoded:
    """A parsed and validated payload. Rows are reconstructed on request."""

    def __init__(self, payload: Buffer, n: int, d: int, dtype: str) -> None:
        if dtype not in FLOATS or not 0 < n * d < MOST_ELEMENTS:
            raise CodecError(f"error-bounded rows: expected {', '.join(FLOATS)}, found {n} x {d} of {dtype}")
        self._dtype = dtype
        reader = PlaneReader(payload)
        version, k, width, zero, escapes = reader.head(_HEAD)
        if version != _VERSION or k not in LOW_BITS or width not in _INTEGERS or zero:
            raise CodecError(
                f"error-bounded rows: expected version {_VERSION}, found {version} with k {k}, {width} bytes"
            )
        self.steps = unshuffle(np.stack([reader.plane(n), reader.plane(n)])).view(np.uint16)
        self.centres = reader.array(d * width, "<u1").view(_INTEGERS[width])
        self._planes = IntegerPlanes(n, d, k).read(reader, escapes)
        self._exact = np.flatnonzero(self.steps == 0)
        self.exact_rows = np.empty((0, d), carrier(dtype))
        if self._exact.size:
            self.exact_rows = decode_lossless(reader.content(), self._exact.size, d, dtype)
        reader.end()

    def integers(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the first row and the integers [r, d] of each chunk, borrowed until the next."""
        for begin, q in self.centred():
            q += self.centres
            yield begin, q

    def centred(self) -> Iterator[tuple[int, np.ndarray]]:
        """Like `integers`, with the centers subtracted."""
        n, d = self._planes.n, self._planes.d
        r = chunk_rows(d)
        for begin in range(0, n, r):
            q = borrowed("chunk of integers", (min(r, n - begin), d), self.centres.dtype)
            self._planes.get(begin, q)
            yield begin, q

    def into(self, rows: np.ndarray) -> None:
        """Write the rows to `rows` [n, d], in the carrier of their dtype."""
        for begin, q in self.integers():
            steps = widened(self.steps[begin : begin + len(q)])[:, None]
            part = rows[begin : begin + len(q)]
            out = part if self._dtype == "float32" else borrowed("reconstructed", q.shape, np.float32)
            with np.errstate(all="ignore"):  # a hostile payload may hold any steps
                reconstructed(q, steps, out)
                if out is not part:
                    part[:] = narrowed(out, self._dtype)
        rows[self._exact] = self.exact_rows

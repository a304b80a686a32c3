"""`svd:K`: rows by their coefficients in a basis of K directions that is fitted to the site's own stream.

The first rows are kept by `lossless` until there are enough of them to fit a basis. From then on a block holds K
coefficients for each row; what lies outside the basis is lost, and how much is measured for every row by decoding. When the
error drifts, the basis is fitted again to recent rows, and becomes a new state.

    head      version u8, bytes of a coefficient u8 (2 or 4), 0 u16, exact rows u32
    rows      payload of `lossless`: coefficients [n, K] as float16 or float32
    [exact]   places u32; payload of `lossless`: rows with NaN or infinity in them, or nothing
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from actscope.codecs.basis import Basis, fitted, narrowed, read_basis
from actscope.codecs.contract import Encoded
from actscope.codecs.dtypes import FLOATS, checked_rows, from_float32, to_float32
from actscope.codecs.lossless import Lossless, decode_lossless
from actscope.codecs.packing import Buffer
from actscope.codecs.planes import PlaneReader, PlaneWriter
from actscope.codecs.quantizer import squared_norms, workable
from actscope.errors import CodecError

SVD = 7
_HEAD = struct.Struct("<BBHI")
_VERSION = 1
_WIDTHS = {2: "float16", 4: "float32"}
#: Rows that a basis is fitted to: so many for each direction, and at least so many. One in four is held out for the error.
_ROWS_PER_DIRECTION = 4
_FEWEST_ROWS = 2048
_HELD_OUT = 4
#: float16 serves for basis and coefficients while it raises the held-out error by no more than this.
_NARROW_COSTS = 1.01
#: Fitted again when the smoothed error is so many times that at the fit, and all rows to fit to are new.
_DRIFT = 1.25
_SMOOTHING_ROWS = 4096


class Svd:
    """float32, float16 and bfloat16 rows; other dtypes go `lossless`. One width of rows for an encoder's life."""

    def __init__(self, k: int) -> None:
        if k < 1:
            raise CodecError(f"codec 'svd': expected at least 1 component, found {k}")
        self.k = k
        self._recent = Recent(max(_FEWEST_ROWS, _ROWS_PER_DIRECTION * k))
        self._writer, self._lossless = PlaneWriter(), Lossless()
        self._basis: Basis | None = None
        self._state = 0
        self._new_state: bytes | None = None
        self._error_at_fit = self._retained = self._error = 0.0

    def encode(self, rows: np.ndarray, dtype: str) -> Encoded:
        rows = checked_rows(rows, dtype)
        if dtype not in FLOATS or not rows.size:
            return self._lossless.encode(rows, dtype)
        if self.k > rows.shape[1]:
            raise CodecError(f"codec 'svd:{self.k}': rows are {rows.shape[1]} wide: choose at most so many components")
        x = to_float32(rows, dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            usable = workable(squared_norms(x))
        encoded = self._lossless.encode(rows, dtype) if self._basis is None else self._project(rows, x, usable, dtype)
        self._recent.add(x[usable])
        if self._recent.full and (self._basis is None or self._error > _DRIFT * self._error_at_fit):
            self._fit()
        return encoded

    def _project(self, rows: np.ndarray, x: np.ndarray, usable: np.ndarray, dtype: str) -> Encoded:
        assert self._basis is not None
        coefficients = self._basis.coefficients(np.where(usable[:, None], x, np.float32(0)))
        width = self._basis.width
        if width == 2 and np.abs(coefficients).max() > np.finfo(np.float16).max:
            width = 4
        exact = np.flatnonzero(~usable)
        self._writer.add_bytes(self._lossless.payload(coefficients.astype(_WIDTHS[width]), _WIDTHS[width]))
        if exact.size:
            self._writer.add(exact.astype(np.uint32))
            self._writer.add_bytes(self._lossless.payload(np.ascontiguousarray(rows[exact]), dtype))
        payload = self._writer.take(_HEAD.pack(_VERSION, width, 0, exact.size))
        n, d = rows.shape
        errors = _errors(x, to_float32(_decoded(payload, n, d, dtype, self._basis), dtype), usable)
        self._follow(errors[usable])
        new_state, self._new_state = self._new_state, None
        return Encoded(SVD, payload, errors, self._state, new_state)

    def _follow(self, errors: np.ndarray) -> None:
        if errors.size:
            self._error += min(1.0, errors.size / _SMOOTHING_ROWS) * (float(errors.mean()) - self._error)

    def _fit(self) -> None:
        rows = self._recent.take()
        held_out = rows[::_HELD_OUT]
        basis = fitted(np.delete(rows, np.s_[::_HELD_OUT], axis=0), self.k)
        error, narrow = _mean_error(basis, held_out), _mean_error(narrowed(basis), held_out)
        if narrow <= _NARROW_COSTS * error:
            basis, error = narrowed(basis), narrow
        self._state += 1
        self._new_state = basis.write()
        self._basis = read_basis(self._new_state)
        self._error = self._error_at_fit = error
        self._retained = _retained(basis, held_out)

    def report(self) -> dict[str, Any]:
        """Errors are mean relative L2 errors of rows; at the fit, of rows held out of it."""
        return {
            "components": self.k,
            "fits": self._state,
            "refits": max(0, self._state - 1),
            "retained_energy": self._retained,
            "error_at_fit": self._error_at_fit,
            "error": self._error,
            "coefficients": _WIDTHS[self._basis.width] if self._basis else None,
            "rows_until_fit": self._recent.missing,
        }


class Recent:
    """The last rows of a stream, at most `capacity` of them, float32: what a basis is fitted to."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._rows: np.ndarray | None = None
        self._count = 0

    def add(self, rows: np.ndarray) -> None:
        """Rows [n, d]; CodecError when their width has changed."""
        if self._rows is None:
            self._rows = np.empty((self._capacity, rows.shape[1]), np.float32)
        if self._rows.shape[1] != rows.shape[1]:
            raise CodecError(f"codec 'svd': rows were {self._rows.shape[1]} wide and are now {rows.shape[1]}")
        last = rows[-self._capacity :]
        at = (self._count + len(rows) - len(last)) % self._capacity
        head = min(len(last), self._capacity - at)
        self._rows[at : at + head] = last[:head]
        self._rows[: len(last) - head] = last[head:]
        self._count += len(rows)

    @property
    def full(self) -> bool:
        """Whether all rows are newer than the last `take`."""
        return self._count >= self._capacity

    @property
    def missing(self) -> int:
        return max(0, self._capacity - self._count)

    def take(self) -> np.ndarray:
        """The rows [capacity, d], in no particular order; `full` only once they have all been replaced."""
        assert self._rows is not None
        self._count = 0
        return self._rows


def _errors(x: np.ndarray, back: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Relative L2 error of each row, float32 [n]; 0 for those kept exactly."""
    errors = np.zeros(len(x), np.float32)
    away = np.subtract(back, x, out=back if back.flags.writeable else None, where=usable[:, None])
    errors[usable] = np.sqrt(squared_norms(away)[usable] / squared_norms(x)[usable])
    return errors


def _mean_error(basis: Basis, rows: np.ndarray) -> float:
    coefficients = basis.coefficients(rows)
    if basis.width == 2:
        with np.errstate(over="ignore"):
            coefficients = coefficients.astype(np.float16)
    error = np.sqrt(squared_norms(basis.rows(coefficients) - rows) / squared_norms(rows)).mean()
    return float(error) if np.isfinite(error) else np.inf


def _retained(basis: Basis, rows: np.ndarray) -> float:
    """Share of the rows' energy about the mean that the directions hold."""
    energy = float(squared_norms(rows - basis.mean).sum())
    return 1.0 - float(squared_norms(basis.rows(basis.coefficients(rows)) - rows).sum()) / energy if energy else 1.0


def decode_svd(payload: Buffer, n: int, d: int, dtype: str, state: bytes | None) -> np.ndarray:
    """Rows [n, d]; CodecError when payload or state are malformed, or the state is of other rows."""
    if state is None:
        raise CodecError("SVD rows: expected the codec state that they were encoded with, found none")
    basis = read_basis(bytes(state))
    if basis.mean.size != d or dtype not in FLOATS:
        raise CodecError(f"SVD rows: the state is of rows {basis.mean.size} wide, expected {d} of {', '.join(FLOATS)}")
    return _decoded(payload, n, d, dtype, basis)


def _decoded(payload: Buffer, n: int, d: int, dtype: str, basis: Basis) -> np.ndarray:
    reader = PlaneReader(payload)
    version, width, zero, exact = reader.head(_HEAD)
    if version != _VERSION or width not in _WIDTHS or zero or exact > n:
        raise CodecError(f"SVD rows: expected version {_VERSION}, found {version}, {width} bytes, {exact} exact of {n}")
    coefficients = decode_lossless(reader.content(), n, len(basis.directions), _WIDTHS[width])
    with np.errstate(all="ignore"):  # a hostile payload's coefficients may be anything
        rows = from_float32(basis.rows(coefficients), dtype)
    if exact:
        places = reader.array(exact, "<u4")
        if places.max() >= n:
            raise CodecError(f"SVD rows: expected places of exact rows below {n}, found {places.max()}")
        rows[places] = decode_lossless(reader.content(), exact, d, dtype)
    reader.end()
    return rows

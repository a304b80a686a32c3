"""`svd:K`: K coefficients per row in a basis of K directions, fitted to the site's own rows.

The first blocks are stored with `lossless` until there are enough rows to fit a basis. Later blocks hold K coefficients
per row. The component outside the basis is lost, and the error of every row is measured by decoding. When the error drifts,
the encoder gathers rows and fits a new basis, which becomes a new state. It keeps the old basis if the later half of the
gathered rows no longer shows the drift.

    head      version u8, bytes of a coefficient u8 (2 or 4), 0 u16, exact rows u32
    rows      payload of `lossless`: coefficients [n, K] as float16 or float32
    [exact]   row numbers u32; payload of `lossless`: rows that are zero or contain NaN or infinity, and rows whose error
              would be 1 or more
"""

from __future__ import annotations

import struct
from typing import TypedDict

import numpy as np

from actscope.codecs.coding.basis import MOST_NUMBERS, Basis, fitted, narrowed, read_basis
from actscope.codecs.coding.compressors import Buffer
from actscope.codecs.coding.planes import PlaneReader, PlaneWriter
from actscope.codecs.coding.quantizer import squared_norms, workable
from actscope.codecs.contract import Encoded
from actscope.codecs.dtypes import FLOATS, checked_rows, from_float32, to_float32
from actscope.codecs.lossless import Lossless, decode_lossless
from actscope.errors import CodecError

SVD = 7
_HEAD = struct.Struct("<BBHI")
_VERSION = 1
_WIDTHS = {2: "float16", 4: "float32"}
#: Rows gathered for a fit: this number per direction, and at least `_FEWEST_ROWS`. One in `_HELD_OUT` measures the error.
_ROWS_PER_DIRECTION = 4
_FEWEST_ROWS = 2048
_HELD_OUT = 4
#: Basis and coefficients use float16 if that raises the held-out error by at most this factor.
_NARROW_COSTS = 1.01
#: The error has drifted when it exceeds this multiple of the error at the fit, smoothed over `_SMOOTHING_ROWS` rows.
_DRIFT = 1.25
_SMOOTHING_ROWS = 4096


class SvdReport(TypedDict):
    """State of an `Svd` encoder; see `Svd.report`."""

    components: int
    fits: int
    refits: int
    failed_fits: int
    retained_energy: float
    error_at_fit: float
    error: float
    coefficients: str | None
    rows_until_fit: int | None


def rows_to_fit(k: int) -> int:
    """Return the number of rows of a site that are stored losslessly, and gathered to fit a basis of `k` directions."""
    return max(_FEWEST_ROWS, _ROWS_PER_DIRECTION * k)


def check_svd_width(k: int, d: int) -> None:
    """Raise CodecError if rows of width `d` cannot be encoded by `k` coefficients."""
    if k > d:
        raise CodecError(f"codec 'svd:{k}': rows are {d} wide: choose at most that many components")
    if k * d > MOST_NUMBERS:
        raise CodecError(f"codec 'svd:{k}': a basis of rows {d} wide has more than {MOST_NUMBERS} numbers")


class Svd:
    """SVD encoder for float32, float16 and bfloat16; other dtypes use `lossless`. An encoder accepts one row width."""

    def __init__(self, k: int) -> None:
        if k < 1:
            raise CodecError(f"codec 'svd': expected at least 1 component, found {k}")
        self.k = k
        self._gathered = Gathered(rows_to_fit(k))
        self._width = 0
        self._writer, self._lossless = PlaneWriter(), Lossless()
        self._basis: Basis | None = None
        self._state = 0
        self._failed_fits = 0
        self._new_state: bytes | None = None
        self._error_at_fit = self._retained = self._error = 0.0

    def encode(self, rows: np.ndarray, dtype: str) -> Encoded:
        """Encode rows [n, d]: their coefficients once a basis is fitted, else losslessly. Gather the rows for the next fit.

        Raises:
            CodecError: The rows do not fit `dtype`, or their width is below K or not that of the blocks before.
        """
        rows = checked_rows(rows, dtype)
        if dtype not in FLOATS or not rows.size:
            return self._lossless.encode(rows, dtype)
        self._check_width(rows.shape[1])
        x = to_float32(rows, dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            usable = workable(squared_norms(x))
        encoded = self._lossless.encode(rows, dtype) if self._basis is None else self._project(rows, x, usable, dtype)
        try:
            self._gather(x[usable])
        except (
            MemoryError,
            np.linalg.LinAlgError,
        ):  # keep the old basis; this block may carry the state of the last fit
            self._failed_fits += 1
            self._gathered.clear()
        return encoded

    def _check_width(self, d: int) -> None:
        check_svd_width(self.k, d)
        if self._width not in (0, d):
            raise CodecError(f"codec 'svd:{self.k}': rows were {self._width} wide and are now {d}")
        self._width = d

    def _gather(self, rows: np.ndarray) -> None:
        if self._basis is not None and self._error <= _DRIFT * self._error_at_fit:
            self._gathered.clear()
            return
        self._gathered.add(rows)
        if not self._gathered.missing:
            self._fit_unless_steady(self._gathered.clear())

    def _fit_unless_steady(self, rows: np.ndarray) -> None:
        """Fit a new basis if the later half of the gathered rows still shows the drift."""
        now = _mean_error(self._basis, rows[len(rows) // 2 :]) if self._basis is not None else np.inf
        if now > _DRIFT * self._error_at_fit:
            self._fit(rows)
        else:
            self._error = now

    def _project(self, rows: np.ndarray, x: np.ndarray, usable: np.ndarray, dtype: str) -> Encoded:
        """Encode a block by its coefficients. Rows with an error of 1 or more are stored exactly."""
        payload, errors = self._projected(rows, x, usable, dtype)
        self._follow(errors[usable])
        near = errors < 1
        if not near.all():
            payload, errors = self._projected(rows, x, usable & near, dtype)
        new_state, self._new_state = self._new_state, None
        return Encoded(SVD, payload, errors, self._state, new_state)

    def _projected(self, rows: np.ndarray, x: np.ndarray, usable: np.ndarray, dtype: str) -> tuple[bytes, np.ndarray]:
        """Return the payload and its errors, float32 [n], measured by decoding. Rows that are not usable are stored exactly."""
        assert self._basis is not None
        coefficients = self._basis.coefficients(x if usable.all() else np.where(usable[:, None], x, np.float32(0)))
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
        return payload, _errors(x, to_float32(_decoded(payload, n, d, dtype, self._basis), dtype), usable)

    def _follow(self, errors: np.ndarray) -> None:
        if errors.size:
            mean = float(np.fmin(errors, 1).mean())
            self._error += min(1.0, errors.size / _SMOOTHING_ROWS) * (mean - self._error)

    def _fit(self, rows: np.ndarray) -> None:
        held_out = rows[::_HELD_OUT]
        basis = fitted(np.delete(rows, np.s_[::_HELD_OUT], axis=0), self.k)
        error, narrow = _mean_error(basis, held_out), _mean_error(narrowed(basis), held_out)
        if narrow <= _NARROW_COSTS * error:
            basis, error = narrowed(basis), narrow
        retained, new_state = _retained(basis, held_out), basis.write()
        self._basis = read_basis(new_state, rows.shape[1])
        self._new_state = new_state
        self._state += 1
        self._error = self._error_at_fit = error
        self._retained = retained

    def report(self) -> SvdReport:
        """Return the encoder's state. Errors are mean relative L2 errors of rows; `error_at_fit` is of held-out rows."""
        return {
            "components": self.k,
            "fits": self._state,
            "refits": max(0, self._state - 1),
            "failed_fits": self._failed_fits,
            "retained_energy": self._retained,
            "error_at_fit": self._error_at_fit,
            "error": self._error,
            "coefficients": _WIDTHS[self._basis.width] if self._basis else None,
            "rows_until_fit": self._gathered.missing if self._gathered.count or not self._basis else None,
        }


class Gathered:
    """Buffer of at most `capacity` float32 rows for a fit. Holds no memory between fits."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._parts: list[np.ndarray] = []
        self.count = 0

    def add(self, rows: np.ndarray) -> None:
        """Append a copy of rows [n, d]. Rows beyond the capacity are ignored."""
        part = rows[: self.missing].copy()
        self._parts.append(part)
        self.count += len(part)

    @property
    def missing(self) -> int:
        """Number of rows that still fit."""
        return self._capacity - self.count

    def clear(self) -> np.ndarray:
        """Empty the buffer and return its rows [count, d]."""
        parts, self._parts, self.count = self._parts, [], 0
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def _errors(x: np.ndarray, back: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Return the relative L2 error of each row, float32 [n]; 0 for rows that are stored exactly."""
    with np.errstate(all="ignore"):  # rows that are not usable may divide by zero
        errors: np.ndarray = np.sqrt(squared_norms(back - x) / squared_norms(x))
    errors[~usable] = 0
    return errors


def _mean_error(basis: Basis, rows: np.ndarray) -> float:
    """Return the mean relative error, clipped to 1 per row (rows above that are stored exactly)."""
    coefficients = basis.coefficients(rows)
    if basis.width == 2:
        with np.errstate(over="ignore"):
            coefficients = coefficients.astype(np.float16)
    errors = np.sqrt(squared_norms(basis.rows(coefficients) - rows) / squared_norms(rows))
    return float(np.fmin(errors, 1).mean()) if np.isfinite(errors).all() else np.inf


def _retained(basis: Basis, rows: np.ndarray) -> float:
    """Return the fraction of the rows' squared distance from the mean that the basis explains."""
    energy = float(squared_norms(rows - basis.mean).sum())
    return 1.0 - float(squared_norms(basis.rows(basis.coefficients(rows)) - rows).sum()) / energy if energy else 1.0


def decode_svd(payload: Buffer, n: int, d: int, dtype: str, state: bytes | None) -> np.ndarray:
    """Decode rows [n, d]. Raises CodecError if payload or state is malformed or the state has another width."""
    if state is None:
        raise CodecError("SVD rows: expected the codec state that they were encoded with, found none")
    if dtype not in FLOATS:
        raise CodecError(f"SVD rows: expected one of {', '.join(FLOATS)}, found {dtype}")
    basis = read_basis(bytes(state), d)
    return _decoded(payload, n, d, dtype, basis)


def _decoded(payload: Buffer, n: int, d: int, dtype: str, basis: Basis) -> np.ndarray:
    reader = PlaneReader(payload)
    version, width, zero, exact = reader.head(_HEAD)
    if version != _VERSION or width not in _WIDTHS or zero or exact > n:
        raise CodecError(f"SVD rows: expected version {_VERSION}, found {version}, {width} bytes, {exact} exact of {n}")
    coefficients = decode_lossless(reader.content(), n, len(basis.directions), _WIDTHS[width])
    with np.errstate(all="ignore"):  # a hostile payload may hold any coefficients
        rows = from_float32(basis.rows(coefficients), dtype)
    if exact:
        places = reader.array(exact, "<u4")
        if places.max() >= n:
            raise CodecError(f"SVD rows: expected places of exact rows below {n}, found {places.max()}")
        rows[places] = decode_lossless(reader.content(), exact, d, dtype)
    reader.end()
    return rows

"""`svd:K`: lossless until a basis is fitted, then K coefficients for each row, and an error that is measured and followed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from actscope.codecs import CODECS, Encoded, Encoder, decode, encoder, from_float32, to_float32
from actscope.codecs.coding import basis as bases
from actscope.errors import CodecError


def report_of(one: Encoder) -> dict[str, Any]:
    """The report of an encoder; what a value is depends on its name."""
    return dict(one.report())


Rows = Callable[..., np.ndarray]
BLOCK = 512


class Stream:
    """Encodes blocks, keeps states as a recording would, and checks what comes back."""

    def __init__(self, one: Encoder, dtype: str = "float32") -> None:
        self.one, self.dtype = one, dtype
        self.states: dict[int, bytes] = {}
        self.fits_seen: list[int] = []

    def put(self, rows: np.ndarray) -> Encoded:
        encoded = self.one.encode(rows, self.dtype)
        if encoded.new_state is not None:
            assert encoded.state not in self.states
            self.states[encoded.state] = encoded.new_state
            self.fits_seen.append(encoded.state)
        back = decode(
            encoded.codec, encoded.payload, rows.shape[0], rows.shape[1], self.dtype, self.states.get(encoded.state)
        )
        if encoded.row_errors is None:
            assert encoded.codec == CODECS["lossless"] and encoded.state == 0 and back.tobytes() == rows.tobytes()
        else:
            assert encoded.codec == CODECS["svd"] and encoded.state > 0
            x, y = to_float32(rows, self.dtype), to_float32(back, self.dtype)
            true = np.linalg.norm(x.astype(np.float64) - y, axis=1) / np.linalg.norm(x.astype(np.float64), axis=1)
            np.testing.assert_allclose(encoded.row_errors, true, rtol=1e-3, atol=1e-6)
        return encoded


def low_rank(n: int, d: int, rank: int, seed: int, noise: float = 0.01, model: int = 0) -> np.ndarray:
    mixing = np.random.default_rng(1000 + model).standard_normal((rank, d))
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, rank)) @ mixing + noise * rng.standard_normal((n, d)) + 3).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_basis_is_fitted_on_the_stream_and_measured_ever_after(dtype: str, activations: Rows) -> None:
    stream = Stream(encoder("svd:16"), dtype)
    kinds = [stream.put(activations(BLOCK, 64, dtype, seed)).state for seed in range(8)]
    assert kinds == [0, 0, 0, 0, 1, 1, 1, 1] and stream.fits_seen == [1]
    report = report_of(stream.one)
    assert 0 < report["retained_energy"] < 1 and report["fits"] == 1 and report["refits"] == 0
    assert report["error"] == pytest.approx(report["error_at_fit"], rel=0.2)


def test_rows_of_low_rank_lose_only_their_noise() -> None:
    stream = Stream(encoder("svd:8"))
    for seed in range(6):
        encoded = stream.put(low_rank(BLOCK, 128, 8, seed))
    assert encoded.row_errors is not None and encoded.row_errors.mean() < 0.01
    assert report_of(stream.one)["retained_energy"] > 0.999
    assert low_rank(BLOCK, 128, 8, 0).nbytes / len(encoded.payload) > 25


def test_all_components_lose_next_to_nothing() -> None:
    """float16 would cost a thousandfold here, so that coefficients and basis stay float32."""
    stream = Stream(encoder("svd:32"))
    for seed in range(6):
        encoded = stream.put(low_rank(BLOCK, 32, 32, seed))
    assert encoded.row_errors is not None and encoded.row_errors.max() < 1e-5
    assert stream.one.report()["coefficients"] == "float32"


def test_truncation_beats_what_float16_adds() -> None:
    stream = Stream(encoder("svd:8"))
    for seed in range(6):
        stream.put(low_rank(BLOCK, 32, 32, seed))
    assert stream.one.report()["coefficients"] == "float16"


def test_drift_leads_to_a_new_basis_and_old_blocks_still_decode() -> None:
    stream = Stream(encoder("svd:8"))
    old = low_rank(BLOCK, 64, 8, 5)
    for seed in range(6):
        first = stream.put(low_rank(BLOCK, 64, 8, seed))
    for seed in range(20):
        last = stream.put(low_rank(BLOCK, 64, 8, seed, model=1))
    assert report_of(stream.one)["refits"] >= 1 and last.state > first.state
    assert last.row_errors is not None and last.row_errors.mean() < 0.02
    again = decode(first.codec, first.payload, BLOCK, 64, "float32", stream.states[first.state])
    assert np.linalg.norm(again - old) / np.linalg.norm(old) < 0.02


def test_a_steady_stream_is_fitted_once() -> None:
    stream = Stream(encoder("svd:8"))
    for seed in range(30):
        stream.put(low_rank(BLOCK, 64, 16, seed))
    assert stream.fits_seen == [1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_without_a_finite_norm_are_kept_exactly(dtype: str, activations: Rows) -> None:
    one, state = encoder("svd:4"), None
    for seed in range(6):
        rows = activations(BLOCK, 32, dtype, seed)
        infinity = np.float32(np.inf).view(np.uint32)
        rows[3, 3] = np.inf if dtype == "float32" else infinity >> 16
        rows[9] = 0
        encoded = one.encode(rows, dtype)
        state = encoded.new_state or state
        back = decode(encoded.codec, encoded.payload, BLOCK, 32, dtype, state)
        assert back[[3, 9]].tobytes() == rows[[3, 9]].tobytes()
    assert encoded.row_errors is not None and encoded.row_errors[[3, 9]].tolist() == [0, 0]


def test_a_passing_disturbance_leaves_the_basis_alone() -> None:
    stream = Stream(encoder("svd:8"))
    for model in [*[0] * 8, *[1] * 2, *[0] * 40]:
        stream.put(low_rank(BLOCK, 64, 8, model, model=model))
    assert stream.fits_seen == [1]


def test_large_blocks_and_small_ones_fill_the_reservoir_alike() -> None:
    for size in (7, 5000):
        stream = Stream(encoder("svd:4"))
        for seed in range(-(-2100 // size) + 1):
            encoded = stream.put(low_rank(size, 16, 4, seed))
        assert encoded.state == 1


def test_more_components_than_channels_are_refused() -> None:
    with pytest.raises(CodecError, match="16 wide"):
        encoder("svd:17").encode(np.ones((4, 16), np.float32), "float32")


def test_a_site_whose_width_changes_is_refused() -> None:
    one = encoder("svd:4")
    one.encode(np.ones((4, 16), np.float32), "float32")
    with pytest.raises(CodecError, match="wide"):
        one.encode(np.ones((4, 8), np.float32), "float32")


def test_wide_rows_get_as_good_a_basis_from_the_randomised_finder(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = low_rank(600, 300, 40, 0, noise=0.3)

    def error(basis: bases.Basis) -> float:
        return float(np.linalg.norm(basis.rows(basis.coefficients(rows)) - rows))

    exact = error(bases.fitted(rows, 20))
    monkeypatch.setattr(bases, "_EXACT_SIZE", 100)
    randomised = bases.fitted(rows, 20)
    assert error(randomised) < 1.01 * exact
    np.testing.assert_allclose(randomised.directions @ randomised.directions.T, np.eye(20), atol=1e-4)


@pytest.mark.parametrize("n", [30, 100])
def test_a_basis_is_orthonormal_even_from_few_rows(n: int) -> None:
    """Fewer rows than components leave directions free: they are filled up."""
    directions = bases.fitted(low_rank(n, 64, 5, 0), 40).directions
    np.testing.assert_allclose(directions @ directions.T, np.eye(40), atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_that_would_come_back_further_off_than_nothing_are_kept_exactly(dtype: str) -> None:
    """Small rows far from the mean: their errors were thousands, which a recording's byte of error cannot say."""
    stream = Stream(encoder("svd:4"), dtype)
    stream.put(from_float32(low_rank(2048, 64, 4, 1) + 10, dtype))
    rows = low_rank(BLOCK, 64, 4, 2) + 10
    rows[::7] = np.random.default_rng(3).standard_normal((len(rows[::7]), 64)) * 1e-3
    errors = stream.put(from_float32(rows, dtype)).row_errors
    assert errors is not None and errors.max() < 1
    assert (errors[::7] == 0).all() and (errors[1::7] > 0).all()


def test_a_fit_that_fails_costs_neither_the_block_nor_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block that brings a state must be given out, or no later block could be read."""
    one = encoder("svd:4")
    stream = Stream(one)
    stream.put(low_rank(2048, 64, 4, 1))

    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(one, "_gather", fails)
    assert stream.put(low_rank(BLOCK, 64, 4, 2)).new_state is not None
    monkeypatch.undo()
    stream.put(low_rank(BLOCK, 64, 4, 3))
    assert one.report()["failed_fits"] == 1

"""`error_bounded:B`: every row within B, measured here in float64; or kept bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actscope.codecs import CODECS, Encoded, Encoder, carrier, decode, encoder, to_float32
from actscope.codecs.coding.bitfields import LOW_BITS, cut, joined, limit, pack, packed_size, unpack
from actscope.codecs.coding.integer_planes import IntegerPlanes
from actscope.codecs.coding.planes import PlaneWriter
from actscope.codecs.coding.quantizer import squared_norms
from actscope.errors import CodecError


def report_of(one: Encoder) -> dict[str, Any]:
    """The report of an encoder; what a value is depends on its name."""
    return dict(one.report())


Rows = Callable[..., np.ndarray]
FLOATS = ("float32", "float16", "bfloat16")


def decoded(encoded: Encoded, rows: np.ndarray, dtype: str) -> np.ndarray:
    return decode(encoded.codec, encoded.payload, rows.shape[0], rows.shape[1], dtype)


def check(encoded: Encoded, rows: np.ndarray, dtype: str, bound: float) -> None:
    """Each row within the bound or the same bits, and the reported errors are the true ones."""
    back = decoded(encoded, rows, dtype)
    assert back.dtype == carrier(dtype) and back.shape == rows.shape
    exact = np.array([given.tobytes() == got.tobytes() for given, got in zip(rows, back, strict=True)], bool)
    with np.errstate(all="ignore"):
        x, y = to_float32(rows, dtype).astype(np.float64), to_float32(back, dtype).astype(np.float64)
        error = np.linalg.norm(x - y, axis=1) / np.linalg.norm(x, axis=1)
    assert (exact | (error <= bound)).all()
    if encoded.row_errors is None:
        assert encoded.codec == CODECS["lossless"] and exact.all()
        return
    assert encoded.row_errors.dtype == np.float32 and encoded.row_errors.max(initial=0) <= bound
    reported = np.where(exact, 0, error)
    np.testing.assert_allclose(np.where(exact, 0, encoded.row_errors), reported, rtol=2e-3, atol=1e-9)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bound", [1e-5, 1e-3, 1e-2, 0.3])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (64, 96), (1500, 128), (2, 5000)])
def test_every_row_keeps_to_the_bound(bound: float, dtype: str, shape: tuple[int, int], activations: Rows) -> None:
    one = encoder(f"error_bounded:{bound}")
    for seed in range(3):
        rows = activations(*shape, dtype, seed)
        check(one.encode(rows, dtype), rows, dtype, bound)


def test_float32_rows_shrink_threefold_at_one_in_a_thousand() -> None:
    rows = np.random.default_rng(0).standard_normal((4000, 384), np.float32)
    encoded = encoder("error_bounded:1e-3").encode(rows, "float32")
    check(encoded, rows, "float32", 1e-3)
    assert rows.nbytes / len(encoded.payload) > 3.0


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_of_any_bits_keep_to_the_bound_or_come_back_bit_for_bit(dtype: str, any_bits: Rows) -> None:
    for d in (1, 4, 64):
        rows = any_bits(300, d, dtype, d)
        check(encoder("error_bounded:1e-3").encode(rows, dtype), rows, dtype, 1e-3)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_that_cannot_be_bounded_are_kept_exactly_among_others(dtype: str, activations: Rows) -> None:
    rows = activations(400, 64, dtype)
    strange = to_float32(rows, dtype).copy()
    strange[3, 5], strange[50, 0], strange[51, 1] = np.nan, np.inf, -np.inf
    strange[60], strange[61] = 0.0, -0.0
    if dtype == "float32":
        strange[70], strange[71], strange[72] = 1e38, 1e-40, 3e-20
        strange[73, 9] = 1e25
        strange.view(np.uint32)[80, 0] = 0x7FC12345  # a NaN's payload
    rows = strange if dtype == "float32" else _narrow(strange, dtype)
    one = encoder("error_bounded:1e-3")
    encoded = one.encode(rows, dtype)
    check(encoded, rows, dtype, 1e-3)
    back = decoded(encoded, rows, dtype)
    for row in (3, 50, 51, 60, 61, *((70, 71, 72, 73, 80) if dtype == "float32" else ())):
        assert back[row].tobytes() == rows[row].tobytes()
    assert report_of(one)["rows_exact"] >= 5


def _narrow(rows: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "float16":
        return rows.astype(np.float16)
    return (rows.view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("factor", [1e2, 1e4, 1e6, 1e9])
def test_massive_channels_and_rows_do_not_overflow_the_integers(factor: float, activations: Rows) -> None:
    rows = activations(600, 512)
    rows[:, 7] *= factor  # a massive channel
    rows[::50] *= factor  # massive rows, as attention sinks are
    rows[1::50, 3] *= factor  # a massive number here and there
    one = encoder("error_bounded:1e-4")
    for _ in range(2):
        check(one.encode(rows, "float32"), rows, "float32", 1e-4)


def test_a_plan_that_no_longer_fits_still_keeps_to_the_bound(activations: Rows) -> None:
    """The plan is made of an early block: later ones may look like nothing in it."""
    one = encoder("error_bounded:1e-3")
    for scale, shift in [(1, 0), (1e-9, 0), (1, 1e3), (1e9, -5e9), (1, 0)]:
        rows = (activations(300, 64) * np.float32(scale) + np.float32(shift)).astype(np.float32)
        check(one.encode(rows, "float32"), rows, "float32", 1e-3)
    wide, narrow = activations(300, 128), activations(300, 16)
    check(one.encode(wide, "float32"), wide, "float32", 1e-3)
    check(one.encode(narrow, "float32"), narrow, "float32", 1e-3)


def test_a_bound_finer_than_the_dtype_ends_up_lossless(activations: Rows) -> None:
    """bfloat16 has about 1e-3 of rounding in it: at 1e-5 quantising would cost more than keeping every bit."""
    rows = activations(2000, 128, "bfloat16")
    encoded = encoder("error_bounded:1e-5").encode(rows, "bfloat16")
    assert encoded.codec == CODECS["lossless"] and encoded.row_errors is None
    assert rows.nbytes / len(encoded.payload) > 1.4


@pytest.mark.parametrize("dtype", ["float64", "int8", "uint32"])
def test_dtypes_that_it_does_not_quantise_lose_nothing(dtype: str, any_bits: Rows) -> None:
    rows = any_bits(100, 16, dtype)
    encoded = encoder("error_bounded:1e-3").encode(rows, dtype)
    assert encoded.row_errors is None
    assert decoded(encoded, rows, dtype).tobytes() == rows.tobytes()


def test_some_rows_are_mended_and_counted(activations: Rows) -> None:
    one = encoder("error_bounded:1e-3")
    for seed in range(3):
        one.encode(activations(1000, 64, seed=seed), "float32")
    report = report_of(one)
    assert report["rows"] == 3000 and 0 < report["rows_mended"] < 600
    assert report["rows_exact"] == 0 and 0 < report["worst"] <= 1e-3


def test_encoding_leaves_the_rows_as_they_were(activations: Rows) -> None:
    rows = activations(500, 64)
    rows[3, 3] = np.nan
    before = rows.tobytes()
    encoder("error_bounded:1e-3").encode(rows, "float32")
    assert rows.tobytes() == before


def test_decoding_twice_gives_the_same_bits(activations: Rows) -> None:
    rows = activations(2000, 64)
    encoded = encoder("error_bounded:1e-3").encode(rows, "float32")
    assert decoded(encoded, rows, "float32").tobytes() == decoded(encoded, rows, "float32").tobytes()


@given(st.integers(1, 5000), st.sampled_from(LOW_BITS), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=100)
def test_integers_cut_in_two_are_joined_again(count: int, k: int, seed: int) -> None:
    dtype = np.int16 if k <= 8 else np.int32
    q = np.random.default_rng(seed).integers(-limit(k), limit(k), count).astype(dtype)
    low = [np.empty(count, np.uint8) for _ in range(k // 8 + (k % 8 > 0))]
    top, back = np.empty(count, np.int8), np.empty(count, dtype)
    cut(q, k, low, top)
    joined(top, low, k, back)
    assert np.array_equal(back, q)


@given(st.integers(1, 2000), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=100)
def test_packed_fields_are_unpacked_again(count: int, bits: int, seed: int) -> None:
    fields = np.random.default_rng(seed).integers(0, 1 << bits, count, np.uint8)
    packed, back = (
        np.empty(packed_size(count, bits), np.uint8),
        np.empty(packed_size(count, bits) * (8 // bits), np.uint8),
    )
    pack(fields, bits, packed)
    unpack(packed, bits, back)
    assert np.array_equal(back[:count], fields) and not back[count:].any()


def test_an_older_numpy_measures_the_same_norms(monkeypatch: pytest.MonkeyPatch, activations: Rows) -> None:
    """numpy 1.26 has no vecdot."""
    rows = activations(50, 300)
    expected = squared_norms(rows)
    monkeypatch.delattr(np, "vecdot", raising=False)
    np.testing.assert_allclose(squared_norms(rows), expected, rtol=1e-5)


def test_memory_that_changes_a_written_payload_is_noticed(monkeypatch: pytest.MonkeyPatch, activations: Rows) -> None:
    """What was written is decoded and compared before it is given out: a wrong integer is an error, not a wrong row."""
    write = IntegerPlanes.write

    def damaged(self: IntegerPlanes, writer: PlaneWriter) -> None:
        self._top[3, 3] ^= 1
        write(self, writer)

    monkeypatch.setattr(IntegerPlanes, "write", damaged)
    with pytest.raises(CodecError, match="does not decode"):
        encoder("error_bounded:1e-3").encode(activations(400, 64), "float32")


def test_threads_do_not_share_their_scratch(activations: Rows) -> None:
    """Two threads at a time, an encoder each, blocks of unlike shapes: every block keeps to its bound."""

    def work(seed: int) -> None:
        one = encoder("error_bounded:1e-3")
        for i in range(6):
            rows = activations(300 + 50 * seed, 64 + 8 * i, "float32", seed)
            check(one.encode(rows, "float32"), rows, "float32", 1e-3)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, seed) for seed in range(8)]:
            done.result()

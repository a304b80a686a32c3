"""Payloads that were cut, changed or made up: CodecError or rows, never another error, never more memory than rows take."""

from __future__ import annotations

import os
import struct
import tracemalloc
from functools import cache

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from actscope.codecs import CODECS, DTYPES, Encoded, carrier, decode, encoder, from_float32
from actscope.errors import CodecError

#: The nightly tier asks for more.
EXAMPLES = int(os.environ.get("ACTSCOPE_HOSTILE_EXAMPLES", "150"))
N, D = 200, 160
FLOATS = ("float32", "float16", "bfloat16")
CASES = [
    *(
        (spec, dtype)
        for spec in ("none", "lz4", "zstd", "shuffle_lz4", "shuffle_zstd")
        for dtype in ("float32", "int8")
    ),
    *(("lossless", dtype) for dtype in (*FLOATS, "float64")),
    *((f"error_bounded:{bound}", dtype) for bound in ("1e-2", "1e-3", "1e-5") for dtype in ("float32", "bfloat16")),
    ("svd:6", "float32"),
    ("svd:6", "bfloat16"),
]


@cache
def valid(spec: str, dtype: str) -> tuple[Encoded, bytes | None]:
    """A payload with every section that its codec has, and the state that it needs."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((N, D)).astype(np.float32) * rng.lognormal(0, 1, D).astype(np.float32)
    rows[5, 5], rows[7], rows[9, 3] = np.nan, 0, 3e4  # exact rows, and an escape
    one, state = encoder(spec), None
    if dtype in FLOATS:
        given_rows = from_float32(rows, dtype)
    else:
        given_rows = rng.integers(0, 9, (N, D * carrier(dtype).itemsize), np.uint8).view(carrier(dtype))
    for _ in range(2 + 2048 // N):
        encoded = one.encode(given_rows, dtype)
        state = encoded.new_state or state
    return encoded, state


def attempt(codec: int, payload: bytes, dtype: str, state: bytes | None, n: int = N, d: int = D) -> None:
    try:
        rows = decode(codec, payload, n, d, dtype, state)
    except CodecError:
        return
    assert rows.shape == (n, d) and rows.dtype == carrier(dtype)


def test_the_valid_payloads_have_all_sections() -> None:
    encoded, _ = valid("error_bounded:1e-3", "float32")
    assert encoded.codec == CODECS["error_bounded"] and struct.unpack_from("<BBBBI", encoded.payload)[4] > 0
    assert valid("svd:6", "float32")[0].codec == CODECS["svd"]


@pytest.mark.parametrize(("spec", "dtype"), [case for case in CASES if case[1] != "int8"])
def test_a_payload_cut_anywhere_is_refused(spec: str, dtype: str) -> None:
    encoded, state = valid(spec, dtype)
    size = len(encoded.payload)
    for length in [*range(0, min(size, 200)), *range(200, size, 97), size - 1]:
        with pytest.raises(CodecError):
            decode(encoded.codec, encoded.payload[:length], N, D, dtype, state)


@pytest.mark.parametrize(("spec", "dtype"), [case for case in CASES if case[1] != "int8"])
def test_bytes_after_the_end_are_refused(spec: str, dtype: str) -> None:
    encoded, state = valid(spec, dtype)
    with pytest.raises(CodecError):
        decode(encoded.codec, bytes(encoded.payload) + b"\0", N, D, dtype, state)


@pytest.mark.parametrize(("spec", "dtype"), CASES)
def test_changed_bits_give_rows_or_an_error(spec: str, dtype: str) -> None:
    encoded, state = valid(spec, dtype)
    rng = np.random.default_rng(1)
    places = {*range(min(64, len(encoded.payload))), *rng.integers(0, len(encoded.payload), EXAMPLES).tolist()}
    for place in places:
        changed = bytearray(encoded.payload)
        changed[place] ^= 1 << int(rng.integers(8))
        attempt(encoded.codec, bytes(changed), dtype, state)


@pytest.mark.parametrize("spec", ["svd:6"])
def test_changed_states_give_rows_or_an_error(spec: str) -> None:
    encoded, state = valid(spec, "float32")
    assert state is not None
    rng = np.random.default_rng(2)
    for place in {*range(40), *rng.integers(0, len(state), EXAMPLES).tolist()}:
        changed = bytearray(state)
        changed[place] ^= 1 << int(rng.integers(8))
        attempt(encoded.codec, bytes(encoded.payload), "float32", bytes(changed))
    for length in range(0, len(state), 13):
        with pytest.raises(CodecError):
            decode(encoded.codec, encoded.payload, N, D, "float32", state[:length])
    with pytest.raises(CodecError, match="state"):
        decode(encoded.codec, encoded.payload, N, D, "float32", None)


@given(st.sampled_from(sorted(CODECS.values())), st.binary(max_size=300), st.sampled_from(sorted(DTYPES)), st.data())
@settings(deadline=None, max_examples=4 * EXAMPLES)
def test_made_up_bytes_give_rows_or_an_error(codec: int, payload: bytes, dtype: str, data: st.DataObject) -> None:
    n, d = data.draw(st.integers(0, 8)), data.draw(st.integers(0, 8))
    state = data.draw(st.none() | st.binary(max_size=60))
    attempt(codec, payload, dtype, state, n, d)


@given(st.sampled_from(CASES), st.integers(0, 400), st.integers(0, 60), st.sampled_from(sorted(DTYPES)))
@settings(deadline=None, max_examples=2 * EXAMPLES)
def test_a_payload_for_other_rows_gives_rows_or_an_error(case: tuple[str, str], n: int, d: int, dtype: str) -> None:
    encoded, state = valid(*case)
    attempt(encoded.codec, bytes(encoded.payload), dtype, state, n, d)


@pytest.mark.parametrize("n", [-1, 1 << 62])
def test_impossible_sizes_are_refused(n: int) -> None:
    with pytest.raises(CodecError):
        decode(CODECS["zstd"], b"", n, 4, "float32")


def _frame(size: int) -> bytes:
    return zstandard.ZstdCompressor().compress(bytes(size))


def _streamed(size: int) -> bytes:
    """A frame that does not say how much it holds."""
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return compressor.compress(bytes(size)) + compressor.flush()


@pytest.mark.parametrize("bomb", [_frame(1 << 28), _streamed(1 << 28)], ids=["said", "unsaid"])
def test_a_decompression_bomb_allocates_no_more_than_the_rows(bomb: bytes) -> None:
    section = struct.pack("<Q", 1 << 56 | len(bomb)) + bomb
    wrapped = {
        CODECS["zstd"]: bomb,
        CODECS["shuffle_zstd"]: bomb,
        CODECS["lossless"]: section * 4,
        CODECS["error_bounded"]: struct.pack("<BBBBI", 1, 4, 2, 0, 0) + section * 6,
        CODECS["svd"]: struct.pack("<BBHI", 1, 2, 0, 0) + struct.pack("<Q", 4 * len(section)) + section * 4,
    }
    state = valid("svd:6", "float32")[1]
    for codec, payload in wrapped.items():
        tracemalloc.start()
        try:
            with pytest.raises(CodecError):
                decode(codec, payload, N, D, "float32", state)
            assert tracemalloc.get_traced_memory()[1] < 4 * N * D * 4 + (1 << 20)
        finally:
            tracemalloc.stop()

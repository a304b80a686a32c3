"""`lossless` gives back every bit, and packs exponents as well as their entropy allows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actscope.codecs import CODECS, DTYPES, carrier, decode, encoder, from_float32, itemsize

Rows = Callable[..., np.ndarray]
FLOATS = ("float32", "float16", "bfloat16", "float64")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 8), (5, 0), (1, 1), (7, 3), (1000, 77)])
def test_every_bit_comes_back(dtype: str, shape: tuple[int, int], any_bits: Rows) -> None:
    rows = any_bits(*shape, dtype)
    encoded = encoder("lossless").encode(rows, dtype)
    assert encoded.row_errors is None
    assert encoded.codec == CODECS["lossless" if dtype in FLOATS else "shuffle_zstd"]
    assert decode(encoded.codec, encoded.payload, *shape, dtype).tobytes() == rows.tobytes()


@given(st.binary(min_size=0, max_size=400), st.sampled_from(FLOATS))
@settings(deadline=None, max_examples=200)
def test_any_bytes_at_all_come_back(content: bytes, dtype: str) -> None:
    count = len(content) // itemsize(dtype)
    rows = np.frombuffer(content, carrier(dtype), count).reshape(count, 1)
    encoded = encoder("lossless").encode(rows, dtype)
    assert decode(encoded.codec, encoded.payload, count, 1, dtype).tobytes() == rows.tobytes()


def test_one_encoder_keeps_blocks_apart(activations: Rows) -> None:
    """Scratch memory is shared between blocks, sites and dtypes: none leaks into a payload."""
    one = encoder("lossless")
    blocks = [(activations(n, d, dtype, n), dtype) for n, d, dtype in [(900, 64, "bfloat16"), (3, 7, "float32")] * 2]
    payloads = [one.encode(rows, dtype).payload for rows, dtype in blocks]
    for (rows, dtype), payload in zip(blocks, payloads, strict=True):
        assert decode(CODECS["lossless"], payload, rows.shape[0], rows.shape[1], dtype).tobytes() == rows.tobytes()


def test_bfloat16_rows_shrink_by_their_exponents(activations: Rows) -> None:
    rows = activations(2000, 128, "bfloat16")
    assert rows.nbytes / len(encoder("lossless").encode(rows, "bfloat16").payload) > 1.4


def test_bfloat16_numbers_in_float32_shrink_to_less_than_half(activations: Rows) -> None:
    """Each plane is decided by trying: two planes of zeros cost nothing."""
    rows = (activations(2000, 128, "bfloat16").astype(np.uint32) << 16).view(np.float32)
    assert rows.nbytes / len(encoder("lossless").encode(rows, "float32").payload) > 2.8


def test_noise_grows_by_no_more_than_its_headers(any_bits: Rows) -> None:
    rows = any_bits(500, 64, "float32")
    assert len(encoder("lossless").encode(rows, "float32").payload) <= rows.nbytes + 4 * 8


def test_sparse_rows_shrink_a_lot() -> None:
    """ReLU features are mostly zeros."""
    rng = np.random.default_rng(0)
    rows = np.where(rng.random((500, 256)) < 0.02, rng.standard_normal((500, 256)), 0).astype(np.float32)
    half = from_float32(rows, "bfloat16")
    assert half.nbytes / len(encoder("lossless").encode(half, "bfloat16").payload) > 8

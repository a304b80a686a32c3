"""General-purpose codecs give back every bit, and refuse what they cannot take."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from actscope.codecs import CODECS, DTYPES, carrier, decode, encoder, from_float32, name_of, to_float32
from actscope.errors import CodecError

GENERAL = ("none", "lz4", "zstd", "zstd:3", "shuffle_lz4", "shuffle_zstd", "shuffle_zstd:5")


Rows = Callable[..., np.ndarray]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", GENERAL)
@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (7, 3), (300, 33)])
def test_every_bit_comes_back(spec: str, dtype: str, shape: tuple[int, int], any_bits: Rows) -> None:
    rows = any_bits(*shape, dtype)
    encoded = encoder(spec).encode(rows, dtype)
    assert encoded.row_errors is None
    assert encoded.codec == CODECS[spec.partition(":")[0]]
    back = decode(encoded.codec, encoded.payload, *shape, dtype)
    assert back.dtype == carrier(dtype) and back.shape == shape
    assert back.tobytes() == rows.tobytes()


def test_rows_that_are_not_contiguous_are_taken(any_bits: Rows) -> None:
    rows = any_bits(20, 8, "float32")[::2, ::2]
    encoded = encoder("zstd").encode(rows, "float32")
    assert decode(encoded.codec, encoded.payload, 10, 4, "float32").tobytes() == rows.tobytes()


def test_codec_none_copies_nothing() -> None:
    rows = np.ones((4, 4), np.float32)
    assert np.shares_memory(np.frombuffer(encoder("none").encode(rows, "float32").payload, np.uint8), rows)


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "gzip",
        "lossless:1",
        "error_bounded",
        "error_bounded:x",
        "error_bounded:0",
        "error_bounded:nan",
        "error_bounded:2",
        "svd",
        "svd:0",
        "svd:-1",
        "svd:x",
        "auto:x",
        "auto:9",
        "zstd:",
        "zstd:0",
        "zstd:x",
        "zstd:99",
        "none:1",
        "lz4:3",
        "shuffle_lz4:1",
    ],
)
def test_a_codec_that_does_not_exist_is_named(spec: str) -> None:
    with pytest.raises(CodecError, match=r"codec"):
        encoder(spec)


def test_wire_codes_are_stable() -> None:
    """Codes are written into recordings: changing one makes old recordings unreadable."""
    assert CODECS == {
        "none": 0,
        "lz4": 1,
        "zstd": 2,
        "shuffle_lz4": 3,
        "shuffle_zstd": 4,
        "lossless": 5,
        "error_bounded": 6,
        "svd": 7,
    }
    assert [name_of(code) for code in range(8)] == list(CODECS)
    assert {name: DTYPES[name] for name in ("float32", "float16", "bfloat16", "float64")} == {
        "float32": 1,
        "float16": 2,
        "bfloat16": 3,
        "float64": 4,
    }


@pytest.mark.parametrize(
    ("rows", "dtype"),
    [
        (np.zeros(4, np.float32), "float32"),
        (np.zeros((2, 2), np.float64), "float32"),
        (np.zeros((2, 2), np.float32), "bfloat16"),
        (np.zeros((2, 2), ">f4"), "float32"),
        (np.zeros((2, 2), np.float32), "float31"),
    ],
)
def test_rows_of_another_shape_or_dtype_are_refused(rows: np.ndarray, dtype: str) -> None:
    with pytest.raises(CodecError, match=f"rows of dtype '{dtype}': expected"):
        encoder("none").encode(rows, dtype)


def test_a_code_of_a_newer_version_says_so() -> None:
    with pytest.raises(CodecError, match="newer"):
        decode(250, b"", 0, 0, "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_half_precision_number_survives_float32(dtype: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256).view(carrier(dtype))
    back = from_float32(to_float32(every, dtype), dtype)
    number = ~np.isnan(to_float32(every, dtype))
    assert np.array_equal(back[number].view(np.uint16), every[number].view(np.uint16))
    assert np.isnan(to_float32(back, dtype)[~number]).all()


def test_bfloat16_rounds_as_torch_does(any_bits: Rows) -> None:
    import torch

    rows = any_bits(100, 100, "float32").view(np.float32)
    rows = np.where(np.isnan(rows), np.float32(1.5), rows)
    ours = from_float32(rows, "bfloat16")
    assert np.array_equal(ours.view(np.int16), torch.from_numpy(rows).to(torch.bfloat16).view(torch.int16).numpy())

"""Codecs: encode rows of one site to bytes and decode them. Requires only numpy, zstandard and lz4."""

from actscope.codecs.contract import Encoded, Encoder
from actscope.codecs.dtypes import DTYPES, carrier, from_float32, itemsize, to_float32
from actscope.codecs.registry import CODECS, check_rows, decode, encoder, name_of, rows_before_encoding

__all__ = [
    "CODECS",
    "DTYPES",
    "Encoded",
    "Encoder",
    "carrier",
    "check_rows",
    "decode",
    "encoder",
    "from_float32",
    "itemsize",
    "name_of",
    "rows_before_encoding",
    "to_float32",
]

"""Decoding of foreign bytes: JSON and MessagePack from files, clients and other processes.

msgspec raises UnicodeDecodeError and RecursionError beside its own DecodeError, and Python's numbers, dtypes and containers raise
the rest of `MALFORMED`. These functions turn all of them into one error of actscope, so no reader has to list them.
"""

from __future__ import annotations

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import UnionType
from typing import Generic, TypeVar

import msgspec

from actscope.errors import ActscopeError

T = TypeVar("T")
Bytes = bytes | bytearray | memoryview
Data = Bytes | str
#: What parsing foreign bytes may raise, here and in the packages that parse them. RingError and its like are OSErrors.
MALFORMED: tuple[type[Exception], ...] = (
    ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError, MemoryError, EOFError, SyntaxError,
    NotImplementedError, RuntimeError, struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tokenize.TokenError,
    msgspec.MsgspecError,
)  # fmt: skip
_MOST_REASON = 300


def decode_json(data: Data, kind: type[T], error: type[ActscopeError], what: str) -> T:
    """Decode one JSON value from foreign bytes.

    Args:
        data: The bytes, whose number the caller has bounded.
        kind: Type that the value must have, as for `msgspec.json.decode`; `object` accepts any value.
        error: Error to raise.
        what: Beginning of the message: the place, and what was expected there.

    Returns:
        The value.

    Raises:
        ActscopeError: An `error`, "<what>: <reason>", if the bytes are not such a value.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except MALFORMED as reason:
        raise error(f"{what}: {reason_of(reason)}") from reason


def decode_msgpack(data: Bytes, kind: type[T], error: type[ActscopeError], what: str) -> T:
    """Decode one MessagePack value from foreign bytes. Arguments, result and errors are those of `decode_json`."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except MALFORMED as reason:
        raise error(f"{what}: {reason_of(reason)}") from reason


class CheckedDecoder(Generic[T]):
    """Decoder of MessagePack messages of one type, made once for many messages.

    Args:
        kind: Type or union of types of the messages.
        error: Error that `decode` raises.
        what: Beginning of its message.
    """

    def __init__(self, kind: type[T] | UnionType, error: type[ActscopeError], what: str) -> None:
        self._decode: Callable[[Bytes], T] = msgspec.msgpack.Decoder(kind).decode
        self._error, self._what = error, what

    def decode(self, data: Bytes) -> T:
        """Return the message. Raises the decoder's error if the bytes are no such message."""
        try:
            return self._decode(data)
        except MALFORMED as reason:
            raise self._error(f"{self._what}: {reason_of(reason)}") from reason


@contextmanager
def as_own_error(error: type[ActscopeError], where: str, *more: type[Exception]) -> Iterator[None]:
    """Turn what a parser of foreign bytes raises into `error`, "<where>: <reason>". Errors of actscope pass unchanged.

    It is for readers whose parsers are numpy, zipfile and the like. `more` are the parser's own errors, beside `MALFORMED`.
    MemoryError is included: a number in the file asked for it.
    """
    try:
        yield
    except ActscopeError:
        raise
    except OSError as reason:
        raise error(f"{where}: cannot be read: {reason.strerror or reason}") from reason
    except MALFORMED + more as reason:
        raise error(f"{where}: malformed: {reason_of(reason)}") from reason


def reason_of(reason: BaseException) -> str:
    """Return the message of a foreign error, bounded in length. A bare one gets its type's name."""
    if isinstance(reason, RecursionError):
        return "it is nested too deeply"
    text = str(reason)[:_MOST_REASON]
    named = isinstance(reason, (ValueError, msgspec.MsgspecError)) and text
    return text if named else f"{type(reason).__name__}{': ' if text else ''}{text}"

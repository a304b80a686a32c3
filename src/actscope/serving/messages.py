"""Messages between two processes of ours over a socket: the length (4 bytes, little-endian), then MessagePack.

Typed on both ends and bounded: what is no message of the union, or too long, is an error and never an object.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, Generic, TypeVar

import msgspec

from actscope.errors import EngineError

_LENGTH = struct.Struct("<I")

M = TypeVar("M")


class Messages(Generic[M]):
    """How the messages of one union of tagged structs are packed, sent and received."""

    def __init__(self, union: Any, *, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(union)
        self._encode = msgspec.msgpack.Encoder().encode

    def pack(self, message: M) -> bytes:
        """A message as it goes over the socket."""
        body = self._encode(message)
        return _LENGTH.pack(len(body)) + body

    def send(self, connection: socket.socket, message: M) -> None:
        """Send a message whole; waits while the other side does not read. Raises OSError when it has gone."""
        connection.sendall(self.pack(message))

    def receive(self, connection: socket.socket) -> M | None:
        """The next message, or None when the other side has gone. Raises EngineError for what is none."""
        head = _read(connection, _LENGTH.size)
        body = None if head is None else _read(connection, self._size(head))
        return None if body is None else self._decode(body)

    def send_with(self, connection: socket.socket, message: M, fd: int) -> None:
        """Send a message, and a descriptor with it (SCM_RIGHTS; unix sockets only)."""
        data = self.pack(message)
        sent = socket.send_fds(connection, [data], [fd])
        if sent < len(data):
            connection.sendall(data[sent:])

    def receive_with(self, connection: socket.socket) -> tuple[M | None, int | None]:
        """The next message, and the descriptor that came with it, which is ours to close, or None."""
        head, fds, _, _ = socket.recv_fds(connection, _LENGTH.size, 1, socket.MSG_CMSG_CLOEXEC)
        fd = fds[0] if fds else None
        if len(head) < _LENGTH.size:
            return None, fd
        body = _read(connection, self._size(head))
        return (None if body is None else self._decode(body)), fd

    def take(self, buffer: bytearray) -> M | None:
        """The first message in `buffer`, and out of it; None while it is not whole. Raises EngineError for what is none."""
        if len(buffer) < _LENGTH.size:
            return None
        end = _LENGTH.size + self._size(buffer[: _LENGTH.size])
        if len(buffer) < end:
            return None
        body = bytes(buffer[_LENGTH.size : end])
        del buffer[:end]
        return self._decode(body)

    def _size(self, head: bytes | bytearray) -> int:
        size: int = _LENGTH.unpack(head)[0]
        if size > self.most_bytes:
            raise EngineError(f"a message of {size} bytes: expected at most {self.most_bytes}")
        return size

    def _decode(self, body: bytes | bytearray) -> M:
        try:
            return self._decoder.decode(body)
        except msgspec.DecodeError as error:
            raise EngineError(f"a message that cannot be read: {error}") from error


def _read(connection: socket.socket, size: int) -> bytearray | None:
    data = bytearray(size)
    view, have = memoryview(data), 0
    while have < size:
        try:
            n = connection.recv_into(view[have:])
        except (ConnectionError, OSError):
            return None
        if not n:
            return None
        have += n
    return data

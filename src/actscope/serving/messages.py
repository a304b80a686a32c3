"""Length-prefixed messages between two processes over a socket: the length (uint32, little-endian), then MessagePack.

Messages are typed and bounded in size. Bytes that do not decode to a message of the union, or are too long, raise EngineError.
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
    """Codec and blocking transport for the messages of one union of tagged structs.

    Args:
        union: Union of tagged `msgspec.Struct` types.
        most_bytes: Maximum size in bytes of a received message. Sending is not limited.
    """

    def __init__(self, union: Any, *, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(union)
        self._encode = msgspec.msgpack.Encoder().encode

    def pack(self, message: M) -> bytes:
        """Return a message as bytes for the socket, length included."""
        body = self._encode(message)
        return _LENGTH.pack(len(body)) + body

    def send(self, connection: socket.socket, message: M) -> None:
        """Send a whole message. Blocks while the peer does not read (back pressure). Raises OSError if the peer has gone."""
        connection.sendall(self.pack(message))

    def receive(self, connection: socket.socket) -> M | None:
        """Return the next message, or None if the connection ended before all of it arrived. Blocks until then.

        Raises:
            EngineError: The message is too long or does not decode.
        """
        head = _read(connection, _LENGTH.size)
        body = None if head is None else _read(connection, self._size(head))
        return None if body is None else self._decode(body)

    def send_with(self, connection: socket.socket, message: M, fd: int) -> None:
        """Send a message and a file descriptor (SCM_RIGHTS; unix sockets only). Blocks and raises like `send`."""
        data = self.pack(message)
        sent = socket.send_fds(connection, [data], [fd])
        if sent < len(data):
            connection.sendall(data[sent:])

    def receive_with(self, connection: socket.socket) -> tuple[M | None, int | None]:
        """Return the next message and the file descriptor sent with it, each None if absent. Blocks like `receive`.

        The caller owns the descriptor and closes it.

        Raises:
            EngineError: The message is too long or does not decode.
            OSError: The socket failed.
        """
        head, fds, _, _ = socket.recv_fds(connection, _LENGTH.size, 1, socket.MSG_CMSG_CLOEXEC)
        fd = fds[0] if fds else None
        if len(head) < _LENGTH.size:
            return None, fd
        body = _read(connection, self._size(head))
        return (None if body is None else self._decode(body)), fd

    def take(self, buffer: bytearray) -> M | None:
        """Remove the first message from `buffer` and return it; None while it is incomplete. Does not block.

        Raises:
            EngineError: The message is too long or does not decode.
        """
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
            raise EngineError(f"a message does not decode: {error}") from error


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

"""Length-prefixed messages between two processes over a socket: the length (uint32, little-endian), then MessagePack.

Messages are typed and bounded in size. Bytes that do not decode to a message of the union, or are too long, raise EngineError.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, Generic, TypeVar

import msgspec

from actscope.errors import EngineError
from actscope.runtime.decoding import CheckedDecoder

_LENGTH = struct.Struct("<I")

M = TypeVar("M")
#: Bytes that are taken for a message before any of it has arrived.
_PIECE = 1 << 20


class Messages(Generic[M]):
    """Codec and blocking transport for the messages of one union of tagged structs.

    Args:
        union: Union of tagged `msgspec.Struct` types.
        most_bytes: Maximum size in bytes of a received message. Sending is not limited.
    """

    def __init__(self, union: Any, *, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._decoder: CheckedDecoder[M] = CheckedDecoder(union, EngineError, "a message does not decode")
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
        return None if body is None else self._decoder.decode(body)

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
        return (None if body is None else self._decoder.decode(body)), fd

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
        return self._decoder.decode(body)

    def _size(self, head: bytes | bytearray) -> int:
        size: int = _LENGTH.unpack(head)[0]
        if size > self.most_bytes:
            raise EngineError(f"a message of {size} bytes: expected at most {self.most_bytes}")
        return size


def _read(connection: socket.socket, size: int) -> bytearray | None:
    """Return `size` bytes; None if the connection ends before. Memory is taken for what has arrived, and as much again."""
    data = bytearray(min(size, _PIECE))
    have = 0
    while have < size:
        if have == len(data):
            data += bytes(min(size - have, have))
        try:
            with memoryview(data) as whole, whole[have:] as rest:
                n = connection.recv_into(rest)
        except OSError:
            return None
        if not n:
            return None
        have += n
    return data

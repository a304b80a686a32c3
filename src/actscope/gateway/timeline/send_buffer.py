"""When the bytes of an answer leave this machine's send buffers: the process's own, and the unsent part of the kernel's."""

from __future__ import annotations

import asyncio
import fcntl
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from actscope.clock import monotonic_ns
from actscope.gateway.scores.token_times import TokenTimes

#: Bytes that TCP has not sent yet (linux/sockios.h). What is sent and not acknowledged does not count: a client may acknowledge
#: late although it has read.
_SIOCOUTQNSD = 0x894B
#: Shortest and longest interval at which a buffer that is not empty is looked at again, in seconds. Between them it is this share
#: of the time that the oldest chunk has waited. So the error of a time is small beside what it measures.
_AGAIN_SECONDS, _MOST_SECONDS, _SHARE = 0.001, 0.05, 1 / 32


def waiting_bytes(transport: asyncio.Transport) -> int:
    """Return how many bytes wait to be sent: in the transport's buffer, and in the kernel's if it is a TCP connection."""
    waiting = transport.get_write_buffer_size()
    socket = transport.get_extra_info("socket")
    try:
        unsent = fcntl.ioctl(socket.fileno(), _SIOCOUTQNSD, b"\0\0\0\0")
    except (OSError, AttributeError, ValueError):  # closed, or not TCP: then only what this process holds is known
        return waiting
    return waiting + int(struct.unpack("i", unsent)[0])


#: Times of a request, and the number of its chunks up to the latest one that is meant.
Chunks = Sequence[tuple[TokenTimes, int]]


@dataclass(slots=True)
class WrittenChunks:
    """Chunks that were written together: the count of bytes at their end, when that was, and whose they are."""

    end: int
    since_ns: int
    chunks: Chunks


class SendBuffer:
    """Follows the chunks of one answer through the send buffers of its connection. On the event loop's thread.

        written ──▶ first look: sent ──▶ drained: as many bytes have left the buffers as were written up to the chunk's end
        └─ sent ─┘ at once, if earlier chunks are known to wait

    The first look is in the next iteration of the event loop, since uvloop writes at the end of an iteration: the time until then
    is the gateway's own, not the client's. Further looks follow while the buffers are not empty.

    Args:
        waiting: Returns how many bytes wait to be sent; None: nothing is known of the connection, so what is sent is drained.
        lost: Returns whether the connection is gone: then what has not left the buffers never will.
    """

    def __init__(self, waiting: Callable[[], int] | None, lost: Callable[[], bool] = lambda: False) -> None:
        self._waiting, self._lost = waiting, lost
        self._written = 0
        self._behind: deque[WrittenChunks] = deque()
        self._is_backed_up = False
        self._timer: asyncio.Handle | None = None

    @classmethod
    def of(cls, transport: asyncio.Transport | None) -> SendBuffer:
        """Return the buffer of a connection."""
        return cls(None) if transport is None else cls(lambda: waiting_bytes(transport), transport.is_closing)

    def begin(self, chunks: Chunks) -> None:
        """Note chunks that are about to be written. If earlier ones wait, the client's side holds them up from now on."""
        if self._is_backed_up:
            _stamp_sent(chunks, monotonic_ns())

    def add(self, n_bytes: int, chunks: Chunks) -> None:
        """Note that bytes were written, with which these chunks end."""
        self._written += n_bytes
        if chunks:
            self._behind.append(WrittenChunks(self._written, monotonic_ns(), chunks))
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._timer = None
        waiting = self._waiting() if self._waiting else 0
        now, gone = monotonic_ns(), self._written - waiting
        if waiting and self._lost():
            self._behind.clear()
        for one in self._behind:
            _stamp_sent(one.chunks, now)
        while self._behind and self._behind[0].end <= gone:
            for times, n_chunks in self._behind.popleft().chunks:
                times.drained(n_chunks, now)
        self._is_backed_up = bool(self._behind)
        if self._behind:
            waited = (now - self._behind[0].since_ns) / 1e9
            pause = min(max(waited * _SHARE, _AGAIN_SECONDS), _MOST_SECONDS)
            self._timer = asyncio.get_running_loop().call_later(pause, self._look)


def _stamp_sent(chunks: Chunks, now_ns: int) -> None:
    for times, n_chunks in chunks:
        times.sent(n_chunks, now_ns)

"""Many concurrent streams through the gateway, in front of a scripted engine: tokens per second of a core, memory a stream."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import uvloop

from actscope.bench.support.samples import Result, result
from actscope.bench.support.scripted_engine import N_PROBES, N_PROMPT
from actscope.errors import UpstreamError

STREAMS = 1000
TOKENS = 64
_WARM_UP = 50
_DEADLINE_S = 300.0
_BASELINE = f"a scripted engine, {N_PROBES} probes, a prompt of {N_PROMPT} tokens and {TOKENS} tokens a stream"
#: What the last chunk of a stream says if every token but the last has its scores.
_COMPLETE = f'"present":{N_PROMPT + TOKENS},"computed":{N_PROMPT + TOKENS - 1}'.encode()


@dataclass(frozen=True, slots=True)
class Server:
    """A running gateway: its process, its port and its token."""

    pid: int
    port: int
    token: str


#: Runs a gateway in front of the engine with this card.
Gateway = Callable[[str], AbstractContextManager[Server]]


class StreamClient(asyncio.Protocol):
    """One stream: asks at once, and notes whether it ends with all its tokens and scores."""

    def __init__(self, request: bytes, ended: asyncio.Future[bool]) -> None:
        self._request = request
        self._ended = ended
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        seen = self._tail + data
        if b"data: [DONE]" in seen:
            self._end(complete=_COMPLETE in seen)
        self._tail = seen[-2000:]

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(complete=False)

    def _end(self, *, complete: bool) -> None:
        if not self._ended.done():
            self._ended.set_result(complete)
            self._transport.close()


def run_streams(gateway: Gateway, progress: Callable[[str], None], rounds: int = 3) -> list[Result]:
    """Measure `rounds` times `STREAMS` streams at once, after a warm-up.

    CPU time is that of the gateway's process, so other processes on the machine matter little. Memory is the growth of its
    resident set from before the first round to its largest.
    """
    progress(f"starting a scripted engine for {STREAMS} streams")
    with _scripted_engine() as card, gateway(card) as server:
        uvloop.run(_batch(server, _WARM_UP))
        before, complete, rates, grown = _resident_kb(server.pid), [], [], []
        for number in range(rounds):
            cpu = _cpu_seconds(server.pid)
            complete.append(uvloop.run(_batch(server, STREAMS)))
            rates.append(STREAMS * TOKENS / (_cpu_seconds(server.pid) - cpu))
            grown.append((_resident_kb(server.pid) - before) / STREAMS)
            progress(f"round {number + 1}: {complete[-1]} streams, {rates[-1]:.0f} tokens/s of a core")
    memory = result("kb_per_stream", grown, "KB", _BASELINE)
    return [
        result("streams", complete, "streams", _BASELINE, bar=STREAMS),
        result("tokens_per_s_core", rates, "tokens/s", _BASELINE),
        memory | {"bar": 200.0, "ok": memory["value"] < 200.0},
    ]


async def _batch(server: Server, n: int) -> int:
    """Run `n` streams at once, and return how many came whole."""
    loop = asyncio.get_running_loop()
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "actscope": True, "batch": n}
    text = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{server.port}\r\nauthorization: Bearer {server.token}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
    )
    ends: list[asyncio.Future[bool]] = [loop.create_future() for _ in range(n)]
    request = head.encode() + text
    for end in ends:
        await loop.create_connection(lambda end=end: StreamClient(request, end), "127.0.0.1", server.port)  # type: ignore[misc]
    async with asyncio.timeout(_DEADLINE_S):
        return sum(await asyncio.gather(*ends))


@contextmanager
def _scripted_engine() -> Iterator[str]:
    """Run the engine in its own process. Yields its card's id."""
    command = [sys.executable, "-m", "actscope.bench.support.scripted_engine", str(TOKENS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        card = child.stdout.readline().strip()
        if not card:
            raise UpstreamError("the scripted engine did not come up for the bench")
        try:
            yield card
        finally:
            child.stdin.close()


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_kb(pid: int) -> float:
    """Return the largest resident set so far."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return float(status["VmHWM"].split()[0])

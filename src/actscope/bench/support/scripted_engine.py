"""A scripted engine for the gateway's bench: no model, and the tokens and scores of many streams in lockstep.

It stands in for an engine with a batch of a thousand, which no machine without a large GPU has. What the gateway sees of it is
real: a card, a ring with one row a stream and step, and OpenAI's chunks over a unix socket.

python -m actscope.bench.support.scripted_engine TOKENS
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sys
import time
from dataclasses import dataclass, field

import msgspec
import numpy as np
import uvloop

from actscope.frames import ROW_META, SCORES, Frame, RowFlag, Span, SpanFlag, Step
from actscope.ring.discovery import EngineCard, publish_card, publish_table, withdraw_card
from actscope.ring.host import RingSpec, RingWriter
from actscope.runtime.boot import boot_id
from actscope.runtime.directory import runtime_dir
from actscope.runtime.process import process_start

N_PROBES = 8
N_PROMPT = 16
_WIDTH = 16
#: Bytes of chunks that an engine may be ahead of the gateway in each stream: it waits for the slowest.
_AHEAD_BYTES = 4096


@dataclass(slots=True, eq=False)
class BatchedStream:
    """One request: its id, and the connection on which its chunks are sent."""

    request: str
    writer: asyncio.StreamWriter
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class LockstepEngine:
    """Steps through batches of streams: rows of a step into the ring, then one chunk to each stream.

    A request names the size of its batch in the field `batch`. The batch begins when all its requests have arrived.

    Args:
        tokens: Number of tokens of each answer.
    """

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._waiting: list[BatchedStream] = []
        self._arrived = asyncio.Event()
        self._ring = RingWriter.create(RingSpec(1 << 17, _WIDTH, 1 << 12, 1 << 17))
        self._step = 0
        self.card = self._make_card()

    def publish(self) -> None:
        """Make the probe table and the card known."""
        publish_table(self.card.id, self._table(), 1)
        publish_card(self.card)

    def close(self) -> None:
        """Withdraw the card and the ring."""
        withdraw_card(self.card)
        self._ring.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await self._answer(reader, writer)
        writer.close()

    async def run(self) -> None:
        """Generate the batches, one after the other, until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            batch, self._waiting = self._waiting, []
            await self._generate(batch)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, path, _ = head.split(" ", 2)
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if method == "POST":
            asked = msgspec.json.decode(body)
            stream = BatchedStream(f"chatcmpl-{headers['x-request-id']}", writer)
            writer.transport.set_write_buffer_limits(high=_AHEAD_BYTES)
            self._waiting.append(stream)
            if len(self._waiting) == asked["batch"]:
                self._arrived.set()
            await stream.ended.wait()
        else:
            found = self._table() if path.endswith("/probes") else b'{"status": "ok", "data": []}'
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
            writer.write(b"content-length: %d\r\n\r\n" % len(found) + found)
            await writer.drain()

    async def _generate(self, batch: list[BatchedStream]) -> None:
        for stream in batch:
            stream.writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
        self._prefill(batch)
        for number in range(self._tokens):
            last = number == self._tokens - 1
            if number:
                self._publish(batch, N_PROMPT + number - 1, 1, last)
            for stream in batch:
                stream.writer.write(self._chunk(stream, number, last))
            for stream in batch:
                await stream.writer.drain()
        for stream in batch:
            stream.writer.write(_framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")
            stream.ended.set()

    def _prefill(self, batch: list[BatchedStream]) -> None:
        for stream in batch:  # prompts do not fit one step
            self._publish([stream], 0, N_PROMPT, False)

    def _publish(self, batch: list[BatchedStream], position: int, n: int, last: bool) -> None:
        self._step += 1
        meta = np.zeros(len(batch) * n, ROW_META)
        meta["position"] = np.tile(np.arange(position, position + n), len(batch))
        meta["token_id"] = meta["position"] + 1
        meta["flags"] = int(RowFlag.PREFILL) if not position else 0
        meta["step"] = self._step
        rows = np.random.default_rng(self._step).random((len(meta), _WIDTH), np.float32)
        flags = SpanFlag.FIRST if not position else SpanFlag.END if last else SpanFlag(0)
        spans = tuple(Span(s.request, position, n, i * n, flags, N_PROMPT) for i, s in enumerate(batch))
        self._ring.write(Step(self._step, time.monotonic_ns(), spans, meta, 1), [Frame(SCORES, rows)])

    def _chunk(self, stream: BatchedStream, number: int, last: bool) -> bytes:
        choice = {"index": 0, "delta": {"content": " snow"}, "logprobs": None}
        choice |= {"finish_reason": "length" if last else None, "token_ids": [N_PROMPT + number + 1]}
        body = {"id": stream.request, "object": "chat.completion.chunk", "created": 0, "model": "scripted"}
        prompt = {} if number else {"prompt_token_ids": list(range(1, N_PROMPT + 1))}
        return _framed(b"data: " + msgspec.json.encode(body | {"choices": [choice]} | prompt) + b"\n\n")

    def _table(self) -> bytes:
        probe = {"site": "layers.3.resid_post", "label": "", "description": "", "layer": 3, "activation": "identity"}
        probe |= {"bias": 0.0, "range": [0.0, 1.0], "signed": False, "token_mask": "none", "since": 1}
        probes = [{"slot": i, "id": f"probe-{i}", **probe} for i in range(N_PROBES)]
        return msgspec.json.encode({"generation": 1, "probes": probes})

    def _make_card(self) -> EngineCard:
        name, pid = secrets.token_hex(8), os.getpid()
        return EngineCard(
            id=name, pid=pid, pid_start=process_start(pid) or 0, kind="hf", model="scripted", revision="0", device="cpu",
            dtype="float32", n_layers=6, d_model=4, max_context=4096, special_ids=[], tokenizer="", ring=self._ring.name,
            endpoint=f"unix:{runtime_dir() / f'engine-{name}.sock'}", started_ns=time.time_ns(), boot_id=boot_id(),
            has_chat_template=True, control="", group="", part=0, parts=1,
        )  # fmt: skip


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def _main(tokens: int) -> None:
    engine = LockstepEngine(tokens)
    server = await asyncio.start_unix_server(
        engine.serve, engine.card.endpoint.removeprefix("unix:"), limit=1 << 20, backlog=4096
    )
    engine.publish()
    print(engine.card.id, flush=True)
    running = asyncio.create_task(engine.run())
    try:
        await asyncio.to_thread(sys.stdin.buffer.read)  # the bench ends it by closing the pipe
    finally:
        running.cancel()
        server.close()
        engine.close()


if __name__ == "__main__":
    uvloop.run(_main(int(sys.argv[1])))

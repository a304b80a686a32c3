"""What the gateway adds to each token, against the same engine called directly: `python tests/support/gateway/latency.py`.

The scripted engine stamps each chunk; a bare socket client reads the clock when it comes. Direct and through the
gateway take turns, scores on, so that the noise of the machine falls on both.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field

import numpy as np

TOKEN = "latency-token"
_SERVE = (
    "from actscope.gateway import *; serve(GatewaySettings(port=0, token='%s'), lambda s: print(s.port, flush=True))"
)


@dataclass
class Path:
    """One way to the engine, and what was measured on it."""

    name: str
    connect: object
    host: str
    delays_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)


async def one(path: Path, tokens: int, delay: float, scores: bool) -> None:
    """One streamed completion: the delay of each chunk, and the time to the first token."""
    reader, writer = await path.connect()  # type: ignore[operator]
    body = {
        "messages": [{"role": "user", "content": "snow"}],
        "stream": True,
        "max_tokens": tokens,
        "return_token_ids": True,
    }
    body |= {"scripted": {"delay": delay, "stamp": True}} | ({"actscope": True} if scores else {})
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {path.host}\r\nAuthorization: Bearer {TOKEN}\r\n"
    head += f"X-Request-Id: {os.urandom(8).hex()}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    began = time.monotonic_ns()
    writer.write(head.encode() + data)
    rest = b""
    n = 0
    while piece := await reader.read(1 << 16):
        now = time.monotonic_ns()
        *events, rest = (rest + piece).split(b"\n\n")
        for event in events:
            at = event.find(b'"sent_ns":')
            if at >= 0:
                sent = int(event[at + 10 : at + 40].split(b"}")[0].split(b",")[0])
                path.delays_ms.append((now - sent) / 1e6)
                n += 1
                if n == 2:
                    path.first_ms.append((now - began) / 1e6)
    writer.close()


async def measure(
    endpoint: str, port: int, runs: int = 12, tokens: int = 200, delay: float = 0.004
) -> dict[str, float]:
    """Added milliseconds: p50 and p99 per token, p50 to the first token."""
    direct = Path("direct", lambda: asyncio.open_unix_connection(endpoint.removeprefix("unix:")), "engine")
    through = Path("gateway", lambda: asyncio.open_connection("127.0.0.1", port), f"127.0.0.1:{port}")
    for i in range(runs + 1):
        for path in (direct, through) if i % 2 else (through, direct):
            await one(path, tokens, delay, scores=path is through)
            if i == 0:
                path.delays_ms.clear()
                path.first_ms.clear()
    added = {}
    for q in (50, 99):
        added[f"added_latency_p{q}_ms"] = float(
            np.percentile(through.delays_ms, q) - np.percentile(direct.delays_ms, q)
        )
        added[f"direct_p{q}_ms"] = float(np.percentile(direct.delays_ms, q))
    added["added_ttft_p50_ms"] = float(np.median(through.first_ms) - np.median(direct.first_ms))
    return added


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="acts-") as directory:
        environment = os.environ | {"ACTSCOPE_RUNTIME_DIR": directory, "PYTHONPATH": str(Path(__file__).parents[2])}
        python = [sys.executable]
        engine = subprocess.Popen(
            [*python, "-m", "support.gateway.scripted_engine"], stdout=-1, text=True, env=environment
        )
        assert engine.stdout is not None
        card = json.loads(engine.stdout.readline())
        gateway = subprocess.Popen([*python, "-c", _SERVE % TOKEN], stdout=-1, text=True, env=environment)
        assert gateway.stdout is not None
        try:
            print(json.dumps(asyncio.run(measure(card["endpoint"], int(gateway.stdout.readline())))))
        finally:
            for process in (gateway, engine):
                process.terminate()
                process.wait(20)


if __name__ == "__main__":
    main()

"""`actscope bench gateway`: latency that the gateway adds to each token, against the engine called directly.

Engine, gateway and client are three processes, as in use. A token's latency is measured from the publication of its pass by the
engine (the step's time stamp in the ring) to its arrival at the client. The same client calls the engine over its socket and
the gateway over TCP, alternately. Added latency is the difference of the two distributions' percentiles, pair by pair.

After that, a thousand streams at once run in front of a scripted engine (`bench/support/gateway_streams.py`).
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np

from actscope.bench.support.gateway_streams import Server, run_streams
from actscope.bench.support.samples import Result
from actscope.engines.builtin import NAME, probes_path
from actscope.engines.hf.settings import EngineSettings
from actscope.engines.hf.spawn import EngineProcess, new_card_id
from actscope.errors import UpstreamError
from actscope.ring.discovery import EngineCard
from actscope.ring.host import RingReader

TOKENS = 100
START_S = 90.0
BODY = {
    "messages": [{"role": "user", "content": "Tell me about a fox in the snow"}],
    "max_tokens": TOKENS, "temperature": 0, "stream": True, "ignore_eos": True,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Timing:
    """Latencies of one request in ms: from each token's pass to its arrival, and from the request to the first token."""

    tokens_ms: list[float]
    first_ms: float


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("engine")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._path)


def run(seconds: float = 20.0, progress: Callable[[str], None] = lambda what: None) -> list[Result]:
    """Run pairs of requests for about `seconds`, at least five. Each pair gives one value of each result."""
    progress("starting engine and gateway")
    settings = EngineSettings(model=NAME, card_id=new_card_id(), probes=(str(probes_path()),), threads=1)
    with EngineProcess(settings) as engine:
        card = engine.wait_ready()
        with running_gateway(card.id) as server, closing(RingReader.attach(card.ring)) as reader:
            latency = _measure(card, server.port, server.token, reader, seconds, progress)
    return latency + run_streams(running_gateway, progress)


def _measure(
    card: EngineCard, port: int, token: str, reader: RingReader, seconds: float, progress: Callable[[str], None]
) -> list[Result]:
    def direct() -> Timing:
        return _ask(_UnixConnection(card.endpoint.removeprefix("unix:")), BODY, {}, reader)

    def through() -> Timing:
        body = {**BODY, "actscope": True}
        return _ask(http.client.HTTPConnection("127.0.0.1", port), body, {"Authorization": f"Bearer {token}"}, reader)

    direct(), through()  # warm-up
    pairs: list[tuple[Timing, Timing]] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(pairs) < 5:
        order = (direct, through) if len(pairs) % 2 == 0 else (through, direct)
        first, second = order[0](), order[1]()
        pairs.append((first, second) if order[0] is direct else (second, first))
        progress(f"{len(pairs)} pairs of {TOKENS} tokens")
    return [
        _result("added_latency_p50_ms", pairs, lambda t: float(np.percentile(t.tokens_ms, 50)), bar=0.3),
        _result("added_latency_p99_ms", pairs, lambda t: float(np.percentile(t.tokens_ms, 99)), bar=1.0),
        _result("added_ttft_p50_ms", pairs, lambda t: t.first_ms, bar=5.0),
    ]


def _result(name: str, pairs: list[tuple[Timing, Timing]], figure: Callable[[Timing], float], bar: float) -> Result:
    added = [figure(through) - figure(direct) for direct, through in pairs]
    value = statistics.median(added)
    low, high = np.percentile(added, (5, 95))
    return {
        "name": name, "value": round(value, 4), "unit": "ms", "baseline": "the engine called directly over its socket",
        "runs": len(pairs), "min": round(float(low), 4), "max": round(float(high), 4), "bar": bar, "ok": value < bar,
    }  # fmt: skip


def _ask(
    connection: http.client.HTTPConnection, body: dict[str, object], headers: dict[str, str], reader: RingReader
) -> Timing:
    """Send one request. Each chunk after the role is one token, as the engine sends one per pass."""
    reader.read()  # discard the steps of earlier requests
    with closing(connection):
        asked = time.monotonic_ns()
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json", **headers}
        )
        response = connection.getresponse()
        if response.status != 200:
            raise UpstreamError(response.read().decode())
        arrivals = [
            arrived for arrived, line in _lines(response) if b'"finish_reason"' in line and b'"role"' not in line
        ]
    passes = _passes(reader)
    if not len(arrivals) == len(passes) == TOKENS:
        raise UpstreamError(f"expected {TOKENS} tokens, found {len(arrivals)} chunks and {len(passes)} passes")
    return Timing([(a - p) * 1e-6 for a, p in zip(arrivals, passes, strict=True)], (arrivals[0] - asked) * 1e-6)


def _lines(response: http.client.HTTPResponse) -> Iterator[tuple[int, bytes]]:
    while line := response.readline():
        if line.startswith(b"data: {"):
            yield time.monotonic_ns(), line


def _passes(reader: RingReader) -> list[int]:
    """Return the publication times of the passes of the only request, in ns."""
    steps = []
    while (batch := reader.read()) is not None:
        steps += [step.time_ns for step in batch.steps if len(step.meta)]
    return steps


@contextmanager
def running_gateway(card: str) -> Iterator[Server]:
    """Run a gateway in its own process, connected to the engine with this card."""
    token, port = secrets.token_urlsafe(16), _free_port()
    command = [sys.executable, "-m", "actscope", "gateway", "--upstream", card, "--port", str(port)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, env={**os.environ, "ACTSCOPE_TOKEN": token}, stderr=quiet, stdout=quiet) as child:
        try:
            _wait_up(child, port, token)
            yield Server(child.pid, port, token)
        finally:
            child.terminate()


def _wait_up(child: subprocess.Popen[bytes], port: int, token: str) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and child.poll() is None:
        with closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            try:
                connection.request("GET", "/health", headers={"Authorization": f"Bearer {token}"})
                if json.loads(connection.getresponse().read()).get("engine") == "up":
                    return
            except (OSError, http.client.HTTPException, ValueError):
                time.sleep(0.05)  # its port is not open yet, so there is nothing to wait on
    raise UpstreamError("the gateway did not come up for the bench")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""How much of the gaps between tokens the timeline explains: many requests at once, through a gateway."""

from __future__ import annotations

import http.client
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import numpy as np

from actscope.bench.support.gateway_streams import Server
from actscope.bench.support.samples import Progress, Result
from actscope.bench.support.vllm_serving import vllm_gateway, vllm_server
from actscope.engines.builtin import NAME, probes_path
from actscope.engines.hf.settings import EngineSettings
from actscope.engines.hf.spawn import EngineProcess, new_card_id
from actscope.errors import UpstreamError

REQUESTS = 64
#: Tokens of the requests: they end at different times.
_TOKENS = (24, 40, 64, 96)
_SETTLE_SECONDS = 10.0


class TimedGap(msgspec.Struct):
    """Length of a gap, and what of it is unexplained."""

    gap_ns: int
    unexplained_ns: int


class TimedAnswer(msgspec.Struct):
    """What is read of a timeline."""

    completion_tokens: int
    tokens: list[TimedGap]


@dataclass(frozen=True, slots=True)
class GatewayClient:
    """Requests to one gateway, each over a connection of its own."""

    server: Server

    def call(self, method: str, path: str, body: dict[str, object] | None = None) -> tuple[bytes, str]:
        """Return the answer's body and the id of its request. Raises UpstreamError for an error."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=120)) as connection:
            headers = {"Authorization": f"Bearer {self.server.token}", "Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            answer = response.read()
            if response.status != 200:
                raise UpstreamError(f"{path}: {response.status} {answer[:300].decode(errors='replace')}")
            return answer, response.headers.get("x-request-id") or ""

    def ask(self, number: int) -> str:
        """Read a streamed answer; returns the id of its request."""
        body: dict[str, object] = {
            "messages": [{"role": "user", "content": "Tell me about a fox" + " in the snow" * (number % 7)}],
            "max_tokens": _TOKENS[number % len(_TOKENS)], "ignore_eos": True, "stream": True, "actscope": True,
        }  # fmt: skip
        return self.call("POST", "/v1/chat/completions", body)[1]

    def gaps(self, request: str) -> Sequence[TimedGap]:
        """Return the gaps of a request, once the engine has told when its last token was drawn."""
        until = time.monotonic() + _SETTLE_SECONDS
        while True:
            answer, _ = self.call("GET", f"/v1/actscope/requests/{request}/timeline?limit=4096")
            found = msgspec.json.decode(answer, type=TimedAnswer)
            whole = len(found.tokens) == found.completion_tokens and not found.tokens[-1].unexplained_ns
            if whole or time.monotonic() > until:
                return found.tokens
            time.sleep(0.02)  # the state is the gateway's; there is nothing to wait on


def run_timeline(open_gateway: Callable[[str], AbstractContextManager[Server]], progress: Progress) -> list[Result]:
    """Run the requests at the built-in model and ask for their timelines.

    Args:
        open_gateway: Runs a gateway in front of the engine with this card.
        progress: Called with the current measurement.
    """
    progress("the timeline: starting engine and gateway")
    settings = EngineSettings(model=NAME, card_id=new_card_id(), probes=(str(probes_path()),), threads=1)
    with EngineProcess(settings) as engine:
        card = engine.wait_ready()
        with open_gateway(card.id) as server:
            return [_explained("timeline_explained_p01", _gaps(server, progress))]


def run_vllm_timeline(progress: Progress) -> list[Result]:
    """Run the same requests at vLLM. Raises UpstreamError if it does not come up."""
    progress("the timeline: starting vLLM and gateway")
    with (
        tempfile.TemporaryDirectory(prefix="acts-") as name,
        vllm_server(Path(name)) as (address, _),
        vllm_gateway(address, Path(name), progress) as (url, token, gateway),
    ):
        server = Server(gateway.pid, urlsplit(url).port or 0, token)
        return [_explained("timeline_explained_p01_vllm", _gaps(server, progress))]


def _gaps(server: Server, progress: Progress) -> list[TimedGap]:
    """Run all requests at once, and return the gaps of their tokens."""
    client = GatewayClient(server)
    client.ask(0)  # warm-up
    progress(f"the timeline of {REQUESTS} requests at once")
    with ThreadPoolExecutor(REQUESTS) as pool:
        requests = list(pool.map(client.ask, range(REQUESTS)))
    return [gap for request in requests for gap in client.gaps(request)]


def _explained(name: str, gaps: Sequence[TimedGap]) -> Result:
    """Make the result. Tokens that came together with the one before have no gap to explain."""
    shares = [1 - gap.unexplained_ns / gap.gap_ns for gap in gaps if gap.gap_ns]
    value, bar = float(np.percentile(shares, 1)), 0.99
    return {
        "name": name, "value": round(value, 5), "unit": "share",
        "baseline": f"the gap: {len(shares)} gaps of {len(gaps)} tokens, {REQUESTS} requests at once", "runs": 1,
        "min": round(min(shares), 5), "max": round(max(shares), 5), "bar": bar, "ok": value >= bar,
    }  # fmt: skip

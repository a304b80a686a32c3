"""A prompt that cannot fit the model costs its sender an error, and nobody else anything."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from support.servers import serving

pytestmark = pytest.mark.timeout(300)


def peak_mib(pid: int) -> float:
    """The most memory that this process's child, the engine, has used."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[:1]
    status = dict(line.split(":", 1) for line in Path(f"/proc/{child}/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def test_a_prompt_of_15_mb_freezes_nobody() -> None:
    """Eight of them, by clients that leave and by clients that stay, while others are answered."""
    text = "The hill is quiet, and the river sleeps. " * 375_000
    short = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    with serving() as up, up.place.client(timeout=60) as client, ThreadPoolExecutor(8) as pool:
        assert client.post("/v1/chat/completions", json=short).status_code == 200
        before = peak_mib(up.process.pid)

        def send(seconds: float) -> int:
            body = {"messages": [{"role": "user", "content": text}], "max_tokens": 2}
            with up.place.client(timeout=seconds) as attacker:
                try:
                    return attacker.post("/v1/chat/completions", json=body).status_code
                except httpx.TimeoutException:
                    return 0

        sent = [pool.submit(send, seconds) for seconds in (0.3, 60) * 4]
        waits = []
        while not all(one.done() for one in sent):
            began = time.monotonic()
            assert client.post("/v1/chat/completions", json=short).status_code == 200
            waits.append(time.monotonic() - began)
        assert {one.result() for one in sent} <= {0, 400}
        assert max(waits) < 10
        assert peak_mib(up.process.pid) - before < 600

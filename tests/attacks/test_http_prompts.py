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


TEXT = "the wolf ran home. " * 750_000


def test_texts_of_15_mb_in_any_field_are_refused_by_name_before_they_are_tokenized() -> None:
    """Each with its size and the limit, within seconds."""
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    bodies = [
        ("bad_words", "/v1/chat/completions", {**chat, "bad_words": [TEXT]}),
        ("bad_words", "/v1/completions", {"prompt": ["a"] * 50, "bad_words": [TEXT[:200] for _ in range(1000)]}),
        ("stop", "/v1/chat/completions", {**chat, "stop": [TEXT]}),
        ("stop", "/v1/messages", {**chat, "stop_sequences": [TEXT]}),
        ("truncate_prompt_tokens", "/v1/completions", {"prompt": TEXT, "max_tokens": 1, "truncate_prompt_tokens": 5}),
        ("truncate_prompt_tokens", "/v1/responses", {"input": TEXT, "truncation": "auto", "max_output_tokens": 1}),
        ("structured_outputs", "/v1/chat/completions", {**chat, "structured_outputs": {"regex": TEXT}}),
        ("structured_outputs", "/v1/chat/completions", {**chat, "structured_outputs": {"grammar": TEXT}}),
        ("structured_outputs", "/v1/chat/completions", {**chat, "structured_outputs": {"choice": [TEXT]}}),
    ]
    with serving() as up, up.place.client(timeout=60) as client:
        for field, path, body in bodies:
            began = time.monotonic()
            answer = client.post(path, json=body)
            assert answer.status_code == 400 and len(answer.text) < 1000, (field, path, answer.text[:300])
            assert field in answer.text or "context length" in answer.text, (field, path, answer.text)
            assert time.monotonic() - began < 20, (field, path)

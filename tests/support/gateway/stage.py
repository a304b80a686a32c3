"""Real processes for the gateway's tests: scripted engines and gateways in a runtime directory of their own."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from support.gateway.scripted import score
from support.waiting import until

TOKEN = "token-of-the-tests"

_SERVE = """
import json, sys
from actscope.gateway import GatewaySettings, serve
given = json.loads(sys.argv[1])
given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
serve(GatewaySettings(**given), lambda s: print(s.port, flush=True))
"""

#: The import root of the tests, for engines that run as processes of their own.
TESTS = Path(__file__).parents[2]


@dataclass(frozen=True)
class Place:
    """A gateway to talk to."""

    url: str
    token: str = TOKEN
    model: str = "scripted"

    def client(self, **options: Any) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.token}"} | options.pop("headers", {})
        return httpx.Client(
            base_url=self.url, headers=headers, timeout=options.pop("timeout", 30), trust_env=False, **options
        )

    def asynchronous(self) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {self.token}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=30, trust_env=False)


@dataclass
class EngineProcess:
    """A scripted engine."""

    process: subprocess.Popen[str]
    card: str
    endpoint: str

    def client(self) -> httpx.Client:
        if self.endpoint.startswith("http"):
            return httpx.Client(base_url=self.endpoint, timeout=30, trust_env=False)
        transport = httpx.HTTPTransport(uds=self.endpoint.removeprefix("unix:"))
        return httpx.Client(base_url="http://engine", transport=transport, timeout=30)

    def state(self) -> dict[str, Any]:
        with self.client() as client:
            found: dict[str, Any] = client.get("/scripted/state").json()
            return found

    @property
    def pid(self) -> int:
        return self.process.pid

    def release(self) -> None:
        with self.client() as client:
            client.post("/scripted/release")


class Stage:
    """Starts engines and gateways, and ends them."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="acts-"))
        self._environment = os.environ | {"ACTSCOPE_RUNTIME_DIR": str(self.directory), "PYTHONPATH": str(TESTS)}
        self._processes: list[subprocess.Popen[str]] = []
        self.wrapper: list[str] = []
        """Command that runs the next processes, before their own command lines."""

    def engine(self, *arguments: str) -> EngineProcess:
        process = self._start("-m", "support.gateway.scripted_engine", *arguments)
        found = json.loads(self._first_line(process))
        return EngineProcess(process, found["card"], found["endpoint"])

    def router(self, *engines: EngineProcess) -> EngineProcess:
        """A router in front of several engines, which no card names."""
        process = self._start("-m", "support.gateway.router", *(engine.endpoint for engine in engines))
        return EngineProcess(process, "", json.loads(self._first_line(process))["endpoint"])

    def gateway(self, *, up: bool = True, **settings: Any) -> Place:
        given = {"port": 0, "token": TOKEN, "discovery_seconds": 0.05, **settings}
        port = int(self._first_line(self._start("-c", _SERVE, json.dumps(given))))
        place = Place(f"http://127.0.0.1:{port}", given["token"])
        if up:
            await_engine(place)
        return place

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`actscope <arguments>` where these engines are."""
        command = [sys.executable, "-m", "actscope", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=self._environment, timeout=60)

    def close(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            process.wait(20)
            assert process.stdout is not None
            process.stdout.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def gateway_process(self) -> subprocess.Popen[str]:
        """The process that was started last."""
        return self._processes[-1]

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*self.wrapper, sys.executable, *arguments], stdout=subprocess.PIPE, text=True, env=self._environment
        )
        self._processes.append(process)
        return process

    @staticmethod
    def _first_line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline()


def await_engine(place: Place) -> None:
    with place.client() as client:
        until(lambda: client.get("/health").json()["engine"] == "up")


def await_scores(place: Place) -> None:
    """Until the gateway has the engine, and its ring."""
    with place.client() as client:
        until(lambda: client.get("/v1/actscope/info").json()["ring"] is not None)


def chat(place_model: str | None = None, content: str = "hi snow", **fields: Any) -> dict[str, Any]:
    """A chat request's body."""
    body = {"messages": [{"role": "user", "content": content}], **fields}
    return body if place_model is None else {**body, "model": place_model}


def chunks(client: httpx.Client, body: dict[str, Any], path: str = "/v1/chat/completions") -> list[dict[str, Any]]:
    """All chunks of a streamed completion that must end well."""
    response = client.post(path, json={"stream": True, **body})
    assert response.status_code == 200, response.text
    events = [e.removeprefix("data: ") for e in response.text.split("\n\n") if e]
    assert events[-1] == "[DONE]"
    return [json.loads(e) for e in events[:-1]]


@dataclass
class Event:
    id: int
    kind: str
    data: dict[str, Any]


def events(lines: Iterator[str]) -> Iterator[Event]:
    """Server-sent events of the events endpoint; comments are left out."""
    found: dict[str, str] = {}
    for line in lines:
        if not line and found:
            yield Event(int(found["id"]), found["event"], json.loads(found["data"]))
            found = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            found[name] = value


class Picture:
    """Payloads (or events) of one choice put together, as a client would; it checks the contract on the way."""

    def __init__(self) -> None:
        self.header: list[dict[str, Any]] = []
        self.headers: list[list[str]] = []
        self.request = ""
        self.prompt_tokens: int | None = None
        self.ids: dict[int, int] = {}
        self.raw: dict[int, bytes] = {}
        self.cells: dict[tuple[int, str], float | None] = {}
        self.states: dict[tuple[int, str], str] = {}
        self.final: dict[str, Any] | None = None

    def add(self, payload: dict[str, Any]) -> None:
        assert payload["v"] == 1
        assert self.final is None, "nothing comes after the last payload"
        if "request" in payload:
            assert not self.request, "the header comes once"
            self.request, self.prompt_tokens = payload["request"], payload["prompt_tokens"]
        if "probes" in payload:
            self.header = payload["probes"]
            self.headers.append([p["id"] for p in self.header])
        if "tokens" in payload:
            self._add_tokens(payload["tokens"])
        if "scores" in payload:
            self._add_scores(payload["scores"])
        self.final = payload.get("final")

    def _add_tokens(self, block: dict[str, Any]) -> None:
        for i, (token, text) in enumerate(zip(block["ids"], block["text"], strict=True)):
            position = block["start"] + i
            assert position not in self.ids, "a token comes once"
            self.ids[position] = token
            raw = block.get("bytes", {}).get(str(i))
            self.raw[position] = base64.b64decode(raw) if raw else text.encode()

    def _add_scores(self, block: dict[str, Any]) -> None:
        states = block.get("states") or ["c" * len(self.header)] * len(block["rows"])
        for i, (row, letters) in enumerate(zip(block["rows"], states, strict=True)):
            for probe, cell, letter in zip(self.header, row, letters, strict=True):
                key = (block["start"] + i, probe["id"])
                assert key not in self.cells, "a score comes once"
                assert (cell is not None) == (letter == "c")
                self.cells[key], self.states[key] = cell, letter

    @property
    def text(self) -> str:
        """The bytes of all tokens, joined."""
        return b"".join(self.raw[p] for p in sorted(self.raw)).decode()

    def letters(self, probe: str) -> str:
        """The states of a probe over all positions; a dot where none came."""
        return "".join(self.states.get((p, probe), ".") for p in range(max(self.ids) + 1))


def picture(found: list[dict[str, Any]], index: int = 0) -> Picture:
    """What the chunks of a stream say of one choice."""
    whole = Picture()
    for chunk in found:
        for choice in chunk["choices"]:
            if choice["index"] == index and "actscope" in choice:
                whole.add(choice["actscope"])
    return whole


#: Slots of the scripted engine's probes; "calm" is the one that tests add.
SLOTS = {"danger": 0, "joy": 1, "calm": 2}


def assert_exact(found: Picture) -> None:
    """Each number is the score that the scripted engine gave to this very row."""
    request = re.sub("-[0-9a-f]{8}$", "", found.request)  # the engine's own id of one that was sent to it directly
    for (position, probe), cell in found.cells.items():
        if cell is not None:
            assert np.float32(cell) == np.float32(score(request, position, found.ids[position], SLOTS[probe]))

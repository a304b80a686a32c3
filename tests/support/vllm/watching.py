"""What the plugin of an engine in another process gives out: its card, its ring of scores, its control socket, its recording."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from support.vllm.bed import EngineProcess
from support.waiting import until

from actscope.frames import RowFlag, SpanFlag
from actscope.probes import Probe, save_probe
from actscope.recording.reading.recording import Recording
from actscope.ring.discovery import EngineCard
from actscope.ring.host import RingReader

ROW = np.dtype(
    [
        ("position", "<i8"),
        ("token_id", "<i4"),
        ("flags", "<u4"),
        ("generation", "<i8"),
        ("step", "<i8"),
        ("weights", "<i8"),
    ]
)
_ENGINE_ID = re.compile(r"(?:(?P<choice>\d+)_)?(?P<external>.*)-[0-9a-f]{8}")
_PATIENCE_S = 60.0


def cards(engine: EngineProcess) -> list[EngineCard]:
    """The cards in the engine's runtime directory, in the order of pipeline stages."""
    paths = engine.runtime_directory.glob("engine-*.json")
    found = [msgspec.json.decode(path.read_bytes(), type=EngineCard) for path in paths]
    return sorted(found, key=lambda card: card.part)


def card(engine: EngineProcess) -> EngineCard:
    """The one card of an engine, when its sidecar has published it."""
    return until(lambda: cards(engine), _PATIENCE_S, what=f"a card of the engine\n{engine.log[-3000:]}")[0]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Control:
    """The control socket of a card: probes, marks, the recording."""

    def __init__(self, card: EngineCard) -> None:
        self._path = card.control.removeprefix("unix:")

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """Status and JSON answer."""
        connection = _UnixConnection(self._path)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            content = answer.read()
            return answer.status, json.loads(content) if content else None
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        status, answer = self.ask("GET", path)
        assert status == 200, answer
        return answer

    def put_probe(self, probe: Probe) -> tuple[int, Any]:
        """Returns when the next pass will be scored with it."""
        info = msgspec.to_builtins(probe.info)
        return self.ask("PUT", f"/v1/actscope/probes/{info.pop('id')}", {**info, "vector": probe.weight.tolist()})

    def remove_probe(self, probe_id: str) -> tuple[int, Any]:
        return self.ask("DELETE", f"/v1/actscope/probes/{probe_id}")

    def table(self) -> dict[str, Any]:
        """Probe id → how the table shows it."""
        return {probe["id"]: probe for probe in self.get("/v1/actscope/probes")["probes"]}

    def recording(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/v1/actscope/recording")
        return found


def write_probes(directory: Path, probes: Sequence[Probe]) -> Path:
    """A directory of probe files, as users have it."""
    for probe in probes:
        save_probe(probe, directory / f"{probe.id}.safetensors")
    return directory


@dataclass
class Seen:
    """One request in the ring: ROW [n] and scores float32 [n, width] in the order of publication."""

    rows: np.ndarray
    scores: np.ndarray
    n_prompt: int
    spans: list[SpanFlag]

    def having(self, flag: RowFlag) -> np.ndarray:
        """Which rows have the flag: bool [n]."""
        found: np.ndarray = (self.rows["flags"] & int(flag)) != 0
        return found

    @property
    def kept(self) -> np.ndarray:
        """Which rows stand for a token of the text: neither drafts in vain nor after the end. bool [n]."""
        found: np.ndarray = ~(self.having(RowFlag.REJECTED) | self.having(RowFlag.AFTER_EOS))
        return found


@dataclass
class _Parts:
    rows: list[np.ndarray] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    spans: list[SpanFlag] = field(default_factory=list)
    n_prompt: int = 0


class Ring:
    """Reads all that an engine publishes from now on, or from the oldest step that is there."""

    def __init__(self, card: EngineCard) -> None:
        self.reader = RingReader.attach(card.ring, from_oldest=True)
        self._parts: dict[str, _Parts] = {}
        self.dropped_rows = 0

    def read(self) -> dict[str, Seen]:
        """By engine id, everything up to now. Fails when a row was missed."""
        while (batch := self.reader.read()) is not None:
            assert batch.missed_rows == 0 and batch.missed_steps == 0
            for step in batch.steps:
                self.dropped_rows += step.dropped_rows
                for span in step.spans:
                    self._take(step, span)
        return {request: _joined(parts, self.reader.spec.width) for request, parts in self._parts.items()}

    def _take(self, step: Any, span: Any) -> None:
        parts = self._parts.setdefault(span.request, _Parts())
        parts.spans.append(span.flags)
        parts.n_prompt = span.n_prompt
        if not span.n_rows:
            return
        part = slice(span.offset, span.offset + span.n_rows)
        meta = step.meta[part]
        rows = np.zeros(span.n_rows, ROW)
        for name in ("position", "token_id", "flags"):
            rows[name] = meta[name]
        rows["generation"], rows["step"], rows["weights"] = step.generation, step.number, step.weights
        assert rows["position"].tolist() == list(range(span.first_position, span.first_position + span.n_rows))
        parts.rows.append(rows)
        parts.scores.append(step.rows[part].copy())

    def close(self) -> None:
        self.reader.close()


def _joined(parts: _Parts, width: int) -> Seen:
    rows = np.concatenate([np.zeros(0, ROW), *parts.rows])
    scores = np.concatenate([np.zeros((0, width), np.float32), *parts.scores])
    return Seen(rows, scores, parts.n_prompt, list(parts.spans))


def external(engine_id: str) -> tuple[str, int]:
    """(the id that the client gave, which choice) of a request's id in the ring."""
    match = _ENGINE_ID.fullmatch(engine_id)
    assert match is not None, engine_id
    return match["external"], int(match["choice"] or 0)


def recording_of(directory: Path) -> Recording:
    """A recording whose writer has ended."""
    found = Recording.open(directory)
    assert not found.damage and found.complete
    return found

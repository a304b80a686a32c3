"""An engine without a model: the upstream dialect, a real ring, known tokens and scores, and faults on command.

`scripted_engine` runs it as a process. A request's body may hold `"scripted": {…}` (see `Script`), which says
what is to go wrong. The score of every row is `score(request, position, token id, slot)`, so that a test can tell a
wrong label.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import tempfile
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from support.gateway.scripted_tokens import EOS, SPECIAL_IDS, ScriptedTokens

from actscope.frames import ROW_META, SCORES, Frame, RowFlag, Span, SpanFlag, Step
from actscope.ring.discovery import EngineCard, publish_table, sweep, withdraw_card
from actscope.ring.host import RingSpec, RingWriter
from actscope.runtime.boot import boot_id
from actscope.runtime.directory import runtime_dir
from actscope.runtime.process import process_start

WIDTH = 8
MAX_CONTEXT = 40_000

#: What it says, again and again; the snowflake is three tokens of one byte each.
SENTENCE = " snow falls on the quiet hill ❄ and the river sleeps."

FIRST_PROBES: tuple[dict[str, Any], ...] = (
    {"id": "danger", "site": "layers.3.resid_post", "threshold": 0.5, "fpr": 0.01, "token_mask": "special"},
    {"id": "joy", "site": "layers.5.resid_post", "token_mask": "none"},
)


N_LAYERS = 6

SAE_SITE = "layers.4.resid_post"
N_FEATURES = 64


class Script(msgspec.Struct, forbid_unknown_fields=True):
    """What a request is to do. Positions are absolute; counts are of generated tokens."""

    eos_after: int | None = None
    delay: float = 0.0
    """Seconds before each token."""
    tokens_per_chunk: int = 1
    die_after: int | None = None
    """The whole process ends, as if killed."""
    hang_up_after: int | None = None
    """The connection closes without an end."""
    error_after: int | None = None
    """An error event, then the end."""
    hold_after: int | None = None
    """Wait for POST /scripted/release."""
    wrong_token_at: int | None = None
    missing_rows: list[int] = []
    without_features: list[int] = []
    """Rows whose features are not computed."""
    nan_at: int | None = None
    inf_at: int | None = None
    cached: int = 0
    """The first so many prompt positions are not computed."""
    kept: int = 0
    """The first so many prompt positions are told as scores of a cached prefix."""
    withhold_ids: bool = False
    """Tokens are generated, and not shown: what vLLM does with hidden reasoning."""
    swallow_at: int | None = None
    """The chunk of this generated token is not sent: what a tool or reasoning parser may do."""
    late_part: int | None = None
    """This part's rows come when the request ends, and not before."""
    missing_in_part: list[int] = []
    """Rows that the last part never tells."""
    late_rows: float = 0.0
    """Seconds by which rows come after their tokens."""
    twice_at: int | None = None
    """This row is computed again, with another score."""
    refuse: int | None = None
    """Answer with this status."""
    redirect: str | None = None
    stamp: bool = False
    """Each chunk carries `sent_ns`, CLOCK_MONOTONIC just before it is sent: for measuring what a gateway adds."""


def score(request: str, position: int, token_id: int, slot: int) -> float:
    """The score that this engine gives: a float32 in [0, 1) that no other row of a test is likely to have."""
    mixed = zlib.crc32(f"{request}/{position}/{token_id}/{slot}".encode())
    return float(np.float32(mixed / 2**32))


def strongest(request: str, position: int, token_id: int, k: int) -> list[tuple[int, float]]:
    """The features that this engine tells of a row, strongest first, as (number, activation): 0 to `k` of them."""
    n = zlib.crc32(f"{request}/{position}/{token_id}/n".encode()) % (k + 1)
    heights = sorted((score(request, position, token_id, 1000 + j) for j in range(n)), reverse=True)
    return [(zlib.crc32(f"{request}/{position}/{j}".encode()) % N_FEATURES, height) for j, height in enumerate(heights)]


@dataclass(slots=True)
class Sequence:
    """One choice: its tokens so far, and what it was asked for."""

    request: str
    ring_id: str
    prompt: list[int]
    n_tokens: int
    ends: bool
    script: Script
    words: Iterator[int]
    tokens: list[int] = field(default_factory=list)
    held: list[tuple[int, list[int], RowFlag]] = field(default_factory=list)
    replica: int = 0

    @property
    def finish_reason(self) -> str | None:
        if len(self.tokens) < self.n_tokens:
            return None
        return "stop" if self.ends else "length"

    def next_token(self) -> int:
        last = len(self.tokens) == self.n_tokens - 1
        token = EOS if last and self.ends else next(self.words)
        self.tokens.append(token)
        return token


class Part:
    """One stage's ring, probe table and card. Columns have the same numbers in all parts: each has its own probes in them."""

    def __init__(self, engine: ScriptedEngine, number: int, parts: int, replica: int = 0) -> None:
        self.engine = engine
        self.replica = replica
        self.number = number
        per_part = -(-(N_LAYERS + 1) // parts)  # of two, the first has 4 blocks and the second 2
        self.layers = range(number * per_part, min((number + 1) * per_part, N_LAYERS))
        self.n_features = engine.n_features if self.has(SAE_SITE) else 0
        self.width = WIDTH + 2 * self.n_features
        self.ring = RingWriter.create(RingSpec(1 << 17, self.width, 1 << 15, 1 << 15))
        self.generation = 0
        self.probes: dict[int, dict[str, Any]] = {}
        self._step = 0
        self.card = engine.make_card(self.ring.name, number, parts, replica)

    def table(self) -> dict[str, Any]:
        table = {"generation": self.generation, "probes": [{"slot": s, **p} for s, p in sorted(self.probes.items())]}
        sae = {"site": SAE_SITE, "k": self.n_features, "n_features": N_FEATURES, "name": "scripted-sae", "first": WIDTH}
        return table | {"features": sae} if self.n_features else table

    def has(self, site: str) -> bool:
        return int(site.split(".")[1]) in self.layers

    def put(self, slot: int, probe: dict[str, Any]) -> None:
        """Add or swap a probe, as of the next generation."""
        self.probes[slot] = described(probe) | {"since": self.generation + 1}

    def new_generation(self) -> None:
        self.generation += 1
        publish_table(self.card.id, msgspec.json.encode(self.table()), self.generation)

    def publish(self, seq: Sequence, position: int, ids: list[int], flags: RowFlag) -> None:
        if seq.script.late_part == self.number:
            seq.held.append((position, ids, flags))
            return
        meta = self._labels(seq, position, ids, flags)
        rows = np.array([self._row(seq, position + i, t) for i, t in enumerate(ids)], np.float32)
        first = SpanFlag.FIRST if not position else SpanFlag(0)
        self._write(Span(seq.ring_id, position, len(ids), 0, first, len(seq.prompt)), meta, rows)

    def end(self, seq: Sequence, flags: SpanFlag) -> None:
        if seq.script.late_part == self.number:
            held, seq.held = seq.held, []
            seq.script = msgspec.structs.replace(seq.script, late_part=None)
            for position, ids, row_flags in held:
                self.publish(seq, position, ids, row_flags)
        span = Span(seq.ring_id, len(seq.prompt) + len(seq.tokens), 0, 0, flags, len(seq.prompt))
        self._write(span, np.zeros(0, ROW_META), np.zeros((0, self.width), np.float32))

    def _labels(self, seq: Sequence, position: int, ids: list[int], flags: RowFlag) -> np.ndarray:
        meta = np.zeros(len(ids), ROW_META)
        meta["position"] = np.arange(position, position + len(ids))
        meta["token_id"] = ids
        meta["flags"] = int(flags) | (RowFlag.PREFILL if position < len(seq.prompt) else 0)
        meta["step"] = self._step + 1
        wrong = seq.script.wrong_token_at
        if wrong is not None and position <= wrong < position + len(ids):
            meta["token_id"][wrong - position] += 1
        return meta

    def _write(self, span: Span, meta: np.ndarray, rows: np.ndarray) -> None:
        self._step += 1
        self.ring.write(Step(self._step, time.monotonic_ns(), (span,), meta, self.generation), [Frame(SCORES, rows)])

    def _row(self, seq: Sequence, position: int, token_id: int) -> list[float]:
        row = [score(seq.request, position, token_id, s) if s in self.probes else float("nan") for s in range(WIDTH)]
        if position == seq.script.nan_at:
            row[1] = float("nan")
        if position == seq.script.inf_at:
            row[1] = float("inf")
        return row + self._features(seq, position, token_id)

    def _features(self, seq: Sequence, position: int, token_id: int) -> list[float]:
        """Two cells for each: its number, -1 where there are no more, and its activation; all NaN: not computed."""
        if position in seq.script.without_features:
            return [float("nan")] * (2 * self.n_features)
        told = strongest(seq.request, position, token_id, self.n_features)
        told += [(-1, 0.0)] * (self.n_features - len(told))
        return [float(cell) for pair in told for cell in pair]


class ScriptedEngine:
    """Tokens, scores and rings. One event loop runs everything, so steps are never interleaved.

    `kind` "vllm" is an engine as vLLM's plugin shows it: its cards name no endpoint, their control sides are apart, and the ids
    in the ring have a suffix. It may be in several `parts`, each with the probes of its own layers, and it may have an
    SAE, in the part that has its site, of which it tells `n_features` features of each row. Its requests run in `replicas` by
    turns, each with parts of its own.
    """

    def __init__(
        self,
        model: str,
        has_chat_template: bool = True,
        kind: str = "hf",
        parts: int = 1,
        n_features: int = 0,
        replicas: int = 1,
        plain_ids: bool = False,
    ) -> None:
        sweep()
        self.replicas = replicas
        self.plain_ids = plain_ids
        self._turns = itertools.cycle(range(replicas))
        self.n_features = n_features
        self.model = model
        self.has_chat_template = has_chat_template
        self.kind = kind
        self.group = secrets.token_hex(8) if parts > 1 or replicas > 1 else ""
        self.tokens = ScriptedTokens()
        self.released = asyncio.Event()
        self.last_headers: dict[str, str] = {}
        self.last_body = b""
        self.marks: list[dict[str, Any]] = []
        self.aborted: list[str] = []
        self._directory = tempfile.TemporaryDirectory(prefix="actscope-scripted-")
        self.tokens.save(Path(self._directory.name))
        self.parts = [Part(self, number, parts, replica) for replica in range(replicas) for number in range(parts)]
        for slot, probe in enumerate(FIRST_PROBES):
            for part in self.parts:
                if part.has(probe["site"]):
                    part.put(slot, probe)
        for part in self.parts:
            part.new_generation()

    @property
    def is_vllm(self) -> bool:
        return self.kind == "vllm"

    @property
    def card(self) -> EngineCard:
        """The first part's."""
        return self.parts[0].card

    def make_card(self, ring: str, part: int, parts: int, replica: int) -> EngineCard:
        name = secrets.token_hex(8)
        pid = os.getpid()
        address = f"unix:{runtime_dir() / f'engine-{name}.sock'}"
        return EngineCard(
            id=name,
            pid=pid,
            pid_start=process_start(pid) or 0,
            kind=self.kind,
            model=self.model,
            revision="0",
            device="cpu",
            dtype="float32",
            n_layers=N_LAYERS,
            d_model=4,
            max_context=MAX_CONTEXT,
            special_ids=list(SPECIAL_IDS),
            tokenizer=self._directory.name,
            ring=ring,
            endpoint="" if self.is_vllm else address,
            started_ns=time.time_ns(),
            boot_id=boot_id(),
            has_chat_template=self.has_chat_template,
            control=address if self.is_vllm else "",
            group=self.group,
            part=part,
            parts=parts,
            replica=replica,
            replicas=self.replicas,
            plain_ids=self.plain_ids,
        )

    def close(self) -> None:
        for part in self.parts:
            withdraw_card(part.card)
            part.ring.close()
        self._directory.cleanup()

    def ring_id(self, request: str) -> str:
        """What the ring calls a request: vLLM adds eight digits of its own."""
        return f"{request}-{secrets.token_hex(4)}" if self.is_vllm and not self.plain_ids else request

    def next_replica(self) -> int:
        """Where the next request runs."""
        return next(self._turns)

    def parts_of(self, seq: Sequence) -> list[Part]:
        """The parts of the replica that runs a request."""
        return [part for part in self.parts if part.replica == seq.replica]

    # Rows

    def compute(self, seq: Sequence, first: int, last: int) -> None:
        """One pass over positions `first .. last`: rows into the ring."""
        every = (seq.prompt + seq.tokens)[first:last]
        script = seq.script
        if first < script.kept:
            self._publish(seq, first, every[: script.kept - first], RowFlag.CACHED)
        keep = [i for i in range(first, last) if i not in script.missing_rows and i >= max(script.cached, script.kept)]
        for start, stop in _runs(keep):
            self._publish(seq, start, every[start - first : stop - first], RowFlag(0))
        if script.twice_at is not None and first <= script.twice_at < last:
            self._publish(seq, script.twice_at, [every[script.twice_at - first] + 1], RowFlag.RECOMPUTED)

    def _publish(self, seq: Sequence, position: int, ids: list[int], flags: RowFlag) -> None:
        parts = self.parts_of(seq)
        for part in parts:
            left_out = seq.script.missing_in_part if part is parts[-1] else []
            for start, stop in _runs([i for i in range(position, position + len(ids)) if i not in left_out]):
                part.publish(seq, start, ids[start - position : stop - position], flags)

    def end(self, seq: Sequence, aborted: bool = False) -> None:
        flags = SpanFlag.END | (SpanFlag.ABORTED if aborted else SpanFlag(0))
        for part in self.parts_of(seq):
            part.end(seq, flags)
        if aborted:
            self.aborted.append(seq.request)

    async def run(self, seq: Sequence) -> AsyncIterator[list[int]]:
        """The tokens of one choice in chunks, each after the rows of the pass that it was sampled from."""
        computed = 0
        while seq.finish_reason is None:
            await self._faults(seq)
            chunk: list[int] = []
            while len(chunk) < seq.script.tokens_per_chunk and seq.finish_reason is None:
                have = len(seq.prompt) + len(seq.tokens)
                self._compute_soon(seq, computed, have)
                computed = have
                chunk.append(seq.next_token())
            yield chunk
        self._end_soon(seq)

    def _compute_soon(self, seq: Sequence, first: int, last: int) -> None:
        if seq.script.late_rows:
            asyncio.get_running_loop().call_later(seq.script.late_rows, self.compute, seq, first, last)
        else:
            self.compute(seq, first, last)

    def _end_soon(self, seq: Sequence) -> None:
        if seq.script.late_rows:
            asyncio.get_running_loop().call_later(seq.script.late_rows, self.end, seq)
        else:
            self.end(seq)

    async def _faults(self, seq: Sequence) -> None:
        n, script = len(seq.tokens), seq.script
        if script.die_after == n:
            os._exit(137)
        if script.hang_up_after == n:
            raise ConnectionAbortedError
        if script.error_after == n:
            raise RuntimeError("scripted error")
        if script.hold_after == n:
            await self.released.wait()
        await asyncio.sleep(script.delay)


def described(probe: dict[str, Any]) -> dict[str, Any]:
    """A probe as `GET /v1/actscope/probes` shows it."""
    layer = int(probe["site"].split(".")[1])
    base = {"label": probe["id"], "description": "", "layer": layer, "activation": "identity", "bias": 0.0}
    return {**base, "range": [0.0, 1.0], "signed": False, "token_mask": "none", **probe}


def _runs(positions: list[int]) -> Iterator[tuple[int, int]]:
    start = None
    for i, position in enumerate(positions):
        start = position if start is None else start
        if i + 1 == len(positions) or positions[i + 1] != position + 1:
            yield start, position + 1
            start = None

"""A scheduler of vLLM's kind, small enough to be believed: chunks, prefix hits, drafts, preemptions and aborts, at random.

It knows the truth about each row and each slot; what the plugin makes of the same passes is compared with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from actscope.engines.vllm.publishing.device_copy import HostPass
from actscope.engines.vllm.publishing.labels import RequestState
from actscope.engines.vllm.publishing.publisher import PassNote

BLOCK = 4
WIDTH = 3
VOCABULARY = 50


def scores_of(text: tuple[int, ...]) -> np.ndarray:
    """float32 [WIDTH]: a row's scores follow from all the tokens up to it, as a model's do."""
    return np.array([len(text), sum(text) * 0.5, text[-1] - 7.25], np.float32)


@dataclass(eq=False)
class Running:
    """A request. `text` is all that it has been given so far, `computed` how far the KV cache reaches."""

    name: str
    text: list[int]
    n_prompt: int
    n_output: int
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    begun: bool = False
    running: bool = False
    delivered: int = 0

    @property
    def length(self) -> int:
        return self.n_prompt + self.n_output


@dataclass
class Row:
    """The truth of one computed row."""

    request: str
    position: int
    token: int
    prefill: bool
    again: bool
    rejected: bool
    scores: np.ndarray


@dataclass
class Pass:
    """What the plugin is told, and what is true. `cached`: positions that were never computed for a request, by request."""

    note: PassNote
    on_host: HostPass | None
    rows: list[Row]
    cached: dict[str, range]


class Scheduler:
    """Passes of at most `budget` tokens over `n_blocks` blocks. `resumed_as_new` is how the V2 runner hears of resumptions."""

    def __init__(self, random: Random, *, n_blocks: int = 12, budget: int = 10, resumed_as_new: bool = False) -> None:
        self._random, self._budget, self._as_new = random, budget, resumed_as_new
        self._free = list(range(n_blocks))
        self._hashed: dict[tuple[int, ...], int] = {}
        self._users: dict[int, int] = dict.fromkeys(range(n_blocks), 0)
        self.waiting: list[Running] = []
        self.running: list[Running] = []
        self.n_slots = n_blocks * BLOCK
        self._ended: list[str] = []
        self._n = 0

    def add(self, prompt: list[int], n_output: int) -> Running:
        self._n += 1
        request = Running(f"r{self._n}-00000000", list(prompt), len(prompt), n_output)
        self.waiting.append(request)
        return request

    def abort(self, request: Running) -> None:
        if request in self.running:
            self.running.remove(request)
            self._release(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        if request.begun:
            self._ended.append(request.name)

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.running or self._ended)

    def step(self, fired: np.ndarray) -> Pass:
        """Schedule and "compute" one pass; the taps fire once each."""
        ended, self._ended = self._ended, []
        left, begun, blocks, cached = self._budget, [], [], {}
        chosen: list[Any] = []
        for request in list(self.running):
            if request not in self.running:
                continue
            n, drafts = self._wanted(request, left)
            if not n or (not (given := self._room(request, request.computed + n, chosen)) and given is None):
                continue
            chosen.append((request, n, drafts))
            left -= n
            if given:
                blocks.append((request.name, given, False))
        while self.waiting and left:
            request = self.waiting[0]
            hit = self._hit(request)
            n = min(left, len(request.text) - hit)
            held = request.blocks
            if self._room(request, hit + n, None) is None:
                request.blocks = held
                self._give_back(request)
                break
            self.waiting.pop(0)
            request.computed, request.running = hit, True
            self.running.append(request)
            chosen.append((request, n, []))
            left -= n
            if hit > request.delivered:
                cached[request.name] = range(request.delivered, hit)
                request.delivered = hit
            if request.begun and not self._as_new:
                blocks.append((request.name, list(request.blocks), True))
            else:
                prompt = list(request.text[: request.n_prompt])
                begun.append(RequestState(request.name, request.n_prompt, blocks=list(request.blocks), prompt=prompt))
            request.begun = True
            self._hash(request, hit + n)
        return self._compute(chosen, begun, ended, blocks, cached, fired)

    # --- parts of a step ---

    def _wanted(self, request: Running, left: int) -> tuple[int, list[int]]:
        behind = len(request.text) - request.computed
        drafts: list[int] = []
        if behind == 1 and request.computed >= request.n_prompt and self._random.random() < 0.4:
            drafts = [self._random.randrange(VOCABULARY) for _ in range(self._random.randint(1, 3))]
            drafts = drafts[: max(0, left - 1)]
        return min(left, behind + len(drafts)), drafts

    def _room(
        self, request: Running, n_tokens: int, chosen: list[tuple[Running, int, list[int]]] | None
    ) -> list[int] | None:
        """New blocks for a request, preempting the youngest where that is allowed; None when there are not enough."""
        need = -(-n_tokens // BLOCK) - len(request.blocks)
        while need > len(self._free):
            if chosen is None:
                return None
            victim = self.running[-1]
            if any(victim is taken for taken, _, _ in chosen):
                return None
            self._preempt(victim)
            if victim is request:
                return None
        given = [self._take_block() for _ in range(max(0, need))]
        request.blocks = request.blocks + given
        return given

    def _take_block(self) -> int:
        block = self._free.pop(0)
        self._hashed = {text: b for text, b in self._hashed.items() if b != block}
        self._users[block] = 1
        return block

    def _hit(self, request: Running) -> int:
        """Takes the cached blocks of a waiting request's text, never all of it."""
        request.blocks = []
        while (n := (len(request.blocks) + 1) * BLOCK) < len(request.text):
            block = self._hashed.get(tuple(request.text[:n]))
            if block is None:
                break
            if self._users[block] == 0:
                self._free.remove(block)
            self._users[block] += 1
            request.blocks.append(block)
        return len(request.blocks) * BLOCK

    def _hash(self, request: Running, n: int) -> None:
        """Full blocks can be found from the moment they are scheduled, as in vLLM."""
        for full in range(1, min(n, len(request.text)) // BLOCK + 1):
            self._hashed.setdefault(tuple(request.text[: full * BLOCK]), request.blocks[full - 1])

    def _preempt(self, request: Running) -> None:
        self.running.remove(request)
        self._release(request)
        request.computed, request.running = 0, False
        self.waiting.insert(0, request)

    def _release(self, request: Running) -> None:
        self._give_back(request)

    def _give_back(self, request: Running) -> None:
        for block in reversed(request.blocks):
            self._users[block] -= 1
            if self._users[block] == 0:
                self._free.append(block)
        request.blocks = []

    def _compute(
        self,
        chosen: list[tuple[Running, int, list[int]]],
        begun: list[RequestState],
        ended: list[str],
        blocks: list[tuple[str, list[int], bool]],
        cached: dict[str, range],
        fired: np.ndarray,
    ) -> Pass:
        rows: list[Row] = []
        slots: list[int] = []
        rejected = np.zeros(len(chosen), np.int64)
        for i, (request, n, drafts) in enumerate(chosen):
            text = [*request.text, *drafts]
            accepted = self._random.randint(0, len(drafts)) if drafts else 0
            rejected[i] = len(drafts) - accepted
            valid = len(request.text) + accepted
            for position in range(request.computed, request.computed + n):
                bad = position >= valid
                slots.append(request.blocks[position // BLOCK] * BLOCK + position % BLOCK)
                rows.append(
                    Row(
                        request.name, position, text[position], position < request.n_prompt,
                        position < request.delivered, bad, scores_of(tuple(text[: position + 1])),
                    )
                )  # fmt: skip
            request.computed = min(request.computed + n, valid)
            request.delivered = max(request.delivered, request.computed)
            request.text += drafts[:accepted]
            if request.computed == len(request.text):
                request.text.append(self._random.randrange(VOCABULARY))
            self._hash(request, request.computed)
            if len(request.text) >= request.length:
                self.running.remove(request)
                self._release(request)
                self._ended.append(request.name)
        return self._told(chosen, begun, ended, blocks, cached, rows, slots, rejected, fired)

    def _told(
        self,
        chosen: list[tuple[Running, int, list[int]]],
        begun: list[RequestState],
        ended: list[str],
        blocks: list[tuple[str, list[int], bool]],
        cached: dict[str, range],
        rows: list[Row],
        slots: list[int],
        rejected: np.ndarray,
        fired: np.ndarray,
    ) -> Pass:
        starts = np.concatenate([[0], np.cumsum([n for _, n, _ in chosen])]).astype(np.int64)
        names, since = [request.name for request, _, _ in chosen], np.zeros(WIDTH, np.int64)
        bad = rejected if rejected.any() else None
        note = PassNote(names, starts, begun, ended, 1, {0: [0, 1, 2]}, since, blocks, n_rows=len(rows))
        if not rows:
            return Pass(note, None, rows, cached)
        fired += 1
        on_host = HostPass(
            np.stack([row.scores for row in rows]), None, np.array([row.position for row in rows], np.int64),
            np.array([row.token for row in rows], np.int32), np.array(slots, np.int64), fired.copy(), bad,
        )  # fmt: skip
        return Pass(note, on_host, rows, cached)


def play(scheduler: Scheduler, random: Random, prompts: list[list[int]], see: Callable[[Pass], None]) -> None:
    """Requests come, are cancelled and end, until nothing is left to do."""
    fired = np.zeros(1, np.int64)
    to_come = list(prompts)
    requests: list[Running] = []
    for _ in range(400):
        while to_come and random.random() < 0.6:
            requests.append(scheduler.add(to_come.pop(), random.randint(1, 9)))
        if random.random() < 0.04 and (living := [*scheduler.running, *scheduler.waiting]):
            scheduler.abort(random.choice(living))
        if scheduler.idle and not to_come:
            return
        see(scheduler.step(fired))

"""Player of a plan: one thread that writes step by step into a ring, scored with the probes loaded at that moment."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from actscope.clock import monotonic_ns
from actscope.engines.replay.pace import BEAT_S, Pace, Taken
from actscope.engines.replay.plan import PlannedStep, ReplayPlan
from actscope.engines.replay.scoring import Scorer
from actscope.engines.replay.settings import ReplaySettings
from actscope.frames import SCORES, Frame
from actscope.probes import Bank
from actscope.ring.host import RingWriter

log = logging.getLogger("actscope.replay")

#: Number of rows that are scored together, ahead of their due time.
_CHUNK_ROWS = 512
_BETWEEN_ROUNDS_S = 1.0


@dataclass(slots=True)
class PlayerStats:
    """Counts since the start. `rounds` are completed rounds; `seconds` is the duration of the last one."""

    steps: int = 0
    rows: int = 0
    rounds: int = 0
    seconds: float = 0.0


class Player:
    """Writes a plan's steps into a ring, on a thread of its own.

    Any thread may replace `bank` at any time; the next step is scored with the new one. `on_end` is called on the player's
    thread at the end of each round, after the reader has taken all steps.
    """

    def __init__(
        self,
        plan: ReplayPlan,
        scorer: Scorer,
        ring: RingWriter,
        bank: Bank,
        settings: ReplaySettings,
        *,
        on_end: Callable[[PlayerStats], None] = lambda stats: None,
    ) -> None:
        self.bank = bank
        self._plan = plan
        self._scorer = scorer
        self._ring = ring
        self._settings = settings
        self._on_end = on_end
        self._stats = PlayerStats()
        self._stop = threading.Event()
        self._pace = Pace(ring.spec, self._stop, ring.beat, None)
        self._thread = threading.Thread(target=self._run, name="actscope-replay", daemon=True)
        self.failure: Exception | None = None

    def start(self, taken: Taken | None = None) -> None:
        """Start once the reader has attached whose count of steps read `taken` returns; at once if None."""
        self._pace = Pace(self._ring.spec, self._stop, self._ring.beat, taken)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether all steps so far could be played."""
        return self.failure is None

    def stats(self) -> PlayerStats:
        """Return a copy of the counts so far."""
        return replace(self._stats)

    def close(self) -> None:
        """Stop at once and wait for the thread to end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            if self._pace.attached():
                self._play()
        except Exception as error:  # the thread's boundary: steps already played stay visible
            self.failure = error
            log.exception("the replay has stopped")
        while not self._stop.wait(BEAT_S):
            self._ring.beat()

    def _play(self) -> None:
        number = 1
        while self._play_round(number) and self._pace.drained():
            self._stats.rounds = number
            self._on_end(self.stats())
            if not self._settings.loop or self._stop.wait(_BETWEEN_ROUNDS_S):
                return
            number += 1

    def _play_round(self, number: int) -> bool:
        """Play the plan once. Returns False if stopped."""
        begin = time.monotonic()
        for chunk in self._plan.chunks(_CHUNK_ROWS):
            if not self._play_chunk(chunk, begin, number):
                return False
        self._stats.seconds = time.monotonic() - begin
        return True

    def _play_chunk(self, chunk: list[PlannedStep], begin: float, number: int) -> bool:
        first, bank = chunk[0].start, self.bank
        scores = self._score(chunk, bank)
        speed = self._settings.speed
        for step in chunk:
            due = begin + step.due_ns / 1e9 / speed if speed else begin
            if not self._pace.wait(due, step.n_rows, len(step.spans)):
                return False
            if bank is not self.bank:  # the probes have changed meanwhile
                bank = self.bank
                scores = self._score(chunk, bank)
            now = self._plan.step(step, time_ns=monotonic_ns(), generation=bank.generation, round_number=number)
            self._ring.write(now, [Frame(SCORES, scores[step.start - first : step.stop - first])])
            self._stats.steps += 1
            self._stats.rows += step.n_rows
        return True

    def _score(self, chunk: list[PlannedStep], bank: Bank) -> np.ndarray:
        return self._scorer.scores(self._plan.row_ids[chunk[0].start : chunk[-1].stop], bank)

"""A recording served as an engine: a card, a ring, a probe table, and a player that fills the ring."""

from __future__ import annotations

import os
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from actscope.engines.replay.facts import RecordedModel, recorded_model
from actscope.engines.replay.fitting import fit
from actscope.engines.replay.pace import Taken
from actscope.engines.replay.plan import ReplayPlan
from actscope.engines.replay.player import Player, PlayerStats
from actscope.engines.replay.scoring import Scorer
from actscope.engines.replay.settings import ReplaySettings
from actscope.engines.replay.texts import TokenizerFiles, texts_of
from actscope.errors import MissingExtra
from actscope.probes import Bank, Probe
from actscope.probes.bank import DescribedProbe
from actscope.recording.reading.recording import Recording
from actscope.ring import discovery
from actscope.ring.host import RingWriter
from actscope.runtime.boot import boot_id
from actscope.runtime.cache import temporary_root
from actscope.runtime.directory import runtime_dir
from actscope.runtime.process import process_start

if TYPE_CHECKING:
    from actscope.engines.replay.server import SocketServer

T = TypeVar("T")


class ReplayEngine:
    """An engine that replays a recording. Readers see it like any other engine, under `card`.

    A context manager. `put_probe` and `remove_probe` may be called from any thread.

    Args:
        recording: The recording.
        settings: Settings; None for the defaults.
        probes: Probes loaded at start.
        on_end: Called with statistics at the end of each round.

    Raises:
        RecordingError: A requested request is not in the recording, or the recording has no labelled rows.
        ProbeError: A probe does not fit the recording.
        RingError: There is not enough shared memory.
        MissingExtra: A package for the HTTP server is not installed.
    """

    def __init__(
        self,
        recording: Recording,
        settings: ReplaySettings | None = None,
        *,
        probes: Sequence[Probe] = (),
        on_end: Callable[[PlayerStats], None] = lambda stats: None,
    ) -> None:
        self.settings = settings or ReplaySettings()
        self.model: RecordedModel = recorded_model(recording)
        self.plan = ReplayPlan(recording, self.settings.requests, idle_seconds=self.settings.idle_seconds)
        bank = Bank(self.model.facts, self.settings.probe_width)
        for probe in probes:
            bank.put(fit(probe, self.model, any_model=self.settings.any_model))
        self._changing = threading.Lock()
        self._leaving = ExitStack()
        try:
            self._open(recording, bank, on_end)
        except BaseException:
            self._leaving.close()
            raise

    def _open(self, recording: Recording, bank: Bank, on_end: Callable[[PlayerStats], None]) -> None:
        discovery.sweep()
        scratch = self._leaving.enter_context(
            tempfile.TemporaryDirectory(prefix="actscope-replay-", dir=temporary_root())
        )
        texts = texts_of(recording, self.model, Path(scratch))
        ring = RingWriter.create(self.settings.ring_spec(self.plan.largest_step))
        self._leaving.callback(ring.close)
        self.card = _card(self.model, texts, ring.name)
        self._leaving.callback(discovery.withdraw_card, self.card)
        discovery.publish_table(self.card.id, bank.table(), bank.generation)
        self._player = Player(self.plan, Scorer(recording), ring, bank, self.settings, on_end=on_end)
        self._leaving.callback(self._player.close)
        self._leaving.callback(_serve(self).close)
        discovery.publish_card(self.card)

    @property
    def bank(self) -> Bank:
        """The probes that score the next step. Read-only: use `put_probe` and `remove_probe` for changes."""
        return self._player.bank

    @property
    def healthy(self) -> bool:
        """Whether the replay has not failed. After a failure the steps already played stay in the ring."""
        return self._player.healthy

    def start(self, taken: Taken | None = None) -> None:
        """Start the replay once the reader has attached whose count of steps read `taken` returns; at once if None."""
        self._player.start(taken)

    def stats(self) -> PlayerStats:
        """Return a copy of the counts so far."""
        return self._player.stats()

    def put_probe(self, probe: Probe) -> DescribedProbe:
        """Add or replace a probe from the next step on, and return its public description.

        Raises ProbeError if it does not fit the recording; nothing is changed then.
        """
        fitting = fit(probe, self.model, any_model=self.settings.any_model)
        return self._change(lambda bank: _described(bank, bank.put(fitting)))

    def remove_probe(self, probe_id: str) -> None:
        """Remove a probe from the next step on. Raises ProbeError if there is no probe with that id."""
        self._change(lambda bank: bank.remove(probe_id))

    def _change(self, change: Callable[[Bank], T]) -> T:
        """Apply a change of the probes atomically: to a copy, which the player gets after its table has been published."""
        with self._changing:
            changed = self.bank.copy()
            result = change(changed)
            discovery.publish_table(self.card.id, changed.table(), changed.generation)
            self._player.bank = changed
        return result

    def close(self) -> None:
        """Stop the replay and remove the socket, card, tables, ring and temporary files. Idempotent."""
        self._leaving.close()

    def __enter__(self) -> ReplayEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _serve(engine: ReplayEngine) -> SocketServer:
    try:
        from actscope.engines.replay.server import SocketServer, create_app
    except ImportError as error:
        raise MissingExtra("gateway", error.name or "starlette") from error
    return SocketServer(create_app(engine), Path(engine.card.endpoint.removeprefix("unix:")))


def _described(bank: Bank, slot: int) -> DescribedProbe:
    return next(described for described in bank.describe() if described["slot"] == slot)


def _card(model: RecordedModel, texts: TokenizerFiles, ring: str) -> discovery.EngineCard:
    name, pid = secrets.token_hex(8), os.getpid()
    return discovery.EngineCard(
        id=name,
        pid=pid,
        pid_start=process_start(pid) or 0,
        kind="replay",
        model=f"{model.name} (recording)",
        revision=model.revision,
        device=model.device,
        dtype=model.dtype,
        n_layers=model.n_layers,
        d_model=model.d_model,
        max_context=model.max_context,
        special_ids=list(texts.special_ids),
        tokenizer=texts.directory,
        ring=ring,
        endpoint=f"unix:{runtime_dir()}/engine-{name}.sock",
        started_ns=time.time_ns(),
        boot_id=boot_id(),
    )

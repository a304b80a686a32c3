"""A recording as an engine: a card, a ring, a table of probes, and a player that fills the ring."""

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
from actscope.runtime.directory import runtime_dir
from actscope.runtime.process import process_start

if TYPE_CHECKING:
    from actscope.engines.replay.server import SocketServer

T = TypeVar("T")


class ReplayEngine:
    """Readers see it as they see any engine, under `card`. Use as a context manager; nothing of it is left behind.

    Raises RecordingError for a request that is not in the recording, ProbeError for a probe that does not fit it, RingError
    when shared memory has no room. `put_probe` and `remove_probe` may be called from any thread.
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
        scratch = self._leaving.enter_context(tempfile.TemporaryDirectory(prefix="actscope-replay-"))
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
        """The probes that the next step is scored with. Not to be changed: see `put_probe`."""
        return self._player.bank

    @property
    def healthy(self) -> bool:
        """False once the replay has failed; what was played is in the ring still."""
        return self._player.healthy

    def start(self, taken: Taken | None = None) -> None:
        """Begin, as soon as the reader whose count of steps `taken` gives has attached; at once without one."""
        self._player.start(taken)

    def stats(self) -> PlayerStats:
        return self._player.stats()

    def put_probe(self, probe: Probe) -> DescribedProbe:
        """Add or swap a probe from the next step on; as clients are shown it. Raises ProbeError when it does not fit."""
        fitting = fit(probe, self.model, any_model=self.settings.any_model)
        return self._change(lambda bank: _described(bank, bank.put(fitting)))

    def remove_probe(self, probe_id: str) -> None:
        """Take a probe out from the next step on. Raises ProbeError when there is none of that id."""
        self._change(lambda bank: bank.remove(probe_id))

    def _change(self, change: Callable[[Bank], T]) -> T:
        """Change a copy, publish its table, and only then let the player have it."""
        with self._changing:
            changed = self.bank.copy()
            result = change(changed)
            discovery.publish_table(self.card.id, changed.table(), changed.generation)
            self._player.bank = changed
        return result

    def close(self) -> None:
        """Stop and take everything down: socket, card, tables, ring, scratch files. A second call does nothing."""
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

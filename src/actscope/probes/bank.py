"""The bank: which probe sits in which column, now. Adding, removing and swapping are changes of this table only."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np

from actscope.errors import ProbeError
from actscope.probes.format import Probe, ProbeInfo
from actscope.sites import Site


@dataclass(frozen=True, slots=True)
class ProbedModel:
    """What a probe must fit: the width of its rows, the sites there are, and whose rows they are."""

    name: str
    revision: str
    d_model: int
    n_layers: int


@dataclass(slots=True)
class Bank:
    """Probes in `width` numbered columns. Every change makes a new generation; a swap keeps the column."""

    facts: ProbedModel
    width: int = 64
    generation: int = 0
    _slots: dict[int, Probe] = field(default_factory=dict)
    _since: dict[str, int] = field(default_factory=dict)  # the generation at which each probe was put

    def put(self, probe: Probe) -> int:
        """Add a probe, or swap the one with its id. Returns its column. Raises ProbeError when it does not fit."""
        self.check(probe)
        slot = self._slot_of(probe.id)
        if slot is None:
            free = set(range(self.width)) - self._slots.keys()
            if not free:
                raise ProbeError(
                    f"all {self.width} columns are taken; remove a probe first, or start with a wider bank"
                )
            slot = min(free)
        self._slots[slot] = probe
        self.generation += 1
        self._since[probe.id] = self.generation
        return slot

    def remove(self, probe_id: str) -> None:
        """Take a probe out. Raises ProbeError when there is none of that id."""
        slot = self._slot_of(probe_id)
        if slot is None:
            known = ", ".join(sorted(p.id for p in self._slots.values())) or "none"
            raise ProbeError(f"no probe {probe_id!r} is loaded; there are: {known}")
        del self._slots[slot], self._since[probe_id]
        self.generation += 1

    def check(self, probe: Probe) -> None:
        """Raise ProbeError, with both sides named, unless the probe was made for this model."""
        info, facts = probe.info, self.facts
        if probe.d != facts.d_model:
            raise ProbeError(
                f"probe {info.id!r} reads rows of width {probe.d}; {facts.name} has d_model {facts.d_model}"
            )
        layer = Site.parse(info.site).layer
        if layer is not None and layer >= facts.n_layers:
            raise ProbeError(f"probe {info.id!r} is at {info.site}; {facts.name} has layers 0 to {facts.n_layers - 1}")
        for what, wants, has in (("model", info.model, facts.name), ("revision", info.revision, facts.revision)):
            if wants is not None and wants != has:
                raise ProbeError(
                    f"probe {info.id!r} was made for {what} {wants!r}; this is {has!r}. Train it again on this model "
                    f"(actscope probe train), or take {what!r} out of its metadata if you know that it fits"
                )

    def copy(self) -> Bank:
        """A bank that can be changed without changing this one."""
        return Bank(self.facts, self.width, self.generation, dict(self._slots), dict(self._since))

    def dump(self) -> bytes:
        """The whole of it, vectors too, for `load`."""
        probes = [
            (slot, self._since[p.id], p.info, np.ascontiguousarray(p.weight, np.float32).tobytes())
            for slot, p in self.items()
        ]
        return msgspec.msgpack.encode((self.generation, probes))

    def load(self, state: bytes) -> None:
        """Become what was dumped: the same probes in the same columns, since when they were there, the same generation."""
        generation, probes = msgspec.msgpack.decode(state, type=tuple[int, list[tuple[int, int, ProbeInfo, bytes]]])
        found = {slot: Probe(info, np.frombuffer(raw, np.float32).copy()) for slot, _, info, raw in probes}
        self.generation, self._slots = generation, found
        self._since = {info.id: since for _, since, info, _ in probes}

    def describe(self) -> list[dict[str, object]]:
        """The probes as clients are shown them: facts, what follows from them, column, and since which generation."""
        return [
            {
                "slot": slot,
                **msgspec.structs.asdict(probe.info),
                "layer": probe.info.layer,
                "signed": probe.info.signed,
                "since": self._since[probe.id],
            }
            for slot, probe in self.items()
        ]

    def items(self) -> list[tuple[int, Probe]]:
        """(column, probe), by column."""
        return sorted(self._slots.items())

    def table(self) -> bytes:
        """This generation as JSON, for readers of the ring: `{"generation", "probes": [{"slot", ...}]}`."""
        return msgspec.json.encode({"generation": self.generation, "probes": self.describe()})

    def _slot_of(self, probe_id: str) -> int | None:
        return next((slot for slot, probe in self._slots.items() if probe.id == probe_id), None)

"""Bank: the table of loaded probes and their columns. Adding, removing and replacing a probe only changes this table."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TypedDict, cast

import msgspec
import numpy as np

from actscope.errors import ProbeError
from actscope.probes.format import Probe, ProbeInfo
from actscope.runtime.decoding import as_own_error, decode_msgpack
from actscope.sites import Site


class DescribedProbe(TypedDict):
    """Client view of a probe: the fields of `ProbeInfo`, its column `slot`, and the generation `since` which it is in force.

    `range` is the probe's `display_range`: None if it is neither stated nor given by the activation.
    """

    slot: int
    id: str
    site: str
    activation: str
    bias: float
    jump: float
    label: str
    description: str
    threshold: float | None
    fpr: float | None
    range: tuple[float, float] | None
    token_mask: str
    model: str | None
    revision: str | None
    auroc: float | None
    control_auroc: float | None
    layer: int | None
    signed: bool
    since: int


def described(slot: int, info: ProbeInfo, since: int) -> DescribedProbe:
    """Return the client view of a probe."""
    derived = {"range": info.display_range, "layer": info.layer, "signed": info.signed, "since": since}
    fields = {"slot": slot, **msgspec.structs.asdict(info), **derived}
    return cast(DescribedProbe, fields)


class _Dump(msgspec.Struct, array_like=True):
    """A dumped bank: its generation, and column, generation, metadata and weight of each probe."""

    generation: int
    probes: list[tuple[int, int, ProbeInfo, bytes]]


@dataclass(frozen=True, slots=True)
class ProbedModel:
    """Model that a probe must fit: its name, revision, width and number of layers."""

    name: str
    revision: str
    d_model: int
    n_layers: int


@dataclass(slots=True)
class Bank:
    """Probes in `width` numbered columns.

    Every change increments `generation`; replacing a probe keeps its column. Not thread-safe: change a `copy` and exchange it.

    Attributes:
        facts: The model that every probe must fit.
        width: Number of columns, and so the most probes at a time.
        generation: Number of changes so far.
    """

    facts: ProbedModel
    width: int = 64
    generation: int = 0
    _slots: dict[int, Probe] = field(default_factory=dict)
    _since: dict[str, int] = field(default_factory=dict)  # generation at which each probe was put

    def put(self, probe: Probe) -> int:
        """Add a probe, or replace the one with its id.

        Args:
            probe: The probe.

        Returns:
            Its column, in `0..width - 1`.

        Raises:
            ProbeError: The probe does not fit the model, or every column is taken. Nothing is changed.
        """
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
        """Remove a probe. Raises ProbeError if no probe has that id."""
        slot = self._slot_of(probe_id)
        if slot is None:
            known = ", ".join(sorted(p.id for p in self._slots.values())) or "none"
            raise ProbeError(f"no probe {probe_id!r} is loaded; there are: {known}")
        del self._slots[slot], self._since[probe_id]
        self.generation += 1

    def check(self, probe: Probe) -> None:
        """Raise ProbeError unless the probe's width, layer, model name and revision fit this model."""
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
        """Return an independent copy."""
        return Bank(self.facts, self.width, self.generation, dict(self._slots), dict(self._since))

    def dump(self) -> bytes:
        """Return the whole bank, vectors included, as bytes for `load`."""
        probes = [
            (slot, self._since[p.id], p.info, np.ascontiguousarray(p.weight, np.float32).tobytes())
            for slot, p in self.items()
        ]
        return msgspec.msgpack.encode((self.generation, probes))

    def load(self, state: bytes) -> None:
        """Restore a dumped bank: probes, columns, generations. Raises ProbeError if the bytes are no such bank."""
        dump = decode_msgpack(state, _Dump, ProbeError, "not the dump of a bank")
        generation, probes = dump.generation, dump.probes
        if len(probes) > self.width or not all(0 <= slot < self.width for slot, *_ in probes):
            raise ProbeError(f"not the dump of a bank of {self.width} columns: it has {len(probes)} probes")
        with as_own_error(ProbeError, "not the dump of a bank"):
            found = {slot: Probe(info, np.frombuffer(raw, np.float32).copy()) for slot, _, info, raw in probes}
        self.generation, self._slots = generation, found
        self._since = {info.id: since for _, since, info, _ in probes}

    def describe(self) -> list[DescribedProbe]:
        """Return the client view of each probe, by column: its metadata, `slot`, `layer`, `signed` and `since`."""
        return [described(slot, probe.info, self._since[probe.id]) for slot, probe in self.items()]

    def items(self) -> list[tuple[int, Probe]]:
        """Return (column, probe) pairs, by column."""
        return sorted(self._slots.items())

    def table(self) -> bytes:
        """Return this generation as JSON for readers of the ring: `{"generation", "probes": [{"slot", ...}], "digests"}`.

        `digests` has a hash of each probe's metadata and vector by its id: equal in engines that have the same probe.
        """
        digests = {probe.id: _digest(probe) for _, probe in self.items()}
        return msgspec.json.encode({"generation": self.generation, "probes": self.describe(), "digests": digests})

    def _slot_of(self, probe_id: str) -> int | None:
        return next((slot for slot, probe in self._slots.items() if probe.id == probe_id), None)


def _digest(probe: Probe) -> str:
    content = msgspec.json.encode(probe.info) + np.ascontiguousarray(probe.weight, np.float32).tobytes()
    return hashlib.blake2b(content, digest_size=8).hexdigest()

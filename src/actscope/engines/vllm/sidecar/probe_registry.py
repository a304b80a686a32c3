"""BankRegistry: checks probes, publishes their table to readers, sends them to the model and waits for its acknowledgment."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from actscope.engines.controls import shown
from actscope.engines.vllm.sidecar_protocol import SetBank, SidecarStart, SiteBank
from actscope.errors import ActscopeError, EngineError, ProbeError, RequestRefused
from actscope.probes import ACTIVATIONS, Bank, Probe, load_probes, log_left_out
from actscope.probes.bank import DescribedProbe

T = TypeVar("T")

log = logging.getLogger("actscope.vllm")

#: How long the model's process may take to stage a bank, which it copies on a thread of its own.
_STAGING_S = 10.0


class BankRegistry:
    """The probe bank of one pipeline stage. Implements ProbeRegistry.

    `publish` makes a generation's table known to readers; `hand_over` sends the bank to the model's process.
    """

    def __init__(
        self,
        bank: Bank,
        start: SidecarStart,
        publish: Callable[[bytes, int], object],
        hand_over: Callable[[SetBank], None],
    ) -> None:
        self._bank, self._sites, self._parts = bank, start.sites, start.parts
        self._features = _described(start)
        self._refused = start.refused
        self._publish, self._hand_over = publish, hand_over
        self._changing = threading.Lock()
        self._staged = threading.Condition()
        self._staged_generation = -1

    # --- ProbeRegistry ---

    def table(self) -> bytes:
        """Return the table of the probes in force, as JSON."""
        return self._table(self._bank)

    async def put(self, probe: Probe) -> DescribedProbe:
        """Add or replace a probe, and return its description once the model has staged the new bank.

        Raises:
            ProbeError: The probe does not fit, or its site is not tapped.
            RequestRefused: Its site belongs to another stage of the model.
            EngineError: The model did not confirm the bank within 10 seconds.
        """
        self._check_site(probe)
        slot = await asyncio.to_thread(self._change, lambda bank: bank.put(probe))
        return shown(self._bank, slot)

    async def remove(self, probe_id: str) -> None:
        """Remove a probe, and return once the model has staged the new bank.

        Raises:
            ProbeError: No probe has that id.
            EngineError: The model did not confirm the bank within 10 seconds.
        """
        await asyncio.to_thread(self._change, lambda bank: bank.remove(probe_id))

    # --- the rest ---

    def load(self, directories: Iterable[Path], site: str = "") -> None:
        """Load probes at start. A probe that does not fit is logged; the others are loaded.

        Args:
            directories: Directories of probe files.
            site: Site of JSON files that name none.
        """
        for directory in directories:
            try:
                found = load_probes(directory, log_left_out, site)
                if not found:
                    log.warning("%s: no probes there", directory)
            except ActscopeError as error:
                log.error("probes of %s are not loaded: %s", directory, error)
                continue
            for probe in found:
                self._load_one(probe)

    def _load_one(self, probe: Probe) -> None:
        if probe.info.site not in self._sites and self._parts > 1:
            return  # it belongs to another stage
        try:
            self._check_site(probe)
            self._bank.put(probe)
        except ActscopeError as error:
            log.error("probe %s is not loaded: %s", probe.id, error)

    def refuse(self, sites: Mapping[str, str]) -> None:
        """Refuse probes at these sites from now on, with the reason of each."""
        self._refused = dict(sites)

    def resume(self, state: bytes) -> None:
        """Restore the bank of a sidecar that died."""
        self._bank.load(state)

    def begin(self) -> None:
        """Publish the loaded bank and send it to the model."""
        if self._bank.generation:
            self._publish(self._table(Bank(self._bank.facts, self._bank.width)), 0)  # for passes before this bank
        self._publish(self.table(), self._bank.generation)
        self._hand_over(self._message(self._bank, self._sites))

    def _table(self, bank: Bank) -> bytes:
        """Return the bank's table as JSON.

        With an SAE it also has its columns: `{"features": {"site", "k", "first", ...}}`.
        """
        table = bank.table()
        if self._features is None:
            return table
        return msgspec.json.encode({**msgspec.json.decode(table), "features": self._features})

    def note_staged(self, generation: int) -> None:
        """Record that the model's process has staged a generation."""
        with self._staged:
            self._staged_generation = max(self._staged_generation, generation)
            self._staged.notify_all()

    def _check_site(self, probe: Probe) -> None:
        site = probe.info.site
        if site in self._refused:
            raise ProbeError(f"probe {probe.id!r} is at {site}, which cannot be read: {self._refused[site]}")
        if site in self._sites:
            return
        if self._parts > 1:
            raise RequestRefused(f"{site} is not in this stage of the model", code="site_elsewhere")
        raise ProbeError(
            f"probe {probe.id!r} is at {site}, which is not tapped; tapped are {_listed(self._sites)}. Start vLLM with "
            'ACTSCOPE_SITES="all" or with that site named, since taps are part of the compiled graph'
        )

    def _change(self, change: Callable[[Bank], T]) -> T:
        """Apply a change to a copy of the bank, publish and send it, then wait until the model has staged it.

        Raises EngineError if the model does not confirm within 10 seconds; the change is in force all the same once it does.
        """
        with self._changing:
            changed = self._bank.copy()
            before = {probe.info.site for _, probe in changed.items()}
            result = change(changed)
            sites = before | {probe.info.site for _, probe in changed.items()}
            try:
                self._publish(self._table(changed), changed.generation)
                self._hand_over(self._message(changed, sorted(sites)))
            except Exception:
                self._bank.generation = changed.generation  # its table may be published: never reuse the number
                raise
            self._bank = changed  # it was sent and cannot be recalled
            with self._staged:
                if not self._staged.wait_for(lambda: self._staged_generation >= changed.generation, _STAGING_S):
                    raise EngineError(
                        "the model's process has not confirmed the probes yet; they take effect with its next step"
                    )
        return result

    def _message(self, bank: Bank, sites: Iterable[str]) -> SetBank:
        by_site = {site: [(c, p) for c, p in bank.items() if p.info.site == site] for site in sites}
        since = {probe["slot"]: probe["since"] for probe in bank.describe()}
        return SetBank(
            bank.generation,
            [_site_bank(self._sites.index(site), members, since) for site, members in by_site.items()],
            bank.dump(),
        )


def _described(start: SidecarStart) -> dict[str, object] | None:
    if start.features is None:
        return None
    found: dict[str, object] = msgspec.to_builtins(start.features)
    return {**found, "first": start.columns - 2 * start.features.k}


def _site_bank(index: int, members: list[tuple[int, Probe]], since: Mapping[int, int]) -> SiteBank:
    infos = [probe.info for _, probe in members]
    weight = np.stack([p.weight for _, p in members], axis=1) if members else np.empty(0, np.float32)
    return SiteBank(
        index,
        np.ascontiguousarray(weight, np.float32).tobytes(),
        np.array([info.bias for info in infos], np.float32).tobytes(),
        np.array([info.jump for info in infos], np.float32).tobytes(),
        [ACTIVATIONS[info.activation] for info in infos],
        [column for column, _ in members],
        [since[column] for column, _ in members],
    )


def _listed(sites: Sequence[str]) -> str:
    return ", ".join(sites) if len(sites) <= 8 else f"{', '.join(sites[:3])} … {sites[-1]} ({len(sites)} sites)"

"""Scores of recorded rows, by the same formula as live scores."""

from __future__ import annotations

import logging
from collections import defaultdict

import numpy as np

from actscope.errors import CodecError, RecordingError
from actscope.probes import Bank, Probe, score
from actscope.recording.reading.recording import Recording
from actscope.recording.reading.site_rows import SiteRows

log = logging.getLogger("actscope.replay")

#: Number of rows that are decoded and multiplied together: 32 MiB of float32 at a width of 8192.
_BATCH = 1024


class Scorer:
    """Scores rows of one recording. Not thread-safe."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._reported: set[str] = set()

    def scores(self, row_ids: np.ndarray, bank: Bank) -> np.ndarray:
        """Score rows.

        Args:
            row_ids: Numbers of the rows, int64 [n], ascending.
            bank: The probes.

        Returns:
            float32 [n, bank.width]. NaN in columns without a probe, and if a row is missing or damaged at a probe's site.
        """
        out = np.full((len(row_ids), bank.width), np.nan, np.float32)
        for site, probes in _by_site(bank).items():
            for start in range(0, len(row_ids), _BATCH):
                part = slice(start, start + _BATCH)
                self._score(out[part], row_ids[part], self._recording[site], probes)
        return out

    def _score(self, out: np.ndarray, row_ids: np.ndarray, site: SiteRows, probes: list[tuple[int, Probe]]) -> None:
        if not len(site):
            return
        at = np.minimum(np.searchsorted(site.row_ids, row_ids), len(site) - 1)
        held = np.flatnonzero(site.row_ids[at] == row_ids)
        columns = np.array([slot for slot, _ in probes])
        for chosen, rows in self._read(site, held, at[held]):
            out[chosen[:, None], columns] = _scores(rows, [probe for _, probe in probes])

    def _read(self, site: SiteRows, where: np.ndarray, at: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Read the rows `at` as (where, rows): all together, or on damage block by block, without the damaged blocks."""
        if not len(at):
            return []
        try:
            return [(where, site[at])]
        except (RecordingError, CodecError) as error:
            blocks = np.searchsorted(site.blocks.keys["first_row"].astype(np.int64), site.row_ids[at], side="right")
            if blocks[0] == blocks[-1]:
                self._report(site.name, error)
                return []
            parts = [blocks == block for block in np.unique(blocks)]
            return [found for part in parts for found in self._read(site, where[part], at[part])]

    def _report(self, site: str, error: Exception) -> None:
        """Log damage once per site. The page shows the missing scores."""
        if site not in self._reported:
            self._reported.add(site)
            log.warning("%s: rows cannot be read, their scores are missing: %s", site, error)


def _by_site(bank: Bank) -> dict[str, list[tuple[int, Probe]]]:
    found: defaultdict[str, list[tuple[int, Probe]]] = defaultdict(list)
    for slot, probe in bank.items():
        found[probe.info.site].append((slot, probe))
    return found


def _scores(rows: np.ndarray, probes: list[Probe]) -> np.ndarray:
    infos = [probe.info for probe in probes]
    weight = np.stack([probe.weight for probe in probes], axis=1)
    bias = np.array([info.bias for info in infos], np.float32)
    jump = np.array([info.jump for info in infos], np.float32)
    return score(rows, weight, bias, [info.activation for info in infos], jump)

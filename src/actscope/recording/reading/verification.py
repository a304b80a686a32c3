"""Verification of a recording: checks every byte and decodes every message."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from actscope.errors import CodecError, RecordingDamaged
from actscope.recording.format import manifest, records
from actscope.recording.format.index_keys import CHANNELS, KEY, Kind
from actscope.recording.reading.label_index import labels_of
from actscope.recording.reading.site_rows import Blocks
from actscope.store import StoreReader

Progress = Callable[[str, int, int], None]


def _silent(stage: str, done: int, total: int) -> None:
    """Ignore progress."""


@dataclass
class Verification:
    """Findings of a verification. `ok`: no acknowledged bytes are missing or changed, and every message decodes.

    unlabelled   rows in blocks without a label, from steps that never completed; never returned to readers
    absent       site -> labelled rows that are not in its blocks: dropped, or lost in a crash before they were written
    dropped      site -> rows that the recorder counted as dropped
    """

    path: str
    problems: list[str] = field(default_factory=list)
    damage: list[dict[str, Any]] = field(default_factory=list)
    messages: int = 0
    blocks: int = 0
    rows: int = 0
    label_batches: int = 0
    labels: int = 0
    unlabelled: int = 0
    absent: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Return whether the recording is intact."""
        return not self.problems and not any(damage["acknowledged"] for damage in self.damage)

    def as_dict(self) -> dict[str, Any]:
        """Return the findings as JSON values."""
        return {"ok": self.ok, **asdict(self)}

    def as_text(self) -> str:
        """Return the findings as text, one a line."""
        lines = [f"{damage['says']}" for damage in self.damage] + self.problems
        lines += [
            f"{self.path}: {'ok' if self.ok else 'DAMAGED'}",
            f"  {self.messages} messages; {self.blocks} blocks with {self.rows} rows; {self.label_batches} batches with "
            f"{self.labels} labels",
        ]
        if self.unlabelled:
            lines.append(f"  {self.unlabelled} rows of steps that never ended: they are not delivered")
        for site, rows in self.absent.items():
            dropped = min(rows, self.dropped.get(site, 0))
            why = [f"{dropped} were dropped"] * bool(dropped) + [f"{rows - dropped} were not written in time"] * (
                rows > dropped
            )
            lines.append(f"  {site} lacks {rows} labelled rows: {', '.join(why)}")
        return "\n".join(lines)


def verify(path: Path, progress: Progress = _silent) -> Verification:
    """Check every byte of a recording: checksums, that all blocks and labels decode, and that rows have labels.

    Args:
        path: The recording's directory. It is only read.
        progress: Called with the stage ("bytes" or "blocks"), the amount done, and the total.

    Returns:
        The findings. `ok` is False when acknowledged bytes are missing or changed, or when a message does not decode.

    Raises:
        RecordingError: There is no recording.
    """
    verdict = Verification(str(path))
    try:
        store = StoreReader.open(path)
        manifest.check(store.manifest, path)
    except RecordingDamaged as error:
        verdict.problems.append(str(error))
        return verdict
    seen = store.verify(lambda done, total: progress("bytes", done, total))
    verdict.damage = [{**asdict(damage), "says": str(damage)} for damage in seen]
    verdict.messages = len(store.entries)
    labelled = _check_records(store, verdict)
    _check_blocks(store, verdict, labelled, progress)
    return verdict


def _check_records(store: StoreReader, verdict: Verification) -> np.ndarray:
    """Decode all messages other than row blocks. Return the numbers (int64, ascending) of the rows that have labels."""
    keys = np.ascontiguousarray(store.entries["key"]).view(KEY).reshape(-1)
    kinds: dict[int, type[records.Tokens | records.Mark | records.Drops | records.Session]] = {
        Kind.TOKENS: records.Tokens,
        Kind.MARK: records.Mark,
        Kind.DROPS: records.Drops,
        Kind.SESSION: records.Session,
    }
    ids = [np.empty(0, np.int64)]
    for entry, key in zip(store.entries, keys, strict=True):
        kind = int(key["kind"])
        try:
            if kind == Kind.LABELS:
                batch = labels_of(key, store.read(entry))
                verdict.label_batches += 1
                verdict.labels += len(batch.labels)
                ids.append(batch.row_ids)
            elif kind in kinds:
                found = records.read(store.read(entry), kinds[kind])
                for drop in found.drops if isinstance(found, records.Drops) else ():
                    verdict.dropped[drop.site] = verdict.dropped.get(drop.site, 0) + drop.n_rows
        except RecordingDamaged as error:
            verdict.problems.append(f"message {entry['number']} ({Kind(kind).name.lower()}): {error}")
    return np.sort(np.concatenate(ids))


def _check_blocks(store: StoreReader, verdict: Verification, labelled: np.ndarray, progress: Progress) -> None:

    sites = _sites(store, verdict)
    total, done = sum(len(blocks) for blocks in sites.values()), 0
    for site, blocks in sites.items():
        for block in range(len(blocks)):
            try:
                verdict.rows += len(blocks.decoded(block))
                blocks.row_errors(block)
            except (RecordingDamaged, CodecError) as error:
                verdict.problems.append(f"{site}, block {block} (message {blocks.entries['number'][block]}): {error}")
            verdict.blocks += 1
            done += 1
            progress("blocks", done, total)
        absent = len(labelled) - int(blocks.holds(labelled).sum())
        if absent:
            verdict.absent[site] = absent
    verdict.unlabelled = _unlabelled([blocks.ranges for blocks in sites.values()], labelled)


def _sites(store: StoreReader, verdict: Verification) -> dict[str, Blocks]:
    """Return the blocks of each site. A site of which a block has numbers that no writer makes is a problem, and left out."""
    found = {}
    for number, site in enumerate(manifest.info_of(store)["sites"]):
        try:
            found[site] = Blocks(store, store.entries[store.entries["channel"] == len(CHANNELS) + number])
        except RecordingDamaged as error:
            verdict.problems.append(f"{site}: {error}")
    return found


def _unlabelled(ranges: list[np.ndarray], labelled: np.ndarray) -> int:
    """Return how many rows, in ranges int64 [n, 2] of any sites, have no label. `labelled` is int64, ascending."""
    edges = np.concatenate([np.empty((0, 2), np.int64), *ranges])
    edges = edges[np.argsort(edges[:, 0], kind="stable")]
    before = np.maximum.accumulate(np.concatenate([[0], edges[:-1, 1]])) if len(edges) else edges[:, 0]
    first = np.maximum(edges[:, 0], before[: len(edges)])
    after = np.maximum(edges[:, 1], first)
    rows = np.unique(labelled)
    inside = np.searchsorted(rows, after) - np.searchsorted(rows, first)
    return int((after - first).sum()) - int(inside.sum())

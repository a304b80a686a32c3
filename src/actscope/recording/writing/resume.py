"""Continuation of an existing recording, after a crash or a clean end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actscope.errors import RecordingDamaged
from actscope.recording.format import manifest, row_labels
from actscope.recording.format.index_keys import DTYPE_NAMES, KEY, Kind, wrong_blocks
from actscope.recording.spec import RecordingSpec
from actscope.store import Store, StoreOptions, StoreReader, recover


@dataclass(frozen=True, slots=True)
class Resume:
    """State from which a new writer continues: row and step numbers, known requests, dtype and width of each site."""

    next_row: int = 0
    last_step: int = 0
    requests: frozenset[str] = frozenset()
    shapes: tuple[tuple[str, tuple[str, int]], ...] = ()  # (site, (dtype, width)) of the sites that have rows


def continue_recording(path: Path, spec: RecordingSpec, options: StoreOptions) -> tuple[Store, Resume]:
    """Recover the recording at `path` if it crashed, then open its store for appending.

    Raises:
        RecordingError: Another writer has the recording, or its sites or model differ from `spec`.
        RecordingDamaged: Acknowledged bytes are missing or changed.
    """
    manifest.check_same(manifest.info_of(StoreReader.open(path)), spec, path)
    recover(path)
    begun = continuation_of(StoreReader.open(path))
    return Store.resume(path, options=options), begun


def continuation_of(reader: StoreReader) -> Resume:
    """Return the state from which a new writer continues this recording."""
    keys = np.ascontiguousarray(reader.entries["key"]).view(KEY).reshape(-1)
    blocks = keys[keys["kind"] == Kind.BLOCK]
    wrong = wrong_blocks(blocks)
    if len(wrong):
        raise RecordingDamaged(
            f"{reader.path}: {len(wrong)} blocks have numbers that no writer makes: run `actscope verify`"
        )
    next_row = int((blocks["first_row"] + blocks["n_rows"]).max(initial=0))
    requests: set[str] = set()
    last_step = 0
    for index in np.flatnonzero(keys["kind"] == Kind.LABELS):
        batch = row_labels.decode(reader.read(reader.entries[index]))
        requests.update(batch.requests)
        last_step = max(last_step, int(batch.labels["step"].max(initial=0)))
        next_row = max(next_row, int(batch.row_ids.max(initial=-1)) + 1)
    return Resume(next_row, last_step, frozenset(requests), _shapes(reader, keys))


def _shapes(reader: StoreReader, keys: np.ndarray) -> tuple[tuple[str, tuple[str, int]], ...]:
    blocks = np.flatnonzero(keys["kind"] == Kind.BLOCK)
    channels, firsts = np.unique(reader.entries["channel"][blocks], return_index=True)
    names = [reader.channels[channel].removeprefix("rows/") for channel in channels]
    found = keys[blocks[firsts]]
    return tuple((n, (DTYPE_NAMES[int(k["dtype"])], int(k["width"]))) for n, k in zip(names, found, strict=True))

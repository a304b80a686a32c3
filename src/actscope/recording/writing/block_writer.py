"""Encodes queued rows into blocks and appends them. Runs in the worker threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from actscope.clock import monotonic_ns
from actscope.codecs import DTYPES, Encoded, Encoder, encoder
from actscope.recording.format.index_keys import BlockFlag, Kind, channel_of_site, error_codes, key
from actscope.recording.spec import RecordingSpec
from actscope.recording.writing.message_writer import MessageWriter
from actscope.recording.writing.site_queues import QueuedRows, SiteQueue

log = logging.getLogger("actscope.recording")


@dataclass(frozen=True, slots=True)
class BlockCounts:
    """Blocks appended, and the bytes of their rows before (`source_bytes`) and after (`stored_bytes`) encoding."""

    blocks: int = 0
    source_bytes: int = 0
    stored_bytes: int = 0


class BlockWriter:
    """Codecs of all sites. Several workers may write at once, but never two blocks of one site.

    Args:
        messages: Takes the blocks.
        spec: Sites and codecs.
        block_bytes: Target size of a block before encoding.
        queued: Returns the bytes of rows that wait or are being encoded; each block's key keeps them with its time.
    """

    def __init__(
        self, messages: MessageWriter, spec: RecordingSpec, block_bytes: int, queued: Callable[[], int] = lambda: 0
    ) -> None:
        self._messages = messages
        self._block_bytes = block_bytes
        self._queued = queued
        self._sites = spec.sites
        self._encoders: list[Encoder] = [encoder(spec.codec_of(site)) for site in spec.sites]
        self._lock = threading.Lock()
        self._counts = BlockCounts()
        self._reported: set[str] = set()

    def write(self, queue: SiteQueue, pieces: list[QueuedRows]) -> None:
        """Append contiguous rows of one site as one block, or several when a large step is too big for one.

        Raises RecordingPoisoned when the disk has failed. A codec that fails costs no rows: they are stored unencoded.
        """
        first = pieces[0]
        rows = first.rows if len(pieces) == 1 else np.concatenate([piece.rows for piece in pieces])
        limit = max(1, 2 * self._block_bytes // max(1, rows.nbytes // len(rows)))
        for start in range(0, len(rows), limit):
            part = rows[start : start + limit]
            self._append(queue, replace(first, first_row=first.first_row + start, rows=part))

    def _append(self, queue: SiteQueue, block: QueuedRows) -> None:
        encoded = self._encode(queue, block)
        channel = channel_of_site(queue.site)
        if encoded.new_state is not None:
            self._messages.send(channel, key(Kind.STATE, state=encoded.state), [encoded.new_state], block.time_ns)
        fields: dict[str, float] = {}
        parts: list[bytes | memoryview] = [encoded.payload]
        if encoded.row_errors is not None:
            errors = encoded.row_errors
            fields = {"flags": BlockFlag.LOSSY, "error_mean": errors.mean(), "error_worst": errors.max()}
            parts.insert(0, error_codes(errors).tobytes())
        header = key(
            Kind.BLOCK,
            codec=encoded.codec,
            dtype=DTYPES[block.dtype],
            n_rows=len(block.rows),
            first_row=block.first_row,
            width=block.rows.shape[1],
            state=encoded.state,
            raw_bytes=block.rows.nbytes,
            first_step=block.step,
            written_ns=monotonic_ns(),
            queued_kib=min(-(-self._queued() // 1024), 2**32 - 1),
            **fields,
        )
        self._messages.send(channel, header, parts, block.time_ns)
        stored = sum(len(part) for part in parts)
        with self._lock:
            c = self._counts
            self._counts = BlockCounts(c.blocks + 1, c.source_bytes + block.rows.nbytes, c.stored_bytes + stored)

    def _encode(self, queue: SiteQueue, block: QueuedRows) -> Encoded:
        try:
            return self._encoders[queue.index].encode(block.rows, block.dtype)
        except Exception:  # a codec that fails must not cost the rows
            if queue.site not in self._reported:
                self._reported.add(queue.site)
                log.exception("%s: the codec failed; such blocks are stored as they are", queue.site)
            return encoder("none").encode(block.rows, block.dtype)

    def reports(self) -> dict[str, Any]:
        """Return the report of each site's codec, by site."""
        return {site: e.report() for site, e in zip(self._sites, self._encoders, strict=True)}

    def counts(self) -> BlockCounts:
        """Return the counts since this writer began."""
        return self._counts

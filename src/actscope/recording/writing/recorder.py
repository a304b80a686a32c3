"""Recorder: a sink that queues rows from the model's thread, encodes them in worker threads and appends them to a store."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from actscope._version import __version__
from actscope.clock import clock_pair, monotonic_ns
from actscope.codecs import DTYPES, Encoded, Encoder, carrier, encoder
from actscope.errors import RecordingError, RecordingPoisoned
from actscope.frames import Frame, RowArray, SinkStats, Step
from actscope.recording.format import records, row_labels
from actscope.recording.format.arrays import as_numpy
from actscope.recording.format.index_keys import (
    CHANNELS,
    BlockFlag,
    Kind,
    channel_of,
    channel_of_site,
    error_codes,
    key,
)
from actscope.recording.format.manifest import manifest_of
from actscope.recording.spec import PipelineOptions, RecordingSpec
from actscope.recording.writing.resume import Resume, continue_recording
from actscope.recording.writing.site_queues import QueuedRows, SiteQueue, SiteQueues
from actscope.runtime.publish import publish_file
from actscope.store import Store

log = logging.getLogger("actscope.recording")

#: Maximum rows whose labels share a message. A larger step has its own message.
_LABEL_ROWS = 1 << 16


@dataclass(slots=True)
class RecorderStats(SinkStats):
    """Runtime statistics of a recorder.

    `dropped_rows` counts a row once for each site that lost it. `source_bytes` and `stored_bytes` are the sizes of the encoded
    rows before and after encoding. `held_bytes` is the current size of the rows in queues and with workers. `written_rows` and
    `durable_rows` count from the recording's first row.
    """

    incomplete_steps: int = 0
    dropped_by_site: dict[str, int] = field(default_factory=dict)
    source_bytes: int = 0
    stored_bytes: int = 0
    blocks: int = 0
    held_bytes: int = 0
    held_bytes_max: int = 0
    seconds_blocked: float = 0.0
    checkpoints: int = 0
    written_rows: int = 0
    durable_rows: int = 0


class Recorder:
    """`Sink` that writes the rows of steps to a recording. Use `create`.

    Call `write`, or `begin`, `put` for each site and `end`, on the model's thread. They do not copy contiguous rows, so callers
    must not change the rows afterwards. All other methods may be called from any thread.

    Rows before `stats().written_rows` survive the death of this process. Rows before `stats().durable_rows` also survive power
    loss. A second process must not write; a fork()ed child must not use its parent's recorder.

    Attributes:
        path: Directory of the recording.
        spec: Contents of the recording.
        options: Settings of the pipeline.
        known_requests: Ids of the requests that the recording held when this writer began.
        texts: Tokenizer callback from token ids to texts, or None. Set it before the first step.
    """

    def __init__(self, store: Store, spec: RecordingSpec, options: PipelineOptions, begun: Resume) -> None:
        self.path, self.spec, self.options = store.path, spec, options
        self.known_requests = begun.requests
        self.texts: Callable[[Sequence[int]], list[str]] | None = None
        self._store = store
        self._stats = RecorderStats(dropped_by_site=dict.fromkeys(spec.sites, 0))
        self._encoders: list[Encoder] = [encoder(spec.codec_of(site)) for site in spec.sites]
        self._lanes = SiteQueues(
            spec.sites, budget=options.queue_bytes, block_bytes=options.block_bytes_of(len(spec.sites))
        )
        self._next_row, self._step_base = begun.next_row, begun.last_step
        self._written = self._durable = begun.next_row
        self._shapes: dict[str, tuple[str, int]] = dict(begun.shapes)  # dtype and width of each site
        self._open: dict[int, int] = {}  # first row of each open step, by step number
        self._unwritten: list[tuple[Step, int]] = []
        self._drops: list[records.Drop] = []
        self._known_texts: set[int] = set()
        self._checkpointed = begun.next_row
        self._last_number = 0  # highest message number of the store
        self._milestones: deque[tuple[int, int]] = deque()  # (rows, the message after which they are all in the store)
        self._lock = threading.Lock()
        self._notes = threading.Lock()  # one writer of labels and small records at a time
        self._closing = threading.Event()
        self._failure: Exception | None = None
        self._closed = False
        self._pid = os.getpid()
        self._reported: set[str] = set()
        self._note(Kind.SESSION, self._session())
        self._threads = [
            threading.Thread(target=self._work, name=f"actscope-codec-{i}", daemon=True) for i in range(options.workers)
        ]
        self._threads.append(threading.Thread(target=self._keep_house, name="actscope-recorder", daemon=True))
        for thread in self._threads:
            thread.start()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        spec: RecordingSpec,
        options: PipelineOptions | None = None,
        *,
        resume: bool = False,
    ) -> Recorder:
        """Create a recording and its writer, or continue an existing one.

        Args:
            path: Directory of the recording. It must be empty or absent, unless `resume` continues a recording there.
            spec: Sites, codecs, model and settings.
            options: Settings of the pipeline; None uses the defaults.
            resume: Continue the recording at `path`, if there is one. A crashed one is recovered first.

        Returns:
            A running recorder. Close it.

        Raises:
            RecordingError: The directory is not empty, another writer has the recording, or its sites or model differ.
            RecordingDamaged: Acknowledged bytes of the recording are missing or changed.
        """
        options = options or PipelineOptions()
        store_options = replace(options.store, buffer_bytes=options.store_bytes)
        if resume and (Path(path) / "manifest.json").exists():
            store, begun = continue_recording(Path(path), spec, store_options)
            return cls(store, spec, options, begun)
        channels = [*CHANNELS, *map(channel_of_site, spec.sites)]
        return cls(
            Store.create(path, manifest=manifest_of(spec), channels=channels, options=store_options),
            spec,
            options,
            Resume(),
        )

    # --- on the model's thread ------------------------------------------------------------------------------------------

    def write(self, step: Step, frames: list[Frame]) -> None:
        """Write a step with all of its frames: `begin`, `put` and `end` in one call.

        Args:
            step: The step, with its labels.
            frames: Rows [step.n_rows, d] of each site. Frames of sites that are not recorded are ignored.

        Raises:
            RecordingError: See `put`.
            RecordingPoisoned: The disk has failed, and the policy is not `drop`.
        """
        self.begin(step)
        try:
            for frame in frames:
                if frame.site in self._lanes:
                    self.put(step, frame.site, frame.rows, frame.dtype)
        except BaseException:  # an open step would block the acknowledgment of all later rows
            self.end(step, complete=False)
            raise
        self.end(step)

    def begin(self, step: Step) -> None:
        """Begin a step and assign its row numbers. Open steps must have distinct numbers."""
        with self._lock:
            self._open[step.number] = self._next_row
            self._next_row += step.n_rows

    def put(self, step: Step, site: str, rows: RowArray, dtype: str | None = None) -> bool:
        """Queue the rows of one site. Blocks under policy "block" while the queue is full (back pressure).

        Args:
            step: An open step (see `begin`).
            site: Name of a recorded site.
            rows: [step.n_rows, d], a numpy array or a torch tensor on the CPU. A site has one width and dtype.
            dtype: "bfloat16" for a uint16 array of bfloat16 bits; None: the dtype of `rows`.

        Returns:
            True, or False when the rows were dropped and counted (policy "drop").

        Raises:
            RecordingError: The rows do not fit the step or the site, the queue is full under policy "error", or the recorder
                is closed (policy "block" or "error").
            RecordingPoisoned: The disk has failed (policy "block" or "error").
        """
        array, dtype = as_numpy(rows, dtype)
        self._check(step, site, array, dtype)
        piece = QueuedRows(self._open[step.number], array, dtype, step.number + self._step_base, step.time_ns)
        if not step.n_rows:
            return True
        if self._failure is None and self._lanes.offer(site, piece, wait=self.options.policy == "block"):
            return True
        self._lose(site, [piece])
        self._refuse()
        return False

    def _check(self, step: Step, site: str, rows: np.ndarray, dtype: str) -> None:
        fits = rows.ndim == 2 and len(rows) == step.n_rows and dtype in DTYPES and rows.dtype == carrier(dtype)
        if site not in self._lanes or not fits:
            raise RecordingError(
                f"site {site!r}: expected [{step.n_rows}, d] rows of one of {', '.join(self.spec.sites)}, "
                f"found {list(rows.shape)} {dtype} in {rows.dtype.str}"
            )
        found = dtype, rows.shape[1]
        known = self._shapes.setdefault(site, found)
        if known != found:
            raise RecordingError(
                f"{self.path}: site {site} holds {known[0]} rows of width {known[1]}, found {found[0]} of width {found[1]}: "
                "record another dtype or width into a folder of its own"
            )

    def _lose(self, site: str, pieces: Sequence[QueuedRows]) -> None:
        """Count lost rows. Queue a drop record for the recording, unless it has failed."""
        with self._lock:
            for piece in pieces:
                self._stats.dropped_rows += len(piece.rows)
                self._stats.dropped_by_site[site] += len(piece.rows)
                if self._failure is None:
                    self._drops.append(records.Drop(site, piece.first_row, len(piece.rows)))

    def _refuse(self) -> None:
        """Raise for lost rows, unless the policy is "drop"."""
        if self.options.policy == "drop":
            return
        self._check_alive()
        if self.options.policy == "error":
            raise RecordingError(
                f"{self.path}: the queue is full ({self.options.queue_bytes >> 20} MiB): rows come faster than they can be "
                "encoded and written. Choose fewer sites, a faster codec, more memory, or policy 'block' or 'drop'"
            )
        raise RecordingError(f"{self.path}: the recording is closed")

    def end(self, step: Step, complete: bool = True) -> None:
        """End a step. Rows of an incomplete step get no labels, so readers never return them."""
        with self._lock:
            first = self._open.pop(step.number)
            self._stats.steps += 1
            if not complete:
                self._stats.incomplete_steps += 1
                return
            if self._failure is not None:
                return  # its rows were counted as lost, and labels cannot be written
            self._stats.rows += step.n_rows
            numbered = Step(step.number + self._step_base, step.time_ns, step.spans, step.meta, step.generation)
            self._unwritten.append((numbered, first))

    # --- from any thread ------------------------------------------------------------------------------------------------

    def mark(self, request: str, why: str = "") -> None:
        """Write a mark: this request was selected, and why. Raises RecordingPoisoned when the disk has failed."""
        now = clock_pair()
        self._note(Kind.MARK, records.Mark(request, why, now.monotonic_ns, now.wall_ns))

    def record_token(self, request: str, position: int, token_id: int, text: str = "") -> None:
        """Write a token that no step contains, for hand-written loops. Raises RecordingPoisoned when the disk has failed."""
        token = records.Token(request, position, token_id, text, monotonic_ns())
        self._note(Kind.TOKENS, records.Tokens(tokens=[token]))

    def flush(self) -> int:
        """Write all rows put so far to the file. They then survive the death of this process.

        Returns:
            Number of the first row that is not written.

        Raises:
            RecordingPoisoned: The disk has failed.
        """
        upto, number = self._hand_over()
        with self._noticing_failure():
            self._store.wait_written(number)
        self._written = max(self._written, upto)
        return upto

    def sync(self) -> int:
        """Write all rows put so far and make them durable. They then survive power loss.

        Returns:
            Number of the first row that is not durable.

        Raises:
            RecordingPoisoned: The disk has failed.
        """
        upto, _ = self._hand_over()
        with self._noticing_failure():
            self._store.sync()
        self._written, self._durable = max(self._written, upto), max(self._durable, upto)
        return upto

    def checkpoint(self) -> int:
        """Make all rows put so far durable, then publish `checkpoint.json` beside the segments.

        Returns:
            Number of the first row that is not durable.

        Raises:
            RecordingPoisoned: The disk has failed.
        """
        upto = self.sync()
        steps = self._step_base + self._stats.steps
        note = {"rows": upto, "steps": steps, "wall_ns": time.time_ns(), "codecs": self.reports()}
        publish_file(self.path / "checkpoint.json", msgspec.json.format(msgspec.json.encode(note), indent=1))
        with self._lock:
            self._checkpointed = upto
            self._stats.checkpoints += 1
        return upto

    def reports(self) -> dict[str, Any]:
        """Return the report of each site's codec, by site."""
        return {site: e.report() for site, e in zip(self.spec.sites, self._encoders, strict=True)}

    def stats(self) -> RecorderStats:
        """Return runtime statistics since this writer began."""
        queues = self._lanes
        with self._lock:
            return replace(
                self._stats,
                dropped_by_site=dict(self._stats.dropped_by_site),
                held_bytes=queues.held,
                held_bytes_max=queues.held_max,
                seconds_blocked=queues.seconds_blocked,
                written_rows=self._written,
                durable_rows=self._durable,
            )

    @property
    def direct(self) -> tuple[bool, str]:
        """Return whether writes bypass the page cache (O_DIRECT), and why."""
        return self._store.direct, self._store.direct_reason

    @property
    def failure(self) -> Exception | None:
        """Return the error that stopped the recording, or None."""
        return self._failure

    def close(self) -> None:
        """Write all queued rows, make them durable and finish the last segment.

        Idempotent: a second call does nothing, or resumes a first one that was interrupted while it waited for the workers.
        A call in a fork()ed child does nothing.

        Raises:
            RecordingPoisoned: The disk has failed. Rows acknowledged before that remain.
        """
        if self._closed or os.getpid() != self._pid:
            return
        self._closing.set()
        self._lanes.close()
        for thread in self._threads:
            thread.join()
        self._closed = True
        try:
            if self._failure is None:
                self._write_notes()
                self._note(Kind.SESSION, self._session(ended=True))
        finally:
            with self._noticing_failure():
                self._store.close()
        self._check_alive()
        self._written = self._durable = self._next_row
        (self.path / "checkpoint.json").unlink(missing_ok=True)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- workers ----------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (taken := self._lanes.take()) is not None:
            queue, pieces = taken
            try:
                if self._failure is None:
                    self._keep(queue, pieces)
                else:
                    self._lose(queue.site, pieces)
            except Exception as error:  # a disk failure: later blocks cannot be appended
                self._fail(error)
                self._lose(queue.site, pieces)
            finally:
                self._lanes.give_back(queue, pieces)

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
            log.error("%s: recording has stopped: %s", self.path, error)

    def _check_alive(self) -> None:
        """Raise RecordingPoisoned if the recording has stopped."""
        if self._failure is not None:
            raise self._stopped(self._failure) from self._failure

    def _stopped(self, failure: Exception) -> RecordingPoisoned:
        return RecordingPoisoned(f"{self.path}: recording has stopped: {failure}")

    def _keep(self, queue: SiteQueue, pieces: list[QueuedRows]) -> None:
        first = pieces[0]
        rows = first.rows if len(pieces) == 1 else np.concatenate([piece.rows for piece in pieces])
        limit = max(1, 2 * self.options.block_bytes // max(1, rows.nbytes // len(rows)))
        for start in range(0, len(rows), limit):  # a large step spans several blocks
            part = rows[start : start + limit]
            self._append(queue, replace(first, first_row=first.first_row + start, rows=part))

    def _append(self, queue: SiteQueue, block: QueuedRows) -> None:
        encoded = self._encode(queue, block)
        channel = channel_of_site(queue.site)
        if encoded.new_state is not None:
            self._send(channel, key(Kind.STATE, state=encoded.state), [encoded.new_state], block.time_ns)
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
            **fields,
        )
        self._send(channel, header, parts, block.time_ns)
        with self._lock:
            self._stats.blocks += 1
            self._stats.source_bytes += block.rows.nbytes
            self._stats.stored_bytes += sum(len(part) for part in parts)

    def _encode(self, queue: SiteQueue, block: QueuedRows) -> Encoded:
        try:
            return self._encoders[queue.index].encode(block.rows, block.dtype)
        except Exception:  # a codec that fails must not cost the rows
            if queue.site not in self._reported:
                self._reported.add(queue.site)
                log.exception("%s: the codec failed; such blocks are stored as they are", queue.site)
            return encoder("none").encode(block.rows, block.dtype)

    # --- labels and small records -----------------------------------------------------------------------------------------

    def _keep_house(self) -> None:
        pause = self.options.flush_seconds
        while not self._closing.wait(pause):
            try:
                self._lanes.push_older_than(pause)
                self._note_progress()
                self._checkpoint_if_due()
            except Exception as error:
                self._fail(error)
                return

    def _note_progress(self) -> None:
        """Update the counts of written and durable rows."""
        with self._lock:
            upto = min([self._next_row, *self._open.values()])
        rows = self._lanes.first_held(upto)  # before `number`: blocks appended after it must not count
        number = self._write_notes()
        self._milestones.append((rows, number))
        self._written = max([self._written, *(rows for rows, n in self._milestones if n <= self._store.written)])
        while self._milestones and self._milestones[0][1] <= self._store.durable:
            self._durable = max(self._durable, self._milestones.popleft()[0])

    def _checkpoint_if_due(self) -> None:
        due = self.options.checkpoint_tokens
        if due and self._next_row - self._checkpointed >= due:
            self.checkpoint()

    @contextmanager
    def _noticing_failure(self) -> Iterator[None]:
        try:
            yield
        except RecordingPoisoned as error:
            self._fail(error)
            raise self._stopped(error) from error

    def _hand_over(self) -> tuple[int, int]:
        """Append all rows and labels put so far to the store. Return the row after the last one and the last message number."""
        self._check_alive()
        with self._lock:
            upto = min([self._next_row, *self._open.values()])
        self._lanes.drain(upto)
        number = self._write_notes()
        self._check_alive()
        return upto, number

    def _write_notes(self) -> int:
        """Append pending labels, texts and drops to the store. Return the last message number."""
        with self._notes:
            with self._lock:
                steps, self._unwritten = self._unwritten, []
                drops, self._drops = self._drops, []
            if steps:
                self._write_labels(steps)
            if drops:
                self._note(Kind.DROPS, records.Drops(_joined(drops)))
            return self._last_number

    def _write_labels(self, steps: list[tuple[Step, int]]) -> None:
        for batch in _batches(steps):
            first, n_rows = batch[0][1], sum(step.n_rows for step, _ in batch)
            header = key(Kind.LEDGER, first_row=first, n_rows=n_rows, first_step=batch[0][0].number)
            self._send(channel_of(Kind.LEDGER), header, [row_labels.encode(batch)], batch[0][0].time_ns)
        self._write_texts(steps)

    def _write_texts(self, steps: list[tuple[Step, int]]) -> None:
        if self.texts is None:
            return
        seen = np.unique(np.concatenate([step.meta["token_id"] for step, _ in steps]))
        fresh = [i for i in seen.tolist() if i >= 0 and i not in self._known_texts]
        if fresh:
            self._known_texts.update(fresh)
            texts = self._texts_of(fresh)
            if texts:
                self._note(Kind.TOKENS, records.Tokens(texts=texts))

    def _texts_of(self, ids: list[int]) -> dict[int, str]:
        """Return the texts of these ids, or none if the user's tokenizer fails: its error must not lose rows."""
        assert self.texts is not None
        try:
            texts = [str(text).encode("utf-8", "replace").decode() for text in self.texts(ids)]
            return dict(zip(ids, texts, strict=True))
        except Exception:
            if "texts" not in self._reported:
                self._reported.add("texts")
                log.exception("%s: the tokenizer failed; such tokens are kept without their text", self.path)
            return {}

    def _note(self, kind: Kind, record: msgspec.Struct) -> None:
        self._send(channel_of(kind), key(kind), [records.write(record)], monotonic_ns())

    def _send(self, channel: str, header: bytes, parts: list[bytes | memoryview], time_ns: int) -> None:
        with self._noticing_failure():
            number = self._store.append(channel, header, parts, time_ns)
        with self._lock:
            self._last_number = max(self._last_number, number)

    def _session(self, ended: bool = False) -> records.Session:
        now = clock_pair()
        stats: dict[str, Any] = {"direct": self._store.direct, "direct_reason": self._store.direct_reason}
        if ended:
            stats |= {"codecs": self.reports(), "dropped_rows": self._stats.dropped_rows}
        return records.Session(now.monotonic_ns, now.wall_ns, now.boot_id, __version__, self._next_row, ended, stats)


def _batches(steps: list[tuple[Step, int]]) -> list[list[tuple[Step, int]]]:
    """Return the steps in the order of their rows, in batches of at most `_LABEL_ROWS` rows (or one larger step)."""
    batches: list[list[tuple[Step, int]]] = [[]]
    rows = 0
    for step, first in sorted(steps, key=lambda entry: entry[1]):
        if batches[-1] and rows + step.n_rows > _LABEL_ROWS:
            batches.append([])
            rows = 0
        batches[-1].append((step, first))
        rows += step.n_rows
    return batches


def _joined(drops: list[records.Drop]) -> list[records.Drop]:
    """Return the drops with adjacent row ranges merged."""
    joined: list[records.Drop] = []
    for drop in sorted(drops, key=lambda d: (d.site, d.first_row)):
        last = joined[-1] if joined else None
        if last and last.site == drop.site and last.why == drop.why and last.first_row + last.n_rows == drop.first_row:
            joined[-1] = msgspec.structs.replace(last, n_rows=last.n_rows + drop.n_rows)
        else:
            joined.append(drop)
    return joined

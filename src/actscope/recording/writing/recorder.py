"""The recorder: a sink that takes rows from the model's thread, has them encoded by workers, and keeps them in a store."""

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
from actscope.frames import Frame, SinkStats, Step
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

#: Rows whose labels share a message, at most; a step that is larger has one of its own.
_LEDGER_ROWS = 1 << 16


@dataclass(slots=True)
class RecorderStats(SinkStats):
    """`dropped_rows` counts a row once for each site that lost it. Bytes are of rows: as they came, and as they are stored."""

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
    """Keeps the rows of steps in a recording. A `Sink`, and more: sites may come one by one while a pass runs.

    `begin`, `put`, `end` and `write` are called on the model's thread. They copy nothing: the rows they are given are the
    recorder's from then on. What is acknowledged: rows before `stats().written_rows` survive the death of this process,
    rows before `stats().durable_rows` also a power cut.
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
        self._open: dict[int, int] = {}  # first row of each step under way, by its number
        self._unwritten: list[tuple[Step, int]] = []
        self._drops: list[records.Drop] = []
        self._known_texts: set[int] = set()
        self._checkpointed = begun.next_row
        self._last_number = 0  # of the store's messages
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
        """A new recording; with `resume`, the one that is there already goes on.

        Raises RecordingError when there is one and `resume` is not set, or when its sites or model are others;
        RecordingDamaged when what it had acknowledged is not there any more.
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
        """All frames of a step at once; frames of sites that are not recorded are left out."""
        self.begin(step)
        try:
            for frame in frames:
                if frame.site in self._lanes:
                    self.put(step, frame.site, frame.rows, frame.dtype)
        except BaseException:  # a step that stays open would hold up all that is acknowledged after it
            self.end(step, complete=False)
            raise
        self.end(step)

    def begin(self, step: Step) -> None:
        """A step whose labels are known begins. Step numbers must differ among the steps under way."""
        with self._lock:
            self._open[step.number] = self._next_row
            self._next_row += step.n_rows

    def put(self, step: Step, site: str, rows: Any, dtype: str | None = None) -> bool:
        """Rows [step.n_rows, d] of one site, numpy or torch on the CPU; False when they were dropped, and counted.

        All rows of a site have one width and dtype; `dtype` is "bfloat16" for uint16 arrays of its bits. Raises RecordingError
        under policy "error" when the queue is full, RecordingPoisoned when the disk has failed, and RecordingError for rows
        that do not fit the step or the site.
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
        """Count rows that are not kept; the recording says which, unless it can say nothing any more."""
        with self._lock:
            for piece in pieces:
                self._stats.dropped_rows += len(piece.rows)
                self._stats.dropped_by_site[site] += len(piece.rows)
                if self._failure is None:
                    self._drops.append(records.Drop(site, piece.first_row, len(piece.rows)))

    def _refuse(self) -> None:
        """Raise, where the policy is not to drop, for what has just been lost."""
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
        """The step has ended. Rows of a step that is not complete keep no label, and are never delivered."""
        with self._lock:
            first = self._open.pop(step.number)
            self._stats.steps += 1
            if not complete:
                self._stats.incomplete_steps += 1
                return
            if self._failure is not None:
                return  # its rows were counted as lost, and labels can go nowhere
            self._stats.rows += step.n_rows
            numbered = Step(step.number + self._step_base, step.time_ns, step.spans, step.meta, step.generation)
            self._unwritten.append((numbered, first))

    # --- from any thread ------------------------------------------------------------------------------------------------

    def mark(self, request: str, why: str = "") -> None:
        """Say in the recording that this request was chosen."""
        now = clock_pair()
        self._note(Kind.MARK, records.Mark(request, why, now.monotonic_ns, now.wall_ns))

    def record_token(self, request: str, position: int, token_id: int, text: str = "") -> None:
        """Keep a token that no forward pass shows; for hand-written loops."""
        token = records.Token(request, position, token_id, text, monotonic_ns())
        self._note(Kind.TOKENS, records.Tokens(tokens=[token]))

    def flush(self) -> int:
        """Have all that was put written to the file; it then survives the death of this process. Rows written so far."""
        upto, number = self._hand_over()
        with self._noticing_failure():
            self._store.wait_written(number)
        self._written = max(self._written, upto)
        return upto

    def sync(self) -> int:
        """The same, and through to the disk: it then survives a power cut."""
        upto, _ = self._hand_over()
        with self._noticing_failure():
            self._store.sync()
        self._written, self._durable = max(self._written, upto), max(self._durable, upto)
        return upto

    def checkpoint(self) -> int:
        """Make everything durable and say so in `checkpoint.json` beside the segments. Rows durable so far."""
        upto = self.sync()
        steps = self._step_base + self._stats.steps
        note = {"rows": upto, "steps": steps, "wall_ns": time.time_ns(), "codecs": self.reports()}
        publish_file(self.path / "checkpoint.json", msgspec.json.format(msgspec.json.encode(note), indent=1))
        with self._lock:
            self._checkpointed = upto
            self._stats.checkpoints += 1
        return upto

    def reports(self) -> dict[str, Any]:
        """What each site's codec says of itself."""
        return {site: e.report() for site, e in zip(self.spec.sites, self._encoders, strict=True)}

    def stats(self) -> RecorderStats:
        """Counts since this writer began; `written_rows` and `durable_rows` count from the recording's first row."""
        lanes = self._lanes
        with self._lock:
            return replace(
                self._stats,
                dropped_by_site=dict(self._stats.dropped_by_site),
                held_bytes=lanes.held,
                held_bytes_max=lanes.held_max,
                seconds_blocked=lanes.seconds_blocked,
                written_rows=self._written,
                durable_rows=self._durable,
            )

    @property
    def direct(self) -> tuple[bool, str]:
        """Whether writes bypass the page cache, and why."""
        return self._store.direct, self._store.direct_reason

    @property
    def failure(self) -> Exception | None:
        """What stopped the recording, if anything did."""
        return self._failure

    def close(self) -> None:
        """Write all that waits, make it durable, finish the last segment. A second call does nothing, but go on where
        an interrupt has ended the first while it waited; nor does a call in a fork()ed child.

        Raises RecordingPoisoned when the disk failed on the way: what had been acknowledged before is still there.
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
            lane, pieces = taken
            try:
                if self._failure is None:
                    self._keep(lane, pieces)
                else:
                    self._lose(lane.site, pieces)
            except Exception as error:  # the disk's failure: nothing after it would be in order
                self._fail(error)
                self._lose(lane.site, pieces)
            finally:
                self._lanes.give_back(lane, pieces)

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
            log.error("%s: recording has stopped: %s", self.path, error)

    def _check_alive(self) -> None:
        """RecordingPoisoned once the recording has stopped."""
        if self._failure is not None:
            raise self._stopped(self._failure) from self._failure

    def _stopped(self, failure: Exception) -> RecordingPoisoned:
        return RecordingPoisoned(f"{self.path}: recording has stopped: {failure}")

    def _keep(self, lane: SiteQueue, pieces: list[QueuedRows]) -> None:
        first = pieces[0]
        rows = first.rows if len(pieces) == 1 else np.concatenate([piece.rows for piece in pieces])
        limit = max(1, 2 * self.options.block_bytes // max(1, rows.nbytes // len(rows)))
        for start in range(0, len(rows), limit):  # one step may be many blocks
            part = rows[start : start + limit]
            self._append(lane, replace(first, first_row=first.first_row + start, rows=part))

    def _append(self, lane: SiteQueue, block: QueuedRows) -> None:
        encoded = self._encode(lane, block)
        channel = channel_of_site(lane.site)
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

    def _encode(self, lane: SiteQueue, block: QueuedRows) -> Encoded:
        try:
            return self._encoders[lane.index].encode(block.rows, block.dtype)
        except Exception:  # a codec that fails must not cost the rows
            if lane.site not in self._reported:
                self._reported.add(lane.site)
                log.exception("%s: the codec failed; such blocks are stored as they are", lane.site)
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
        """See which rows have reached the file, and the disk, since the last look."""
        with self._lock:
            upto = min([self._next_row, *self._open.values()])
        rows = self._lanes.first_held(upto)  # first: a block that the store gets after `number` must not count
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
        """Give the store all rows and labels put so far. The row after the last one, and the last message's number."""
        self._check_alive()
        with self._lock:
            upto = min([self._next_row, *self._open.values()])
        self._lanes.drain(upto)
        number = self._write_notes()
        self._check_alive()
        return upto, number

    def _write_notes(self) -> int:
        """Write labels, texts and drops that wait. The number of the last message so far."""
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
        """Texts of these ids, none where the user's tokenizer fails: that must not cost the rows."""
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
    """The steps in batches of at most about `_LEDGER_ROWS` rows, in the order of their rows."""
    batches: list[list[tuple[Step, int]]] = [[]]
    rows = 0
    for step, first in sorted(steps, key=lambda entry: entry[1]):
        if batches[-1] and rows + step.n_rows > _LEDGER_ROWS:
            batches.append([])
            rows = 0
        batches[-1].append((step, first))
        rows += step.n_rows
    return batches


def _joined(drops: list[records.Drop]) -> list[records.Drop]:
    """Losses of neighbouring rows as one."""
    joined: list[records.Drop] = []
    for drop in sorted(drops, key=lambda d: (d.site, d.first_row)):
        last = joined[-1] if joined else None
        if last and last.site == drop.site and last.why == drop.why and last.first_row + last.n_rows == drop.first_row:
            joined[-1] = msgspec.structs.replace(last, n_rows=last.n_rows + drop.n_rows)
        else:
            joined.append(drop)
    return joined

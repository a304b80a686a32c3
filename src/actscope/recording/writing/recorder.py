"""Recorder: a sink that queues rows from the model's thread, encodes them in worker threads and appends them to a store."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from actscope._version import __version__
from actscope.clock import clock_pair, monotonic_ns
from actscope.codecs import DTYPES, carrier, check_rows
from actscope.counters import counted, counting, current
from actscope.errors import RecordingError
from actscope.frames import Frame, RowArray, SinkStats, Step
from actscope.recording.format import records
from actscope.recording.format.arrays import as_numpy
from actscope.recording.format.index_keys import CHANNELS, Kind, channel_of_site
from actscope.recording.format.manifest import manifest_of
from actscope.recording.spec import PipelineOptions, RecordingSpec
from actscope.recording.writing.acknowledgment import Acknowledgment
from actscope.recording.writing.block_writer import BlockWriter
from actscope.recording.writing.label_writer import LabelWriter
from actscope.recording.writing.message_writer import MessageWriter
from actscope.recording.writing.resume import Resume, continue_recording
from actscope.recording.writing.site_queues import QueuedRows, SiteQueues
from actscope.recording.writing.step_book import StepBook
from actscope.runtime.publish import publish_file
from actscope.sites import is_named
from actscope.store import Store


@counting("recording")
@dataclass(slots=True)
class RecorderStats(SinkStats):
    """Runtime statistics of a recorder.

    `dropped_rows` counts a row once for each site that lost it. `source_bytes` and `stored_bytes` are the sizes of the encoded
    rows before and after encoding. `held_bytes` is the current size of the rows in queues and with workers. `written_rows` and
    `durable_rows` count from the recording's first row.
    """

    steps: int = counted("work", "Steps that the recording took.")
    rows: int = counted("work", "Rows that the recording took.")
    dropped_rows: int = counted(
        "loss",
        "Rows that the recording dropped, because encoding or the disk fell behind; each once for each site that lost it.",
        "Choose a faster codec (--record-codec, ACTSCOPE_CODEC), record fewer sites, or write to a faster disk.",
    )
    incomplete_steps: int = counted(
        "doubt",
        "Steps that ended before all their rows were there; none of their rows is delivered.",
        "See the log for the error that ended the pass.",
    )
    dropped_by_site: dict[str, int] = field(default_factory=dict)
    source_bytes: int = counted("work", "Bytes of rows before encoding.")
    stored_bytes: int = counted("work", "Bytes of rows after encoding.")
    blocks: int = counted("work", "Blocks that were written.")
    held_bytes: int = current("Bytes of rows that wait for a codec or for the disk.")
    held_bytes_max: int = current("Most bytes of rows that have waited for a codec or for the disk.")
    seconds_blocked: float = 0.0
    checkpoints: int = counted("work", "Checkpoints of the recording.")
    written_rows: int = current("Rows of the recording, from its first one, that survive a killed process.")
    durable_rows: int = current("Rows of the recording, from its first one, that survive a power cut.")


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
    """

    def __init__(self, store: Store, spec: RecordingSpec, options: PipelineOptions, begun: Resume) -> None:
        self.path, self.spec, self.options = store.path, spec, options
        self.known_requests = begun.requests
        self._store = store
        self._messages = MessageWriter(store)
        self._steps = StepBook(spec.sites, begun)
        self._labels = LabelWriter(self._messages, self._steps)
        self._blocks = BlockWriter(self._messages, spec, options.block_bytes, lambda: self._queues.held)
        self._queues = SiteQueues(
            spec.sites, budget=options.queue_bytes, block_bytes=options.block_bytes_of(len(spec.sites))
        )
        self._acknowledged = Acknowledgment(store, begun.next_row)
        self._shapes: dict[str, tuple[str, int]] = dict(begun.shapes)  # dtype and width of each site
        self._closing = threading.Event()
        self._closed = False
        self._pid = os.getpid()
        self._messages.note(Kind.SESSION, self._session())
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
            CodecError: A codec is unknown, or cannot encode rows of the model's width and dtype (if `spec.model` has them).
            RecordingError: The directory is not empty, another writer has the recording, or its sites or model differ.
            RecordingDamaged: Acknowledged bytes of the recording are missing or changed.
        """
        _check_codecs(spec)
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
                if frame.site in self._queues:
                    self.put(step, frame.site, frame.rows, frame.dtype)
        except BaseException:  # an open step would block the acknowledgment of all later rows
            self.end(step, complete=False)
            raise
        self.end(step)

    def begin(self, step: Step) -> None:
        """Begin a step and assign its row numbers. Open steps must have distinct numbers."""
        self._steps.begin(step)

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
        piece = QueuedRows(self._steps.first_row(step), array, dtype, self._steps.number(step), step.time_ns)
        if not step.n_rows:
            return True
        if self.failure is None and self._queues.offer(site, piece, wait=self.options.policy == "block"):
            return True
        self._lose(site, [piece])
        self._refuse()
        return False

    def _check(self, step: Step, site: str, rows: np.ndarray, dtype: str) -> None:
        fits = rows.ndim == 2 and len(rows) == step.n_rows and dtype in DTYPES and rows.dtype == carrier(dtype)
        if site not in self._queues or not fits:
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
        """Count lost rows, and name them in the recording unless it has failed."""
        self._steps.lose(site, pieces, writable=self.failure is None)

    def _refuse(self) -> None:
        """Raise for lost rows, unless the policy is "drop"."""
        if self.options.policy == "drop":
            return
        self._messages.check_alive()
        if self.options.policy == "error":
            raise RecordingError(
                f"{self.path}: the queue is full ({self.options.queue_bytes >> 20} MiB): rows come faster than they can be "
                "encoded and written. Choose fewer sites, a faster codec, more memory, or policy 'block' or 'drop'"
            )
        raise RecordingError(f"{self.path}: the recording is closed")

    def end(self, step: Step, complete: bool = True) -> None:
        """End a step. Rows of an incomplete step get no labels, so readers never return them."""
        self._steps.end(step, complete=complete, writable=self.failure is None)

    # --- from any thread ------------------------------------------------------------------------------------------------

    def mark(self, request: str, why: str = "") -> None:
        """Write a mark: this request was selected, and why. Raises RecordingPoisoned when the disk has failed."""
        now = clock_pair()
        self._messages.note(Kind.MARK, records.Mark(request, why, now.monotonic_ns, now.wall_ns))

    def record_token(self, request: str, position: int, token_id: int, text: str = "") -> None:
        """Write a token that no step contains, for hand-written loops. Raises RecordingPoisoned when the disk has failed."""
        token = records.Token(request, position, token_id, text, monotonic_ns())
        self._messages.note(Kind.TOKENS, records.Tokens(tokens=[token]))

    def flush(self) -> int:
        """Write all rows put so far to the file. They then survive the death of this process.

        Returns:
            Number of the first row that is not written.

        Raises:
            RecordingPoisoned: The disk has failed.
        """
        upto, number = self._hand_over()
        with self._messages.noticing_failure():
            self._store.wait_written(number)
        self._acknowledged.note_written(upto)
        return upto

    def sync(self) -> int:
        """Write all rows put so far and make them durable. They then survive power loss.

        Returns:
            Number of the first row that is not durable.

        Raises:
            RecordingPoisoned: The disk has failed.
        """
        upto, _ = self._hand_over()
        with self._messages.noticing_failure():
            self._store.sync()
        self._acknowledged.note_durable(upto)
        return upto

    def checkpoint(self) -> int:
        """Make all rows put so far durable, then publish `checkpoint.json` beside the segments.

        Returns:
            Number of the first row that is not durable.

        Raises:
            RecordingPoisoned: The disk has failed.
        """
        upto = self.sync()
        note = {"rows": upto, "steps": self._steps.last_step, "wall_ns": time.time_ns(), "codecs": self.reports()}
        publish_file(self.path / "checkpoint.json", msgspec.json.format(msgspec.json.encode(note), indent=1))
        self._acknowledged.note_checkpoint(upto)
        return upto

    def reports(self) -> dict[str, Any]:
        """Return the report of each site's codec, by site."""
        return self._blocks.reports()

    def stats(self) -> RecorderStats:
        """Return runtime statistics since this writer began."""
        return RecorderStats(
            **asdict(self._steps.counts()),
            **asdict(self._blocks.counts()),
            held_bytes=self._queues.held,
            held_bytes_max=self._queues.held_max,
            seconds_blocked=self._queues.seconds_blocked,
            checkpoints=self._acknowledged.checkpoints,
            written_rows=self._acknowledged.written,
            durable_rows=self._acknowledged.durable,
        )

    @property
    def direct(self) -> tuple[bool, str]:
        """Return whether writes bypass the page cache (O_DIRECT), and why."""
        return self._store.direct, self._store.direct_reason

    @property
    def next_row(self) -> int:
        """Return the number of the next row. Rows put so far are in the file once `stats().written_rows` has reached it."""
        return self._steps.next_row

    @property
    def failure(self) -> Exception | None:
        """Return the error that stopped the recording, or None."""
        return self._messages.failure

    @property
    def texts(self) -> Callable[[Sequence[int]], list[str]] | None:
        """Tokenizer callback from token ids to texts, or None. Set it before the first step."""
        return self._labels.texts

    @texts.setter
    def texts(self, texts: Callable[[Sequence[int]], list[str]] | None) -> None:
        self._labels.texts = texts

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
        self._queues.close()
        for thread in self._threads:
            thread.join()
        self._closed = True
        try:
            if self.failure is None:
                self._labels.write()
                self._messages.note(Kind.SESSION, self._session(ended=True))
        finally:
            with self._messages.noticing_failure():
                self._store.close()
        self._messages.check_alive()
        self._acknowledged.note_durable(self._steps.next_row)
        (self.path / "checkpoint.json").unlink(missing_ok=True)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- workers ----------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (taken := self._queues.take()) is not None:
            queue, pieces = taken
            try:
                if self.failure is None:
                    self._blocks.write(queue, pieces)
                else:
                    self._lose(queue.site, pieces)
            except Exception as error:  # a disk failure: later blocks cannot be appended
                self._messages.fail(error)
                self._lose(queue.site, pieces)
            finally:
                self._queues.give_back(queue, pieces)

    def _keep_house(self) -> None:
        """Push rows that have waited, write labels, acknowledge rows and checkpoint, until `close`."""
        pause = self.options.flush_seconds
        while not self._closing.wait(pause):
            try:
                self._queues.push_older_than(pause)
                self._acknowledge()
                self._checkpoint_if_due()
            except Exception as error:
                self._messages.fail(error)
                return

    def _acknowledge(self) -> None:
        """Update the counts of written and durable rows."""
        rows = self._queues.first_held(self._steps.first_open_row())  # before `number`: later blocks must not count
        self._acknowledged.expect(rows, self._labels.write())
        self._acknowledged.advance()

    def _checkpoint_if_due(self) -> None:
        due = self.options.checkpoint_tokens
        if due and self._steps.next_row - self._acknowledged.checkpointed >= due:
            self.checkpoint()

    def _hand_over(self) -> tuple[int, int]:
        """Append all rows and labels put so far to the store. Return the row after the last one and the last message number."""
        self._messages.check_alive()
        upto = self._steps.first_open_row()
        self._queues.drain(upto)
        number = self._labels.write()
        self._messages.check_alive()
        return upto, number

    def _session(self, ended: bool = False) -> records.Session:
        now = clock_pair()
        stats: dict[str, Any] = {"direct": self._store.direct, "direct_reason": self._store.direct_reason}
        if ended:
            stats |= {"codecs": self.reports(), "dropped_rows": self._steps.counts().dropped_rows}
        first = self._steps.next_row
        return records.Session(now.monotonic_ns, now.wall_ns, now.boot_id, __version__, first, ended, stats)


def _check_codecs(spec: RecordingSpec) -> None:
    """Check each codec against the width and dtype that the model's facts state. Rows of modules may have others."""
    width, dtype = spec.model.get("d_model"), spec.model.get("dtype")
    for site in spec.sites:
        known = is_named(site)
        check_rows(
            spec.codec_of(site),
            width if known and isinstance(width, int) else 0,
            dtype if known and isinstance(dtype, str) and dtype in DTYPES else "",
            site,
        )

"""Store: the writer of the log."""

from __future__ import annotations

import os
import secrets
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from actscope.errors import RecordingError, RecordingPoisoned
from actscope.runtime.publish import sync_directory
from actscope.store.files import naming
from actscope.store.format.checksum import crc32c_of
from actscope.store.format.layout import KEY_BYTES
from actscope.store.format.manifest import Manifest, publish_manifest, read_manifest
from actscope.store.format.watermark import NAME as WATERMARK
from actscope.store.format.watermark import Watermark, WatermarkFile
from actscope.store.options import StoreOptions, StoreStats
from actscope.store.writing.buffers import PoolShape
from actscope.store.writing.framing import SegmentFramer
from actscope.store.writing.io_thread import IoThread
from actscope.store.writing.pipeline_state import PipelineState
from actscope.store.writing.segment_file import choose_direct, next_segment

_open: weakref.WeakSet[Store] = weakref.WeakSet()


class Store:
    """Writer of a durable, append-only log of opaque messages. One process writes. Use `create` or `resume`.

    All methods except `close` are thread-safe. One thread of the store writes the files. There are two levels of acknowledgment:

        number <= written   the message survives kill -9 of this process
        number <= durable   the message survives power loss

    After a failed write or fsync the store is poisoned: `append`, `sync` and `wait_written` raise RecordingPoisoned,
    nothing more is written, and acknowledged messages remain. A store that is dropped without `close` writes what it
    accepted and leaves a recording that `recover` closes. A fork()ed child must not use its parent's store; the lock
    stays with the parent.

    Attributes:
        path: Directory of the recording.
        direct: Whether writes bypass the page cache (O_DIRECT).
        direct_reason: Why `direct` was chosen.
    """

    def __init__(self, path: Path, manifest: Manifest, mark: WatermarkFile, options: StoreOptions) -> None:
        """Initialize from an open watermark. Use `create` or `resume`."""
        self.path = path
        self._manifest = manifest
        self._channels = {name: index for index, name in enumerate(manifest.channels)}
        self._mark = mark
        self._pid = os.getpid()
        self.direct, self.direct_reason = choose_direct(path, options.direct)
        start = mark.state.written
        self._pipeline = PipelineState(PoolShape.within(options.buffer_bytes), start)
        self._stream = SegmentFramer(
            self._pipeline, manifest, options.segment_bytes, self.direct, start.number, next_segment(path)
        )
        self._lock = threading.Lock()
        self._closed = False
        self._first = start.number
        self._io_thread = _start(path, self._pipeline, mark, options, self.direct, self._stream, self._lock)
        self._finalizer = weakref.finalize(
            self, _abandon, self._pid, self._pipeline, self._stream, self._lock, self._io_thread, mark
        )
        _open.add(self)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        manifest: Mapping[str, object],
        channels: Sequence[str],
        options: StoreOptions | None = None,
    ) -> Store:
        """Create a recording.

        Args:
            path: Directory of the recording, absent or empty.
            manifest: JSON values that describe the recording; never changed afterwards.
            channels: Distinct names of the channels, fewer than 65536.
            options: Settings of the writer; None uses the defaults.

        Returns:
            A running store. Close it.

        Raises:
            RecordingError: The directory is not empty or cannot be written, or the manifest or channels are not valid.
        """
        directory = Path(path)
        whole = Manifest.make(secrets.randbits(32), channels, manifest)
        with naming(directory, "creating"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if any(directory.iterdir()):
                raise RecordingError(
                    f"{directory}: not empty; choose another place, or resume the recording that is there"
                )
        mark = WatermarkFile.create(directory, Watermark(whole.recording, whole.crc, os.getpid()))
        with _closing_on_error(mark):
            store = cls(directory, whole, mark, options or StoreOptions())
            publish_manifest(directory, whole)
            with naming(directory.parent, "fsync"):
                sync_directory(directory.parent)
            return store

    @classmethod
    def resume(cls, path: str | os.PathLike[str], *, options: StoreOptions | None = None) -> Store:
        """Continue a recording that was closed or recovered, in a new segment.

        Args:
            path: Directory of the recording.
            options: Settings of the writer; None uses the defaults.

        Returns:
            A running store. Close it.

        Raises:
            RecordingError: There is no recording, another process writes it, or it was not closed (run `recover` first).
            RecordingDamaged: Its manifest cannot be read.
        """
        directory = Path(path)
        whole = _manifest_of(directory)
        with naming(directory / WATERMARK, "looking"):
            (directory / WATERMARK).stat()
        mark = WatermarkFile.open(directory)
        with _closing_on_error(mark):
            state = mark.state
            if not state.closed or (state.recording, state.manifest_crc) != (whole.recording, whole.crc):
                raise RecordingError(f"{directory}: was not closed; `recover` it first, then resume")
            if next_segment(directory) <= state.written.segment:
                raise RecordingError(f"{directory}: segment {state.written.segment} is missing; `recover` it first")
            mark.settle(replace(state, closed=False, pid=os.getpid()))
            return cls(directory, whole, mark, options or StoreOptions())

    def append(self, channel: str, key: bytes, parts: Sequence[bytes | memoryview], time_ns: int) -> int:
        """Append one message. Copies the parts before it returns. Blocks while the buffers are full (back pressure).

        Args:
            channel: Name of a channel of the recording.
            key: 64 bytes that readers get in the index.
            parts: The body, as parts that are concatenated.
            time_ns: Time of the message in nanoseconds, 0 <= `time_ns` < 2**63.

        Returns:
            The message number: 1 for the first one, without gaps.

        Raises:
            RecordingError: The channel, key or time is not valid, the store is closed, or the process is a fork()ed child.
            RecordingPoisoned: A write or fsync has failed.
        """
        index = self._channels.get(channel)
        if index is None:
            raise RecordingError(f"channel {channel!r} is not one of this recording's: {list(self._channels)[:8]}")
        if len(key) != KEY_BYTES or not 0 <= time_ns < 1 << 63:
            raise RecordingError(
                f"a key has {KEY_BYTES} bytes, this has {len(key)}; a time is 0 .. 2**63 ns, this is {time_ns}"
            )
        views = list(_flat(parts))
        length = sum(map(len, views))
        crc = crc32c_of(views)
        with self._lock:
            self._check()
            return self._stream.message(index, bytes(key), views, length, crc, time_ns)

    @property
    def written(self) -> int:
        """Return the highest number such that all messages up to it survive kill -9 of this process."""
        return self._pipeline.written.number

    @property
    def durable(self) -> int:
        """Return the highest number such that all messages up to it survive power loss."""
        return self._pipeline.durable.number

    @property
    def poisoned(self) -> Exception | None:
        """Return the error that poisoned the store, or None."""
        return self._pipeline.error

    def wait_written(self, number: int, timeout: float | None = None) -> None:
        """Block until `written` reaches `number`.

        Args:
            number: Message number that `append` returned.
            timeout: Maximum wait in seconds; None waits without limit.

        Raises:
            RecordingError: The message was never appended.
            RecordingPoisoned: A write or fsync has failed.
            TimeoutError: `timeout` seconds have passed.
        """
        if number > self._pipeline.accepted:
            raise RecordingError(f"message {number} was never appended; the last is {self._pipeline.accepted}")
        if self.written < number:
            self._push(timeout)
        self._pipeline.wait(lambda: self.written >= number, timeout, f"waiting for message {number} to be written")

    def sync(self, timeout: float | None = None) -> int:
        """Block until every message appended so far is durable.

        Args:
            timeout: Maximum wait in seconds; None waits without limit.

        Returns:
            The number of the last such message.

        Raises:
            RecordingPoisoned: A write or fsync has failed.
            TimeoutError: `timeout` seconds have passed.
        """
        number = self._pipeline.accepted
        if self.durable < number:
            self._push(timeout)
            self._pipeline.want(number)
        self._pipeline.wait(lambda: self.durable >= number, timeout, f"making message {number} durable")
        return number

    def stats(self) -> StoreStats:
        """Return runtime statistics since this writer began."""
        flow = self._pipeline
        with flow.changed:
            return StoreStats(
                messages=flow.accepted - self._first,
                bytes=flow.bytes,
                segments=flow.segments,
                buffered_bytes=flow.buffered + self._stream.buffered(),
                buffered_bytes_max=flow.buffered_max,
                syncs=flow.syncs,
                seconds_blocked=flow.seconds_blocked,
            )

    def close(self) -> None:
        """Finish the segment (index, MCAP summary), make all messages durable, mark the recording as closed and release the lock.

        Idempotent. A call in a fork()ed child does nothing.

        Raises:
            RecordingPoisoned: Appended messages could not be made durable.
        """
        if self._closed or os.getpid() != self._pid:
            return
        try:
            with self._lock:
                self._closed = True
                if self.poisoned is None:
                    self._stream.finish()
        finally:
            self._finalizer.detach()
            self._pipeline.stop()
            self._io_thread.join()
            try:
                self._settle()
            finally:
                self._mark.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _settle(self) -> None:
        self._pipeline.wait(lambda: self.poisoned is None, 0, "closing")
        self._mark.settle(
            replace(self._mark.state, closed=True, durable=self._pipeline.written, written=self._pipeline.written)
        )

    def _push(self, timeout: float | None) -> None:
        if not self._lock.acquire(timeout=-1 if timeout is None else timeout):
            raise TimeoutError(f"{self.path}: an append that waits for room held the buffers for {timeout} s")
        try:
            self._check()
            self._stream.flush()
        finally:
            self._lock.release()

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise RecordingError(f"{self.path}: belongs to process {self._pid}; a fork()ed child must not write to it")
        if self._closed:
            raise RecordingError(f"{self.path}: this writer is closed")

    def _forked(self) -> None:
        self._mark.close()  # a surviving child must not keep the lock


def _flat(parts: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    for part in parts:
        view = memoryview(part)
        if view.nbytes:
            yield view if view.format == "B" and view.ndim == 1 and view.contiguous else view.cast("B")


def _manifest_of(directory: Path) -> Manifest:
    try:
        return read_manifest(directory)
    except FileNotFoundError as error:
        raise RecordingError(
            f"{directory}: no manifest.json, so not a recording, or a damaged one: `recover` it"
        ) from error


@contextmanager
def _closing_on_error(mark: WatermarkFile) -> Iterator[None]:
    try:
        yield
    except BaseException:
        mark.close()
        raise


def _start(
    path: Path,
    flow: PipelineState,
    mark: WatermarkFile,
    options: StoreOptions,
    direct: bool,
    stream: SegmentFramer,
    lock: threading.Lock,
) -> threading.Thread:
    def flush() -> bool:
        if not lock.acquire(blocking=False):
            return False
        try:
            return stream.flush()
        finally:
            lock.release()

    io_thread = IoThread(path, flow, mark, options, direct, flush)
    thread = threading.Thread(target=io_thread.run, name="actscope-store", daemon=True)
    thread.start()
    return thread


def _abandon(
    pid: int,
    flow: PipelineState,
    stream: SegmentFramer,
    lock: threading.Lock,
    io_thread: threading.Thread,
    mark: WatermarkFile,
) -> None:
    """Write the accepted messages of a store that was dropped, or at interpreter exit. Does not close the recording."""
    if os.getpid() != pid:
        return
    if lock.acquire(timeout=1.0):
        try:
            if flow.error is None:
                stream.flush()
        except RecordingPoisoned:
            pass  # the I/O thread failed meanwhile: no more messages can be written
        finally:
            lock.release()
    flow.stop()
    io_thread.join(timeout=60.0)
    mark.close()


def _after_fork() -> None:
    for store in list(_open):
        store._forked()


os.register_at_fork(after_in_child=_after_fork)

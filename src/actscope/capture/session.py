"""Capture session: records a model's activations while the user's code runs it."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol, Unpack

from torch import nn

from actscope.capture.codec_choice import choose_codec
from actscope.capture.config import CaptureConfig
from actscope.capture.device_copy import Handover
from actscope.capture.hooks.compiled import compiled_parts
from actscope.capture.hooks.first_pass import first_pass_check
from actscope.capture.hooks.forward_hooks import ForwardHooks
from actscope.capture.labels.position_filter import PositionFilter
from actscope.capture.labels.request_ids import RequestIds
from actscope.capture.labels.token_labels import Requests, TokenLabels
from actscope.capture.plan import shape_of, widths_of
from actscope.capture.settings import CaptureSettings
from actscope.capture.sinks import whole
from actscope.capture.stats import CaptureStats, StatsCounter
from actscope.codecs import DTYPES, check_rows, rows_before_encoding
from actscope.errors import RecordingError, RecordingPoisoned, SettingsError
from actscope.frames import RowSink
from actscope.near_miss import hinted_class
from actscope.recording.spec import RecordingSpec
from actscope.recording.writing.recorder import Recorder, RecorderStats
from actscope.sampling import keeps
from actscope.taps.anatomy import resolve

log = logging.getLogger("actscope.capture")


class TokenDecoder(Protocol):
    """The part of a tokenizer that a capture uses, for example of a `transformers` tokenizer."""

    def decode(self, token_ids: list[int], /) -> object:
        """Return the text of these token ids."""


#: Path of the running capture, by captured model.
_CAPTURED: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_CAPTURED_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class CaptureProgress:
    """Progress of a capture: positions, rows, bytes as computed and as stored, and seconds since it began."""

    tokens: int
    rows: int
    bytes: int
    stored_bytes: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Mean rate since the capture began, in tokens/s."""
        return self.tokens / self.seconds if self.seconds else 0.0


@hinted_class
class Capture:
    """Capture session of one model. Create it with `actscope.capture`.

        with actscope.capture(model, preset="balanced", to="run.acts") as cap:
            model.generate(...)

    Every recorded row has its exact request and position, and its token id if the model was called with ids. Rows whose labels
    are ambiguous are not recorded. They are counted in `stats()` and each reason is logged once. The model's results never
    change, but compiled code runs eagerly meanwhile. An internal fault never ends a forward pass. Policy "error" raises
    RecordingError for rows that are refused, and for a pass whose labels are ambiguous. A session runs once.
    """

    def __init__(
        self,
        model: nn.Module,
        to: str | os.PathLike[str],
        config: CaptureConfig,
        *,
        resume: bool = False,
        tokenizer: TokenDecoder | str | None = None,
        model_facts: Mapping[str, object] | None = None,
        recorder: RowSink | None = None,
    ) -> None:
        """Resolve the sites. See `actscope.capture` for the arguments.

        Raises:
            SiteError: The model does not have a site.
            SettingsError: `model` cannot be captured.
            CodecError: The codec cannot encode the width or the dtype of a site's rows, as far as they are known.
        """
        self.config = config
        self.path = os.fspath(to)
        self._model = _checked(model)
        self._places = resolve(self._model, config.sites, config.read_points)
        self._check_codec()
        self._resume = resume
        self._tokenizer = _tokenizer(tokenizer)
        self._model_facts = dict(model_facts or {})
        self._recorder = None if recorder is None else whole(recorder)
        self._counter = StatsCounter()
        self._passes: ForwardHooks | None = None
        self._handover: Handover | None = None
        self._requests: Requests | None = None
        self._begun = self._seconds = 0.0
        self._ended = self._text_failed = False
        self._to_close = False
        self._pid = os.getpid()
        self._recorded: dict[str, int] = {}

    def _check_codec(self) -> None:
        codec = choose_codec(self.config.codec, self.config.workers, self.config.throughput).codec
        shape = shape_of(self._model)
        widths = widths_of(self._places, shape)
        for site in self._places:
            dtype = shape.dtype if not site.is_module and shape.dtype in DTYPES else ""
            check_rows(codec, widths.get(site.name, 0), dtype, site.name)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the recorded sites."""
        return tuple(site.name for site in self._places)

    # --- start and stop ---------------------------------------------------------------------------------------------------

    def start(self) -> Capture:
        """Open the recording and attach to the model.

        Returns:
            This session.

        Raises:
            SettingsError: The model is already being captured, or this session has been started before.
            RecordingError: The recording cannot be created.
        """
        if self._passes is not None or self._ended:
            raise SettingsError("this capture has been started before: make a new one, with resume=True to go on")
        with _CAPTURED_LOCK:
            other = next((to for model, to in _CAPTURED.items() if _overlap(model, self._model)), None)
            if other is not None:
                raise SettingsError(
                    f"this model is being captured already, to {other!r}: stop that capture first, or name all sites in one"
                )
            _CAPTURED[self._model] = self.path
        try:
            self._open()
        except BaseException:
            self._release()
            raise
        return self

    def _open(self) -> None:
        recorder = self._recorder
        if recorder is None:
            recorder = Recorder.create(self.path, self._spec(), self.config.pipeline(), resume=self._resume)
            self._recorder = recorder
        self._to_close, self._pid = True, os.getpid()
        atexit.register(self._at_exit)
        if self._tokenizer is not None and self.config.text:
            recorder.texts = self._texts
        keep, sample = (lambda request: True), self.config.sample
        if sample < 1:
            keep = lambda request: keeps(request, sample)  # noqa: E731
        self._requests = Requests(RequestIds(recorder.known_requests), keep)
        self._handover = Handover(recorder, in_flight_bytes=max(1, self.config.memory_bytes // 4))
        labels = TokenLabels(self._requests, PositionFilter.parse(self.config.granularity))
        self._passes = ForwardHooks(
            self._model,
            self._places,
            labels,
            self._handover,
            self._counter,
            raises=self.config.policy == "error",
            check=first_pass_check(self._model, self._places),
        )
        if parts := compiled_parts(self._model):
            log.info("%s: compiled (%s) and run eagerly while it is captured", self.path, parts[0] or "the whole model")
        if rows := rows_before_encoding(self._spec().codec):
            log.info("%s: the first %d rows of each site are lossless, then a basis is fitted", self.path, rows)
        self._begun = time.monotonic()
        self._passes.attach()

    def _spec(self) -> RecordingSpec:
        choice = choose_codec(self.config.codec, self.config.workers, self.config.throughput)
        settings = {
            "sites": self.config.sites,
            "granularity": self.config.granularity,
            "codec": choice.codec,
            "policy": self.config.policy,
            "sample": self.config.sample,
            "why": self.config.reason,
            "throughput": choice.reason,
        }
        facts = shape_of(self._model).facts() | self._model_facts
        return RecordingSpec(self.sites, choice.codec, model=facts, settings=settings)

    def stop(self, *, aborted: bool = False) -> None:
        """Detach from the model, write all rows and close the recording.

        Idempotent. After an interrupt, a second call closes the recording. A call in a forked child does nothing, because the
        recording belongs to the parent process.

        Args:
            aborted: Label requests that could still continue as aborted.

        Raises:
            RecordingPoisoned: The disk failed.
            RecordingError: The recorder refused rows (policy "error").
        """
        passes, self._passes = self._passes, None
        atexit.unregister(self._at_exit)
        if os.getpid() != self._pid:
            return
        if passes is None or self._handover is None:
            self._close_recorder()
            return
        self._ended = True
        try:
            passes.detach()
            passes.finish(aborted=aborted)
            self._handover.close()
        finally:
            self._release()
            self._seconds = time.monotonic() - self._begun
            self._close_recorder()
        self._tell()

    def _at_exit(self) -> None:
        """Stop at interpreter exit, while the threads that write the pending rows still run."""
        try:
            self.stop(aborted=True)
        except RecordingPoisoned:
            self._tell_loss()
        except RecordingError as error:
            log.error("%s: the recording could not be finished: %s", self.path, error)

    def _close_recorder(self) -> None:
        if not self._to_close:
            return
        try:
            self._sink().close()
        except Exception:
            self._to_close = False
            raise
        self._to_close = False  # after an interrupt the recorder still has to be closed

    close = stop

    def _release(self) -> None:
        with _CAPTURED_LOCK:
            _CAPTURED.pop(self._model, None)

    def __enter__(self) -> Capture:
        return self if self._passes is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop(aborted=error is not None)
        except Exception as failed:
            if error is None:
                raise
            if isinstance(failed, RecordingPoisoned):
                self._tell_loss()
                return
            log.exception(
                "%s: the recording could not be finished", self.path
            )  # the user's own exception takes precedence

    def _tell_loss(self) -> None:
        """Say, at the end of a capture, that its recording stopped before. The reason was logged when it happened."""
        counts = self.stats().recorder
        kept = f"rows before {counts.written_rows} are kept" if isinstance(counts, RecorderStats) else "see its log"
        log.error(
            "%s: the recording stopped before its capture did: %s, later ones are lost; make room, then resume it",
            self.path, kept,
        )  # fmt: skip

    def _tell(self) -> None:
        stats = self.stats()
        stored = _stored_bytes(stats)
        size = f", {stats.bytes / 1e6:.1f} MB as {stored / 1e6:.1f} MB" if stored else ""
        log.info(
            "%s: %d tokens of %d requests at %d sites in %.1f s%s",
            self.path, stats.tokens, stats.requests, len(self.sites), self._seconds, size,
        )  # fmt: skip
        if not stats.passes:
            log.warning(
                "%s: no forward pass was seen. Call the model itself, not model.forward(); a scripted or exported copy of it "
                "does not run hooks",
                self.path,
            )

    # --- during a capture -------------------------------------------------------------------------------------------------

    @contextmanager
    def request(self, ids: str | Sequence[str]) -> Iterator[None]:
        """Name the requests of the forward passes in this context, on this thread.

        A pass that starts at the first token and repeats the request's tokens, possibly with more appended, recomputes that
        request. A pass with other tokens starts another request, "id#2".

        Args:
            ids: One id, or one id per sequence of the batch. A single id for n > 1 sequences becomes "id/0" ... "id/n-1".

        Raises:
            SettingsError: The capture is not running, or an id is empty, repeated or not valid Unicode.
        """
        with self._running().request(ids):
            yield

    def record_token(
        self, token_id: int, text: str = "", request: str | None = None, position: int | None = None
    ) -> None:
        """Record a token that no forward pass reads, such as the last one of a hand-written loop.

        Does nothing for a request outside the sample.

        Args:
            token_id: The token's id.
            text: Its text; if empty, the tokenizer's text is used.
            request: Its request; by default the request that this thread ran last.
            position: Its position (0-based); by default the one after the request's last position.

        Raises:
            SettingsError: The capture is not running, or `request` is not given and there is not exactly one candidate.
            RecordingPoisoned: The disk has failed.
        """
        requests, scope = self._labels(), self._running().scopes.current
        latest = scope.story.latest if scope.story is not None else None
        ids = tuple(latest.requests) if latest is not None else scope.ids or requests.last_here
        if request is None:
            if len(ids) != 1:
                raise SettingsError("record_token: say which request: " + (", ".join(ids) or "none has run yet"))
            request = ids[0]
        if not requests.keep(request):
            return
        if position is None:
            position = max(requests.reach_of(request), self._recorded.get(request, -1) + 1)
        self._recorded[request] = position
        if not text and self._tokenizer is not None:
            text = self._texts([token_id])[0]
        self._sink().record_token(request, position, token_id, text)

    def flush(self) -> int:
        """Encode and write all rows captured so far. They then survive the death of this process.

        Returns:
            Number of rows in the file.

        Raises:
            SettingsError: The capture is not running.
            RecordingPoisoned: The disk has failed.
        """
        self._running()
        if self._handover is not None:
            self._handover.drain()
        return self._sink().flush()

    def checkpoint(self) -> int:
        """Make all rows captured so far durable, so that they survive a power cut.

        Returns:
            Number of durable rows.

        Raises:
            SettingsError: The capture is not running.
            RecordingPoisoned: The disk has failed.
        """
        self._running()
        if self._handover is not None:
            self._handover.drain()
        return self._sink().checkpoint()

    def mark(self, request: str, why: str = "") -> None:
        """Mark a request in the recording.

        Args:
            request: The request id.
            why: A free-text reason.

        Raises:
            SettingsError: The capture is not running.
            RecordingPoisoned: The disk has failed.
        """
        self._running()
        self._sink().mark(request, why)

    def stats(self) -> CaptureStats:
        """Return exact counts since the capture began."""
        return replace(self._counter.read(), recorder=None if self._recorder is None else self._recorder.stats())

    @property
    def progress(self) -> CaptureProgress:
        """Progress so far. After `stop` the seconds no longer increase."""
        stats = self.stats()
        seconds = self._seconds or (time.monotonic() - self._begun if self._begun else 0.0)
        return CaptureProgress(stats.tokens, stats.rows, stats.bytes, _stored_bytes(stats), seconds)

    @property
    def failure(self) -> Exception | None:
        """The error that stopped the recording, for example a full disk, or None. The model goes on without it."""
        return None if self._recorder is None else self._recorder.failure

    @property
    def known_requests(self) -> frozenset[str]:
        """Requests that the recording already had when this session resumed it."""
        return frozenset(() if self._recorder is None else self._recorder.known_requests)

    def _running(self) -> ForwardHooks:
        if self._passes is None:
            raise SettingsError("this capture does not run: use it as a context manager, or call start() first")
        return self._passes

    def _sink(self) -> RowSink:
        assert self._recorder is not None
        return self._recorder

    def _labels(self) -> Requests:
        assert self._requests is not None
        return self._requests

    def _texts(self, ids: Sequence[int]) -> list[str]:
        return [self._text(i) for i in ids]

    def _text(self, token_id: int) -> str:
        """Return a token's text, or "" if the tokenizer has none: a model may have more ids than its tokenizer."""
        try:
            return str(self._tokenizer.decode([token_id])) if self._tokenizer is not None and token_id >= 0 else ""
        except Exception:
            if not self._text_failed:
                self._text_failed = True
                log.exception("the tokenizer has no text for token %d; further ones are not mentioned", token_id)
            return ""


def capture(
    model: nn.Module,
    preset: str | None = None,
    to: str | os.PathLike[str] = "capture.acts",
    *,
    config: CaptureConfig | None = None,
    resume: bool = False,
    tokenizer: TokenDecoder | str | None = None,
    model_facts: Mapping[str, object] | None = None,
    recorder: RowSink | None = None,
    **settings: Unpack[CaptureSettings],
) -> Capture:
    """Return a capture session that records a model's activations to a directory.

    Use it with `with`, or call `start()` and `stop()`.

    Args:
        model: A transformers model or any torch module.
        preset: Name of a preset; default "balanced".
        to: Directory of the recording.
        config: A configuration, instead of a preset.
        resume: Continue an existing recording of the same model name and revision.
        tokenizer: A tokenizer or its Hugging Face name. With it the text of each token is recorded.
        model_facts: JSON values for the recording's manifest. They override the facts read from the model. Probes and replays
            use "name", "revision" and "max_context".
        recorder: Receives the rows instead of a recording (an `actscope.frames.RowSink`).
        **settings: Fields of `CaptureConfig` that override the preset or the configuration.

    Returns:
        The session; it is not started.

    Raises:
        SettingsError: A setting is unknown or invalid, both `preset` and `config` are given, or the model cannot be captured.
        SiteError: The model does not have a site.
        CodecError: The codec cannot encode the width or the dtype of a site's rows, e.g. svd:256 of rows 64 wide.
    """
    if preset is not None and config is not None:
        raise SettingsError("give a preset or a config, not both: a config may begin as CaptureConfig.preset(...)")
    chosen = config or CaptureConfig.preset(preset or "balanced")
    return Capture(
        model,
        to,
        chosen.override(settings),
        resume=resume,
        tokenizer=tokenizer,
        model_facts=model_facts,
        recorder=recorder,
    )


def _checked(model: object) -> nn.Module:
    if isinstance(model, Capture):
        raise SettingsError("this is a capture already: give the model itself")
    if not isinstance(model, nn.Module):
        raise SettingsError(f"expected a torch module, found {type(model).__name__}")
    if isinstance(model, nn.DataParallel):
        raise SettingsError("DataParallel copies its module for every pass: capture model.module, run on one device")
    compiled = getattr(model, "_orig_mod", None)
    return compiled if isinstance(compiled, nn.Module) else model


def _overlap(one: nn.Module, other: nn.Module) -> bool:
    """Return whether the modules are the same, or one contains the other."""
    return any(m is other for m in one.modules()) or any(m is one for m in other.modules())


def _stored_bytes(stats: CaptureStats) -> int:
    return stats.recorder.stored_bytes if isinstance(stats.recorder, RecorderStats) else 0


def _tokenizer(given: TokenDecoder | str | None) -> TokenDecoder | None:
    if not isinstance(given, str):
        return given
    from transformers import AutoTokenizer

    try:
        found: TokenDecoder = AutoTokenizer.from_pretrained(given, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise SettingsError(
            f"tokenizer {given!r} brings its own code: load it yourself with trust_remote_code=True, and give the tokenizer"
        ) from error
    return found

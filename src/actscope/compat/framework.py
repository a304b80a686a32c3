"""`capture_activations`: the older framework's capture, recorded by `actscope.capture`."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import nn

from actscope.capture.config import CaptureConfig
from actscope.capture.session import Capture, TokenDecoder
from actscope.compat.analysis import StreamAnalysis, analyze_activations
from actscope.compat.config import InstrumentationConfig
from actscope.compat.token_files import TrackedToken, load_checkpoint, save_checkpoint, save_tokens
from actscope.errors import RecordingError, SettingsError

log = logging.getLogger("actscope.compat")

#: Request id of what runs in a capture that tracks tokens: passes over one growing sequence are one request.
REQUEST = "generation"


class TokenTracker:
    """One running capture, and its tokens if it tracks them."""

    def __init__(self, capture: _PausableCapture, checkpoint: Path, interval: int, tracks: bool) -> None:
        self.tokens: list[TrackedToken] = []
        """Tokens recorded so far, those before a resume included."""
        self._capture, self._checkpoint, self._interval, self._tracks = capture, checkpoint, interval, tracks
        self._start_time, self._resumes, self._saved = time.time(), 0, 0

    def record_token(
        self, token_id: int, token_text: str = "", position: int | None = None, *, request: str | None = None
    ) -> None:
        """Record a generated token, for the file of tokens and for the recording.

        Args:
            token_id: The token's id.
            token_text: Its text.
            position: Its index in the file of tokens; by default the number of tokens before it.
            request: Its request in the recording, if several run at once; by default the one that ran last.

        Raises:
            SettingsError: The capture was not started with track_per_token=True, or no pass or several requests have run.
            RecordingError: The checkpoint cannot be written.
        """
        if not self._tracks:
            raise SettingsError("record_token: this capture tracks no tokens: start it with track_per_token=True")
        self._capture.running.record_token(int(token_id), token_text, request)
        index = len(self.tokens) if position is None else position
        self.tokens.append(TrackedToken(index, int(token_id), token_text))
        if self._interval and len(self.tokens) - self._saved >= self._interval:
            self._capture.running.checkpoint()
            self.save_checkpoint()

    def load_checkpoint(self) -> None:
        """Take over the tokens of an interrupted capture, if there are any. Raises RecordingError if they are damaged."""
        found = load_checkpoint(self._checkpoint)
        if found is not None:
            self.tokens, self._saved = list(found.tokens), len(found.tokens)
            self._start_time = found.metadata.get("start_time", self._start_time)
            self._resumes = int(found.metadata.get("resume_count", 0)) + 1

    def save_checkpoint(self) -> None:
        """Write all tokens so far to the checkpoint."""
        metadata = {"start_time": self._start_time, "resume_count": self._resumes, "updated_at": time.time()}
        with _publishing(self._checkpoint):
            save_checkpoint(self._checkpoint, self.tokens, metadata)
        self._saved = len(self.tokens)

    def finish(self, output_path: Path) -> None:
        """Write the file of tokens, then remove the checkpoint."""
        with _publishing(output_path):
            save_tokens(output_path, self.tokens, time.time() - self._start_time)
            self._checkpoint.unlink(missing_ok=True)


class InstrumentationFramework:
    """The older framework: one model, and captures of it.

    Args:
        config: Its configuration, or one of `actscope.capture`; None takes the preset "balanced".
    """

    def __init__(self, config: InstrumentationConfig | CaptureConfig | None = None) -> None:
        self.config = config if config is not None else InstrumentationConfig()
        self._model: nn.Module | None = None
        self._running: list[_PausableCapture] = []
        self._trackers: list[TokenTracker] = []

    def instrument_model(self, model: nn.Module) -> None:
        """Choose the model to capture. Raises SettingsError for a second one: a recording has one model."""
        if self._model is not None and self._model is not model:
            raise SettingsError(
                "this framework has a model already: make another InstrumentationFramework for this one"
            )
        self._model = model

    @contextmanager
    def capture_activations(
        self,
        output_path: str | os.PathLike[str],
        track_per_token: bool = False,
        checkpoint_interval_tokens: int | None = None,
        checkpoint_path: str | os.PathLike[str] | None = None,
        resume_from_checkpoint: bool = False,
        *,
        tokenizer: TokenDecoder | str | None = None,
    ) -> Iterator[TokenTracker]:
        """Capture the model to a recording while the block runs. A capture around it pauses meanwhile.

        Args:
            output_path: Directory of the recording. It must not exist, unless the capture is resumed.
            track_per_token: Take `record_token`, and write `{output_path}_tokens.json` at the end. All passes of the block over
                one growing sequence are then one request, "generation".
            checkpoint_interval_tokens: Make rows and tokens durable after this many recorded tokens.
            checkpoint_path: File for the tokens meanwhile; by default `{output_path}.ckpt.json`. It is removed at a clean end.
            resume_from_checkpoint: Continue the recording and its tokens.
            tokenizer: A tokenizer or its Hugging Face name. With it the recording has the text of each token.

        Yields:
            The tracker, with `record_token`.

        Raises:
            SettingsError: No model was given, or checkpoints are asked for without `track_per_token`.
            RecordingError: The recording or one of the files cannot be written, or the recording exists already.
        """
        if self._model is None:
            raise SettingsError("capture_activations: no model yet: call instrument_model(model) first")
        if (checkpoint_interval_tokens is not None or resume_from_checkpoint) and not track_per_token:
            raise SettingsError("checkpoints are of recorded tokens: give track_per_token=True as well")
        if checkpoint_interval_tokens is not None and checkpoint_interval_tokens < 1:
            raise SettingsError(f"checkpoint_interval_tokens {checkpoint_interval_tokens}: expected at least 1")
        path = Path(output_path)
        capture = _PausableCapture(
            self._model, path, self._config(), REQUEST if track_per_token else "", tokenizer, resume_from_checkpoint
        )
        checkpoint = path.with_name(f"{path.name}.ckpt.json") if checkpoint_path is None else Path(checkpoint_path)
        tracker = TokenTracker(capture, checkpoint, checkpoint_interval_tokens or 0, track_per_token)
        if resume_from_checkpoint:
            tracker.load_checkpoint()
        with self._inside(capture, tracker):
            yield tracker
        if track_per_token:
            tracker.finish(path)

    @contextmanager
    def _inside(self, capture: _PausableCapture, tracker: TokenTracker) -> Iterator[None]:
        """Run one capture, with the one around it paused. Keep the tokens of one that fails."""
        outer = self._running[-1] if self._running else None
        if outer is not None:
            log.info("%s pauses while %s is captured", outer.path, capture.path)
            outer.pause()
        try:
            capture.start()
            self._running.append(capture)
            self._trackers.append(tracker)
            try:
                yield
            except BaseException as error:
                capture.pause(error)
                if tracker.tokens:
                    tracker.save_checkpoint()
                raise
            finally:
                self._running.pop()
                self._trackers.pop()
            capture.pause()
        finally:
            if outer is not None:
                outer.start()

    def _config(self) -> CaptureConfig:
        config = self.config
        return config.capture_config() if isinstance(config, InstrumentationConfig) else config

    def record_token(
        self, token_id: int, token_text: str = "", position: int | None = None, *, request: str | None = None
    ) -> None:
        """Record a token in the capture that runs: `TokenTracker.record_token`. Raises SettingsError if none runs."""
        if not self._trackers:
            raise SettingsError("record_token: no capture runs")
        self._trackers[-1].record_token(token_id, token_text, position, request=request)

    def analyze_activations(self, stream_path: str | os.PathLike[str]) -> StreamAnalysis:
        """Return counts and sizes of a capture: `actscope.compat.analyze_activations`."""
        config = self.config
        named = config.compression_algorithm if isinstance(config, InstrumentationConfig) else None
        return analyze_activations(stream_path, named or "")


class _PausableCapture:
    """Captures of one model to one recording, one after the other."""

    def __init__(
        self,
        model: nn.Module,
        path: Path,
        config: CaptureConfig,
        request: str,
        tokenizer: TokenDecoder | str | None,
        resume: bool,
    ) -> None:
        self.path = path
        self._model, self._config, self._request, self._tokenizer = model, config, request, tokenizer
        self._resume = resume
        self._stack = ExitStack()
        self._capture: Capture | None = None

    @property
    def running(self) -> Capture:
        """The session that runs. Raises SettingsError while it is paused, and after its end."""
        if self._capture is None:
            raise SettingsError(f"{self.path}: this capture does not run now")
        return self._capture

    def start(self) -> None:
        """Begin, or go on after a pause."""
        session = Capture(self._model, self.path, self._config, resume=self._resume, tokenizer=self._tokenizer)
        self._capture, self._resume = self._stack.enter_context(session), True
        if self._request:
            self._stack.enter_context(session.request(self._request))

    def pause(self, error: BaseException | None = None) -> None:
        """End the session, because of `error` or without one: its rows are in the recording. Idempotent."""
        self._capture = None
        self._stack.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)


@contextmanager
def capture_activations(
    model: nn.Module,
    preset: str | None = None,
    output_path: str | os.PathLike[str] = "output.stream",
    *,
    config: InstrumentationConfig | CaptureConfig | None = None,
    track_per_token: bool = False,
    checkpoint_interval_tokens: int | None = None,
    checkpoint_path: str | os.PathLike[str] | None = None,
    resume_from_checkpoint: bool = False,
    tokenizer: TokenDecoder | str | None = None,
) -> Iterator[InstrumentationFramework]:
    """Capture a model's activations to a recording while the block runs.

    Args:
        model: A transformers model or any torch module.
        preset: Name of a preset; default "balanced".
        output_path: Directory of the recording.
        config: A configuration, instead of a preset.
        track_per_token: As in `InstrumentationFramework.capture_activations`, like the rest.
        checkpoint_interval_tokens: Make rows and tokens durable after this many recorded tokens.
        checkpoint_path: File for the tokens meanwhile.
        resume_from_checkpoint: Continue the recording and its tokens.
        tokenizer: A tokenizer or its Hugging Face name.

    Yields:
        The framework: `record_token`, `analyze_activations`, and `capture_activations` for further captures.

    Raises:
        SettingsError: A setting is invalid, or both `preset` and `config` are given.
        RecordingError: The recording or one of the files cannot be written, or the recording exists already.
    """
    if preset is not None and config is not None:
        raise SettingsError("give a preset or a config, not both")
    framework = InstrumentationFramework(
        config if config is not None else InstrumentationConfig(preset=preset or "balanced")
    )
    framework.instrument_model(model)
    with framework.capture_activations(
        output_path,
        track_per_token,
        checkpoint_interval_tokens,
        checkpoint_path,
        resume_from_checkpoint,
        tokenizer=tokenizer,
    ):
        yield framework


@contextmanager
def _publishing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecordingError(f"{path}: its tokens cannot be written: {error.strerror or error}") from error

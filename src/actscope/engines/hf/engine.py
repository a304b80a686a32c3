"""The engine: one thread that runs the model with continuous batching and passes every step's frames to a sink."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from actscope.clock import monotonic_ns
from actscope.counters import counted, counting, current
from actscope.engines.hf.batch import Running, SequenceBatch, padded_prompts
from actscope.engines.hf.loading import LoadedModel
from actscope.engines.hf.request import FinishReason, Output, Request
from actscope.engines.hf.sampling import Sampler, logprobs_of
from actscope.engines.hf.text import Detokenizer
from actscope.engines.pass_clock import PassClock
from actscope.errors import EngineError, ProbeError, RequestRefused, SettingsError
from actscope.frames import ROW_META, Sink, Span, SpanFlag, Step
from actscope.probes import Bank, Probe, ProbedModel, log_left_out
from actscope.sites import Site
from actscope.taps.attribution import attribute
from actscope.taps.hooks import Taps

log = logging.getLogger("actscope.engine")

T = TypeVar("T")

#: Maximum number of rows of a pass whose logits are all needed: with 150,000 token ids they take 0.15 GB in float32.
_PROMPT_LOGPROBS_ROWS = 256


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Sizes of the engine.

    Attributes:
        max_batch: Maximum number of sequences in a batch.
        max_waiting: Maximum number of queued requests.
        max_step_tokens: Maximum number of rows in one pass, padding included. It sizes the taps' buffers.
        chunk_tokens: Maximum number of prefill tokens (columns x sequences) in one pass while others are decoding.
        probe_width: Number of probe slots.
    """

    max_batch: int = 32
    max_waiting: int = 1024
    max_step_tokens: int = 2048
    chunk_tokens: int = 512
    probe_width: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= self.max_step_tokens:
            raise SettingsError(
                f"max_batch {self.max_batch} must lie between 1 and max_step_tokens {self.max_step_tokens}: "
                "a pass of decoding has one row for each sequence"
            )


@counting("model")
@dataclass(slots=True)
class EngineStats:
    """Counts since start, and the present numbers of `waiting` and `running` requests."""

    steps: int = counted("work", "Passes of the model.")
    rows: int = counted("work", "Rows that were labeled and published, one for each token of a pass.")
    tap_faults: int = counted(
        "fault",
        "Taps that did not run in a pass; the scores and rows of their sites are missing there.",
        "See the engine's log for the names of the sites, and report it.",
    )
    failed_steps: int = counted(
        "fault",
        "Passes that failed; the requests in them ended with an error.",
        "See the engine's log for the error. Out of memory: lower --max-batch or --max-step-tokens.",
    )
    waiting: int = current("Requests that wait for a place in the batch.")
    running: int = current("Requests that run.")


@dataclass(slots=True)
class _Prefill:
    """Prompts in chunked prefill."""

    batch: SequenceBatch
    ids: np.ndarray

    @property
    def remaining(self) -> int:
        return int(self.ids.shape[1]) - self.batch.width


#: A function to call between two steps, and where its result goes.
_Called = tuple[Callable[[], object], Future[Any]]


@dataclass(slots=True)
class _Inbox:
    """Commands of other threads, which the model's thread takes over between steps."""

    waiting: deque[Request] = field(default_factory=deque)
    live: set[str] = field(default_factory=set)  # submitted, and not yet ended
    aborted: set[str] = field(default_factory=set)
    calls: deque[_Called] = field(default_factory=deque)
    closing: bool = False


@dataclass(frozen=True, slots=True)
class _Orders:
    """Commands that the model's thread executes before its next step."""

    calls: deque[_Called]
    aborted: set[str]
    given_up: list[Request]
    admitted: list[Request]


class Engine:
    """Runs requests on one model, on a thread of its own. All methods may be called from any thread.

    Args:
        loaded: The model.
        sink: Receives the frames of every step, on the model's thread.
        deliver: Called on the model's thread with the outputs of one step, after `sink` got the step's frames. It must not
            block.
        probes: Probes loaded at start. One that does not fit the model is logged and left out.
        on_table: Called with (generation, JSON) before the first step of every generation of probes.
        options: Sizes; None for the defaults.

    Raises:
        ProbeError: A probe does not fit the model.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        sink: Sink,
        deliver: Callable[[list[Output]], None],
        probes: Sequence[Probe] = (),
        on_table: Callable[[int, bytes], None] | None = None,
        options: EngineOptions | None = None,
    ) -> None:
        self.loaded = loaded
        self.options = options or EngineOptions()
        self.stats = EngineStats()
        facts = ProbedModel(loaded.name, loaded.revision, loaded.d_model, loaded.n_layers)
        self.bank = Bank(facts, self.options.probe_width)
        self._eos_ids = loaded.eos_ids
        self._forward_options = loaded.last_logits_only
        self._sink = sink
        self._deliver = deliver
        self._on_table = on_table
        self._taps = Taps(loaded.model, width=self.options.probe_width, max_rows=self.options.max_step_tokens)
        for probe in probes:
            try:
                self.bank.put(probe)
            except ProbeError as error:  # it does not fit this model: the others are served
                log_left_out(error)
        self._taps.set_probes(self.bank.items())
        self._publish_table(self.bank)
        self._calls = loaded.calls
        self._clock = PassClock()
        self._batches: list[SequenceBatch] = []
        self._prefill: _Prefill | None = None
        self._inbox = _Inbox()
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="actscope-model", daemon=True)

    def start(self) -> Engine:
        """Start the engine's thread and return the engine."""
        self._thread.start()
        return self

    @property
    def alive(self) -> bool:
        """Whether the model's thread runs."""
        return self._thread.is_alive()

    # --- from any thread -------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises RequestRefused if it does not fit the context, its id is in use, the queue is full, or the engine is closing.
        """
        self.check(len(request.prompt_ids), request.sampling.max_tokens)
        with self._wake:
            if self._inbox.closing:
                raise RequestRefused("the engine is shutting down", code="shutting_down")
            if request.id in self._inbox.live:
                raise RequestRefused(f"a request {request.id!r} is in flight already; choose another id")
            if len(self._inbox.waiting) >= self.options.max_waiting:
                raise RequestRefused(f"{self.options.max_waiting} requests wait already; try later", code="overloaded")
            self._inbox.live.add(request.id)
            self._inbox.waiting.append(request)
            self._wake.notify()

    def check(self, n_prompt: int, max_tokens: int) -> None:
        """Raise RequestRefused unless a prompt and its answer fit the context, and the prompt fits the passes."""
        limit = self.loaded.max_context
        if n_prompt < 1:
            raise RequestRefused("the prompt has no tokens; send at least one", param="messages")
        if n_prompt + max_tokens > limit:
            raise RequestRefused(
                f"This model's maximum context length is {limit} tokens; the prompt has {n_prompt} and max_tokens asks "
                f"for {max_tokens}. Shorten the messages or lower max_tokens.",
                param="messages",
                code="context_length_exceeded",
            )
        if not self.loaded.calls.chunks and n_prompt > self.options.max_step_tokens:
            raise RequestRefused(
                f"the prompt has {n_prompt} tokens. This model's state is right only if a prompt runs in one pass, which has at "
                f"most {self.options.max_step_tokens} tokens: start the engine with a larger --max-step-tokens",
                param="messages",
                code="context_length_exceeded",
            )

    def has(self, request_id: str) -> bool:
        """Return whether this request was submitted and has not ended. It may still be queued."""
        with self._wake:
            return request_id in self._inbox.live

    def abort(self, request_id: str) -> None:
        """Stop a request before the next step. Unknown ids are ignored, as the request may just have ended."""
        with self._wake:
            self._inbox.aborted.add(request_id)
            self._wake.notify()

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run a function on the model's thread, between two steps. Raises EngineError if the engine is closing."""
        future: Future[T] = Future()
        with self._wake:
            if self._inbox.closing:
                raise EngineError("the engine is shutting down")
            self._inbox.calls.append((function, future))
            self._wake.notify()
        return future

    def put_probe(self, probe: Probe) -> Future[int]:
        """Add or replace a probe from the next step on. The future's result is the probe's column.

        The future raises ProbeError or SiteError if the probe does not fit; nothing is changed then.
        """
        return self.call(lambda: self._change_bank(lambda bank: bank.put(probe)))

    def remove_probe(self, probe_id: str) -> Future[None]:
        """Remove a probe from the next step on. The future raises ProbeError if there is no probe with that id."""
        return self.call(lambda: self._change_bank(lambda bank: bank.remove(probe_id)))

    def keep_rows(self, sites: Sequence[Site]) -> Future[None]:
        """Pass the rows of these sites to the sink from the next step on."""
        return self.call(lambda: self._taps.keep_rows(sites))

    def close(self) -> None:
        """Abort all requests, stop the thread and detach the taps."""
        with self._wake:
            self._inbox.closing = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._taps.detach()

    # --- on the model's thread -------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            while (orders := self._take_orders()) is not None:
                try:
                    self._obey(orders)
                    self._iterate()
                except Exception as error:  # a failing request must not end the engine for others
                    self.stats.failed_steps += 1
                    log.exception("a step failed; its requests are ended with an error")
                    self._end_running("error", f"{type(error).__name__}: {error}")
        finally:
            self._end_all()

    def _take_orders(self) -> _Orders | None:
        """Wait for work and return the commands to execute before the next step, or None when the engine is closing."""
        with self._wake:
            inbox = self._inbox
            while not (self._busy() or inbox.calls or inbox.waiting or inbox.closing):
                inbox.aborted.clear()
                self._wake.wait()
            if inbox.closing:
                return None
            calls, inbox.calls = inbox.calls, deque()
            aborted, inbox.aborted = inbox.aborted, set()
            given_up = [r for r in inbox.waiting if r.id in aborted]
            inbox.waiting = deque(r for r in inbox.waiting if r.id not in aborted)
            orders = _Orders(calls, aborted, given_up, self._admissible())
            self.stats.waiting = len(inbox.waiting)
        return orders

    def _obey(self, orders: _Orders) -> None:
        self._emit([Output(r.id, finish_reason="abort") for r in orders.given_up])
        self._drop(orders.aborted)
        self._admit(orders.admitted)
        for function, future in orders.calls:
            _settle(future, function)

    def _busy(self) -> bool:
        return bool(self._batches or self._prefill)

    @property
    def _n_running(self) -> int:
        return sum(len(batch.sequences) for batch in self._batches)

    def _admissible(self) -> list[Request]:
        if self._prefill is not None:
            return []
        room = self.options.max_batch - self._n_running
        if self._calls.batching != "padded":
            room = min(room, 1)  # a recurrent state takes no padding: each prompt runs by itself
        return [self._inbox.waiting.popleft() for _ in range(min(room, len(self._inbox.waiting)))]

    def _admit(self, requests: list[Request]) -> None:
        if not requests:
            return
        running = [self._sequence(r) for r in requests]
        ids, padding = padded_prompts(running, pad_id=self.loaded.tokenizer.pad_token_id or 0)
        self._prefill = _Prefill(SequenceBatch(padding, self._calls, sequences=running), ids)

    def _sequence(self, request: Request) -> Running:
        params, prompt = request.sampling, request.prompt_ids
        ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos_ids)
        text = Detokenizer(
            self.loaded.tokenizer._tokenizer,
            prompt,
            params.stop,
            skip_special=params.skip_special_tokens,
            include_stop=params.include_stop_str_in_output,
        )
        return Running(request, Sampler(params, prompt, ends), text)

    def _iterate(self) -> None:
        if self._prefill is not None:
            self._prefill_chunk(self._prefill)
        for batch in self._batches:
            self._clock.scheduled()
            ids = np.array([[s.next_id] for s in batch.sequences], np.int64)
            self._advance(batch, self._step(batch, ids))
        self._forget_empty()
        self.stats.running = self._n_running

    def _forget_empty(self) -> None:
        self._batches = [batch for batch in self._batches if batch.sequences]

    def _prefill_chunk(self, prefill: _Prefill) -> None:
        self._clock.scheduled()
        budget = self.options.chunk_tokens if self._batches else self.options.max_step_tokens
        start, n = prefill.batch.width, max(1, budget // len(prefill.batch.sequences))
        scored = any(s.request.sampling.prompt_logprobs is not None for s in prefill.batch.sequences)
        if scored:
            n = max(1, min(n, _PROMPT_LOGPROBS_ROWS // len(prefill.batch.sequences)))
        if not self._calls.chunks:
            n = prefill.remaining
        logits = self._step(prefill.batch, prefill.ids[:, start : start + n], all_columns=scored)
        if scored:
            _add_prompt_logprobs(prefill.batch, logits, start)
            logits = logits[:, -1]
        if prefill.remaining > 0:
            return
        self._prefill = None
        self._advance(prefill.batch, logits)
        if prefill.batch.sequences:
            self._enter(prefill.batch)

    def _enter(self, batch: SequenceBatch) -> None:
        """Let the sequences of a batch decode: with the others, or in passes of their own."""
        if self._batches and self._calls.batching != "alone":
            self._batches[0].join(batch)
        else:
            self._batches.append(batch)

    def _step(self, batch: SequenceBatch, ids: np.ndarray, *, all_columns: bool = False) -> torch.Tensor:
        """Run one pass over the next columns of a batch, label its rows and publish them.

        Returns:
            The logits of the last column, or with `all_columns` of all columns of this pass.
        """
        lanes, start = batch.lanes(), batch.width
        self._taps.begin()
        options = {} if all_columns else self._forward_options
        self._clock.begun()
        logits = batch.forward(self.loaded.model, np.ascontiguousarray(ids), **options)
        logits = logits if all_columns else logits[:, -1]
        self.stats.steps += 1
        labels = attribute(lanes, ids, start, self.stats.steps)
        frames = self._taps.frames(labels.index)
        self._clock.ended()
        self.stats.rows += len(labels.index)
        self.stats.tap_faults = self._taps.faults
        times = self._clock.times()
        step = Step(self.stats.steps, monotonic_ns(), labels.spans, labels.meta, self.bank.generation, times=times)
        self._sink.write(step, frames)
        return logits

    def _advance(self, batch: SequenceBatch, logits: torch.Tensor) -> None:
        """Draw a token for each sequence, deliver the outputs, and remove the sequences that have ended."""
        self._clock.sampling()
        greedy = logits.argmax(dim=-1).tolist()
        outputs = [self._output(s, row, best) for s, row, best in zip(batch.sequences, logits, greedy, strict=True)]
        self._clock.sampled()
        staying = [i for i, output in enumerate(outputs) if output.finish_reason is None]
        ended = [s for s, output in zip(batch.sequences, outputs, strict=True) if output.finish_reason is not None]
        if ended:
            self._publish_end(ended)
            batch.keep(staying)
        self._emit(outputs)

    def _output(self, sequence: Running, logits: torch.Tensor, greedy: int) -> Output:
        params, sampler = sequence.request.sampling, sequence.sampler
        try:
            token = sampler.draw(logits, greedy)
            sequence.next_id = token
            hidden = token in sampler.ends and not params.include_stop_str_in_output
            may_stop = len(sampler.generated) > params.min_tokens
            text = "" if hidden else sequence.text.push(token, may_stop=may_stop)
            logprobs = () if params.logprobs is None else logprobs_of(logits[None], [token], params.logprobs)
        except Exception as error:  # affects this sequence only: non-finite logits, a decoder's failure
            log.exception("request %s failed", sequence.request.id)
            return Output(sequence.request.id, finish_reason="error", error=f"{type(error).__name__}: {error}")
        reason = self._finish_reason(sequence, token)
        if reason is not None and not sequence.text.stopped:
            text += sequence.text.finish()
        stop = sequence.text.stop_string or (token if reason == "stop" and token in params.stop_token_ids else None)
        return Output(
            sequence.request.id,
            (token,),
            text,
            reason,
            stop,
            logprobs=logprobs,
            prompt_logprobs=sequence.take_prompt_logprobs(),
        )

    def _finish_reason(self, sequence: Running, token: int) -> FinishReason | None:
        if sequence.text.stopped or token in sequence.sampler.ends:
            return "stop"
        return "length" if len(sequence.sampler.generated) >= sequence.request.sampling.max_tokens else None

    def _publish_end(self, ended: Sequence[Running], flags: SpanFlag = SpanFlag.END) -> None:
        spans = tuple(Span(s.request.id, s.n_prompt + len(s.sampler.generated), 0, 0, flags, s.n_prompt) for s in ended)
        times = self._clock.sampling_only()
        step = Step(self.stats.steps, monotonic_ns(), spans, np.empty(0, ROW_META), self.bank.generation, times=times)
        self._sink.write(step, self._taps.frames_of_none())

    def _drop(self, aborted: set[str]) -> None:
        for batch in self._all_batches() if aborted else []:
            gone = [s for s in batch.sequences if s.request.id in aborted]
            if gone:
                self._leave(batch, gone)
        self._forget_empty()

    def _all_batches(self) -> list[SequenceBatch]:
        return [*self._batches, *([self._prefill.batch] if self._prefill else [])]

    def _leave(self, batch: SequenceBatch, gone: Sequence[Running]) -> None:
        staying = [i for i, s in enumerate(batch.sequences) if s not in gone]
        trimmed = batch.keep(staying)
        if self._prefill is not None and batch is self._prefill.batch:
            self._prefill = _Prefill(batch, self._prefill.ids[staying, trimmed:]) if staying else None
        self._publish_end(gone, SpanFlag.END | SpanFlag.ABORTED)
        self._emit([Output(s.request.id, finish_reason="abort") for s in gone])

    def _end_running(self, reason: FinishReason, message: str | None = None) -> None:
        gone = [sequence for batch in self._all_batches() for sequence in batch.sequences]
        self._batches, self._prefill = [], None
        if gone:
            self._publish_end(gone, SpanFlag.END | SpanFlag.ABORTED)
            self._emit([Output(s.request.id, finish_reason=reason, error=message) for s in gone])

    def _end_all(self) -> None:
        """Complete everything that someone may wait for: running requests, queued requests, and pending calls."""
        with self._wake:
            self._inbox.closing = True
            waiting, self._inbox.waiting = self._inbox.waiting, deque()
            calls, self._inbox.calls = self._inbox.calls, deque()
        self._end_running("abort")
        self._emit([Output(r.id, finish_reason="abort") for r in waiting])
        for _, future in calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(EngineError("the engine is shutting down"))

    def _emit(self, outputs: list[Output]) -> None:
        ended = {output.request for output in outputs if output.finish_reason is not None}
        if ended:
            with self._wake:
                self._inbox.live -= ended
        if outputs:
            self._deliver(outputs)

    def _change_bank(self, change: Callable[[Bank], T]) -> T:
        """Apply a change of the probes atomically: to a copy, which replaces the bank once taps and table are updated."""
        changed = self.bank.copy()
        result = change(changed)
        self._taps.set_probes(changed.items())
        try:
            self._publish_table(changed)
        except Exception:
            self._taps.set_probes(self.bank.items())
            raise
        self.bank = changed
        return result

    def _publish_table(self, bank: Bank) -> None:
        if self._on_table is not None:
            self._on_table(bank.generation, bank.table())


def _add_prompt_logprobs(batch: SequenceBatch, logits: torch.Tensor, start: int) -> None:
    """Add the log-probabilities of prompt tokens that a pass predicts. logits: [lanes, n, vocabulary] from column `start`."""
    for lane, (sequence, padding) in enumerate(zip(batch.sequences, batch.padding, strict=True)):
        n_top = sequence.request.sampling.prompt_logprobs
        first = max(start - padding, 0)  # position of the first row here
        tokens = sequence.request.prompt_ids[first + 1 : max(start + logits.shape[1] - padding + 1, 0)]
        if n_top is not None and tokens:
            rows = logits[lane, first + padding - start :][: len(tokens)]
            sequence.prompt_logprobs += logprobs_of(rows, tokens, n_top)


def _settle(future: Future[T], function: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except Exception as error:  # the caller's error, raised where it waits for the result
        future.set_exception(error)

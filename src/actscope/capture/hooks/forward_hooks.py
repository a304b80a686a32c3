"""Forward hooks: label every forward pass of a model before its layers run, and forward its rows.

    pre-hook of the model   read arguments, label, begin(step)          ┐
    hook of each site       one copy of the selected rows, put()        ├ one pass, on the thread that runs the model
    hook of the model       end(step): complete, or not if it raised    ┘

A pass ends as incomplete if it raises or its labels turn out to be ambiguous. None of its rows is delivered.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from types import FrameType
from typing import TypeVarTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from actscope.capture.device_copy import Handover
from actscope.capture.hooks.compiled import EAGER
from actscope.capture.hooks.first_pass import FirstPassCheck
from actscope.capture.hooks.running_pass import Orientation, Pass
from actscope.capture.labels import ambiguity as doubt
from actscope.capture.labels.ambiguity import Ambiguity, AmbiguousLabels
from actscope.capture.labels.cache_state import cache_in
from actscope.capture.labels.entries import entries_of, keeps_state, numbers_in, same_inputs
from actscope.capture.labels.forward_inputs import ForwardInputs, read, tokens_of
from actscope.capture.labels.generate_calls import GenerateCall, PrepareCall, Prepared
from actscope.capture.labels.item_labels import ItemLabels
from actscope.capture.labels.kv_cache_watch import CACHES, CacheChange
from actscope.capture.labels.scopes import Scopes, Story, generation_of
from actscope.capture.labels.token_labels import Labelled, TokenLabels
from actscope.capture.stats import StatsCounter
from actscope.clock import monotonic_ns
from actscope.errors import RecordingError, RecordingPoisoned
from actscope.frames import ROW_META, SpanFlag, Step
from actscope.sites import Site
from actscope.taps.anatomy import Location
from actscope.taps.rows import RowTaps, tensor_of

log = logging.getLogger("actscope.capture")

Ts = TypeVarTuple("Ts")

_STOPPED = Ambiguity("the recording takes no more rows", "see the error in the log")
_REFUSED = Ambiguity("the recording did not take these rows", "see the error in the log")


class _Current(threading.local):
    """The pass that this thread is running."""

    one: Pass | None = None


class ForwardHooks:
    """Hooks on one model, active from `attach` to `detach`. Several threads may run the model at once, one pass each."""

    def __init__(
        self,
        model: nn.Module,
        places: Mapping[Site, Location],
        tokens: TokenLabels,
        handover: Handover,
        counter: StatsCounter,
        *,
        raises: bool = False,
        check: FirstPassCheck | None = None,
    ) -> None:
        self.model = model
        self.scopes = Scopes()
        self._tokens = tokens
        self._items = ItemLabels(tokens.requests, tokens.granularity)
        self._handover = handover
        self._counter = counter
        self._raises = raises
        self._signatures = entries_of(model, places.values())
        self._by_tokens = bool(self._signatures)
        self._entries = {entry: numbers_in(entry, places.values()) for entry in self._signatures or (model,)}
        self._orientation = Orientation(model, self._signatures)
        self._taps = RowTaps(places, _not_compiled(self._on_rows))
        self._names = [site.name for site in places]
        self._off: dict[int, Ambiguity] = {}
        self._check = check
        self._stopped = False
        self._hooks: list[RemovableHandle] = []
        self._wrapped: list[tuple[nn.Module, str, object]] = []
        self._eager = False
        self._numbers = itertools.count(1)
        self._current = _Current()

    # --- attach and detach ----------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Register all hooks, wrap `generate`, and bypass compiled code, which does not call hooks."""
        EAGER.hold()
        self._eager = True
        enter, leave = _not_compiled(self._on_enter), _not_compiled(self._on_leave)
        for entry in self._entries:
            self._hooks.append(entry.register_forward_pre_hook(enter, with_kwargs=True))
            self._hooks.append(entry.register_forward_hook(leave, with_kwargs=True, always_call=True))
        for entry in dict.fromkeys((*self._entries, self.model)):
            self._wrap_generate(entry)
        self._taps.attach()
        _ATTACHED.add(self)
        CACHES.subscribe(self._on_cache)

    def detach(self) -> None:
        """Remove all hooks. A running pass on this thread ends as incomplete."""
        CACHES.unsubscribe(self._on_cache)
        self.unhook()
        if self._check is not None:
            self._check.detach()
        if self._current.one is not None:
            self._guarded("ending a pass", self._end, self._current.one, False)

    def unhook(self) -> None:
        """Remove hooks and wrappers from the model. Leaves running passes and subscriptions alone."""
        _ATTACHED.discard(self)
        self._taps.detach()
        for hook in self._hooks:
            hook.remove()
        for entry, name, before in self._wrapped:
            if before is None:
                entry.__dict__.pop(name, None)
            else:
                entry.__dict__[name] = before
        self._hooks, self._wrapped = [], []
        if self._eager:
            self._eager = False
            EAGER.release()

    def finish(self, *, aborted: bool = False) -> None:
        """Emit END spans for all open requests, flagged ABORTED if `aborted`."""
        requests = self._tokens.requests
        requests.close_all(aborted=aborted)
        spans = tuple(requests.take_ended(0))
        if spans and not self._stopped:
            step = Step(next(self._numbers), monotonic_ns(), spans, _no_rows())
            self._guarded("ending requests", self._send_empty, step)

    def _send_empty(self, step: Step) -> None:
        self._handover.begin(step)
        self._handover.end(step)

    @property
    def latest(self) -> Pass | None:
        """The pass that this thread is running, or None."""
        return self._current.one

    # --- scopes -----------------------------------------------------------------------------------------------------------

    @contextmanager
    def request(self, ids: str | Sequence[str]) -> Iterator[None]:
        """Assign the passes in this context, on this thread, to these requests."""
        with self.scopes.request(ids) as story, self._closing(story):
            yield

    @contextmanager
    def _closing(self, story: Story | None) -> Iterator[None]:
        aborted = True
        try:
            yield
            aborted = False
        finally:
            if story is not None:
                self._tokens.requests.close(story, aborted=aborted)

    def _wrap_generate(self, entry: nn.Module) -> None:
        generate = getattr(entry, "generate", None)
        if not callable(generate):
            return
        self._wrap(entry, "generate", GenerateCall(self, entry, generate))
        prepare = getattr(entry, "prepare_inputs_for_generation", None)
        if callable(prepare):
            self._wrap(entry, "prepare_inputs_for_generation", PrepareCall(self, prepare))

    def _wrap(self, entry: nn.Module, name: str, wrapper: object) -> None:
        self._wrapped.append((entry, name, entry.__dict__.get(name)))
        entry.__dict__[name] = wrapper

    def prepared(self, found: Prepared | None) -> None:
        """Note what `generate` prepared for the next pass of this thread."""
        self.scopes.prepared = found

    @contextmanager
    def generation(
        self, entry: nn.Module, args: Sequence[object], kwargs: dict[str, object]
    ) -> Iterator[Callable[[object], bool]]:
        """Assign the passes in this context to one call of `generate`. Yields a function to call with its result."""
        try:
            generation = generation_of(entry, args, kwargs)
        except Exception:  # if the arguments are wrong, the call itself raises
            self._counter.fault("reading what generate is called with")
            generation = None
        with self.scopes.generate(generation) as story, self._closing(story):
            try:
                yield lambda result: self._guarded("reading what generate gave back", self._settle, result)
            finally:
                self.scopes.prepared = None

    def _settle(self, result: object) -> None:
        story = self.scopes.current.story
        returned = getattr(result, "sequences", result)
        if story is not None and story.latest is not None and isinstance(returned, Tensor) and returned.ndim == 2:
            story.latest.settle(returned.cpu().numpy())

    # --- hooks ------------------------------------------------------------------------------------------------------------

    def _on_enter(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if module not in self._entries:  # a copy of the model carries these hooks too
            return
        current = self._current.one
        if current is not None and _on_stack(current.frame):
            current.depth += module is current.entry
            self._guarded("following a part of the model", self._enter_inner, current, module, args, kwargs)
            return
        if current is not None:  # the earlier pass was interrupted where no hook runs
            self._guarded("ending a pass", self._end, current, False)
        opened = Pass(module, _caller(), sys.exc_info()[1], self.scopes.current)
        self._current.one = opened
        if self._stopped:
            opened.doubt = _STOPPED
        elif not self._guarded("labelling a pass", self._begin, opened, module, args, kwargs):
            opened.doubt = opened.doubt or doubt.FAULT

    def _on_leave(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object) -> None:
        current = self._current.one
        if current is None or current.entry is not module:
            return
        if current.depth:
            current.depth -= 1
            return
        error = sys.exc_info()[1]
        raised = error is not None and error is not current.raised
        self._guarded("ending a pass", self._end, current, not raised, output)

    def _on_rows(self, number: int, value: object) -> None:
        if number in self._off:
            self._guarded("counting rows", self._count_off, number, value)
            return
        if not self._guarded(f"the tap at {self._names[number]}", self._take, number, value):
            self._off[number] = doubt.FAULT

    def _count_off(self, number: int, value: object) -> None:
        """Count the rows at a tap that is disabled after a failure, or because its point was refused."""
        hidden = tensor_of(value)
        self._counter.unowned(self._off[number], prod(hidden.shape[:-1]), self._names[number])

    def _on_cache(self, cache: object, change: CacheChange) -> None:
        sequences = self._tokens.requests.of(cache)
        if sequences is None:
            return
        if change.removed is not None:
            sequences.crop_state(change.removed)
        elif change.lanes is None:
            sequences.trouble, sequences.sample = doubt.CACHE_SPLIT, None
        elif not self._guarded("following a cache", sequences.select, change.lanes):
            sequences.trouble = doubt.FAULT

    def _guarded(self, what: str, do: Callable[[*Ts], None], *args: *Ts) -> bool:
        """Call `do` and return False if it failed. Only policy "error" lets a RecordingError reach the user's model."""
        try:
            do(*args)
        except RecordingError as error:
            if self._raises:
                raise
            if isinstance(error, RecordingPoisoned):
                self._stop(error)
                return True
            self._counter.fault(what)
            return True  # the recorder may accept later rows
        except Exception:
            self._counter.fault(what)
            return False
        return True

    def _stop(self, error: Exception) -> None:
        if not self._stopped:
            self._stopped = True
            if self._handover.sink.failure is None:  # a Recorder logs its own failure
                log.error("recording has stopped, the model goes on: %s", error)

    # --- a pass -----------------------------------------------------------------------------------------------------------

    def _begin(self, opened: Pass, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        self._counter.add(passes=1)
        if not self._by_tokens:
            tensor = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
            opened.items = tensor.shape[0] if tensor is not None and tensor.ndim else 0
            opened.doubt = None if opened.items else doubt.NO_INPUT
            return
        try:
            opened.inputs = self._read(module, args, kwargs)
            labelled = self._tokens.label(opened.inputs, opened.scope, next(self._numbers))
        except AmbiguousLabels as uncertain:
            opened.doubt = uncertain.doubt
            self._refuse(uncertain.doubt)
            return
        self._open_step(opened, labelled)

    def _read(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> ForwardInputs:
        """Read the inputs of a pass. Raises AmbiguousLabels if they do not determine exact labels."""
        signature = self._signatures[module]
        arguments = signature.named(args, kwargs)
        tensor = tokens_of(arguments)
        if not signature.takes_cache and tensor is not None and tensor.shape[1] == 1 and keeps_state(module):
            raise AmbiguousLabels(doubt.STATE_CACHE)
        return read(arguments, self._tokens.requests.columns_in, self.scopes.prepared)

    def _refuse(self, reason: Ambiguity) -> None:
        """Raise RecordingError under policy "error": the user wants no pass without its rows."""
        if self._raises:
            raise RecordingError(
                f"the rows of a pass are not recorded, because {reason.name}; to have them: {reason.advice}"
            )

    def _open_step(self, opened: Pass, labelled: Labelled) -> None:
        self._handover.begin(labelled.step)
        opened.labelled = labelled
        check = self._check if labelled.step.n_rows else None
        if check is not None and not self._guarded("checking the first pass", self._begin_check, check, opened):
            opened.doubt = doubt.FAULT

    def _enter_inner(
        self, current: Pass, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        """Check that a nested call of the model or of a part of it belongs to the same pass."""
        if current.doubt is not None:
            return
        if module is current.entry:
            current.doubt = doubt.RECURSION
        elif not self._by_tokens or current.inputs is None:
            return
        elif id(module) in current.inner or not same_inputs(current.inputs, self._signatures[module], args, kwargs):
            current.doubt = doubt.INNER_DIFFERS
        current.inner.add(id(module))

    def _take(self, number: int, value: object) -> None:
        hidden = tensor_of(value)
        rows = prod(hidden.shape[:-1]) if hidden.ndim else 0
        current = self._current.one
        if current is None:
            self._counter.unowned(doubt.OUTSIDE, rows, self._names[number])
            return
        current.ran.add(number)
        if self._stopped:
            current.doubt = current.doubt or _STOPPED
        if current.doubt is None and not self._by_tokens and current.labelled is None:
            self._label_items(current, hidden)
        reason = current.doubt or _misfit(current, number, hidden)
        if reason is None and current.labelled is not None:
            reason = self._orientation.doubt_of(number, tuple(hidden.shape[:-1]), current.labelled.shape)
        if reason is not None:
            self._counter.unowned(reason, rows, self._names[number])
            return
        current.fired.add(number)
        self._hand_over(current, number, hidden)

    def _label_items(self, current: Pass, hidden: Tensor) -> None:
        """Label the pass by the leading dimensions of the first site that fires."""
        if hidden.ndim >= 2 and hidden.shape[0] == current.items:
            number = next(self._numbers)
            try:
                self._open_step(current, self._items.label(tuple(hidden.shape[:-1]), current.scope, number))
            except AmbiguousLabels as uncertain:
                current.doubt = uncertain.doubt

    def _hand_over(self, current: Pass, number: int, hidden: Tensor) -> None:
        labelled = current.labelled
        assert labelled is not None
        if not labelled.step.n_rows:
            return
        rows = _copy(hidden, current.chosen(hidden.device))
        if self._check is not None and self._check.holds_back(current, rows.nbytes):
            current.held.append((number, rows))
        else:
            self._put(current, labelled, number, rows)

    def _put(self, current: Pass, labelled: Labelled, number: int, rows: Tensor) -> None:
        try:
            self._handover.put(labelled.step, self._names[number], rows)
        except RecordingError as error:
            reason = _STOPPED if isinstance(error, RecordingPoisoned) else _REFUSED
            self._counter.unowned(reason, len(rows), self._names[number])
            raise
        current.handed.add(number)
        current.handed_rows += len(rows)
        current.handed_bytes += rows.nbytes

    def _end(self, current: Pass, complete: bool, output: object = None) -> None:
        self._current.one = None
        silent = complete and current.doubt is None and self._check_silent(current)
        labelled = current.labelled
        if self._check is not None:
            if not self._guarded("checking the first pass", self._end_check, self._check, current, complete):
                self._check = None
            self._guarded("handing over the first pass", self._release, current)
        whole = complete and current.doubt is None
        if labelled is None:
            self._counter.add(incomplete_passes=int(not whole))
        else:
            self._close_step(current, labelled, whole, output)
        reason = doubt.SILENT if silent else current.doubt
        if complete and reason is not None and not self._stopped:
            self._refuse(reason)

    def _check_silent(self, current: Pass) -> bool:
        """Count the rows of sites that did not fire, and return whether there are any. If none fired, the pass is incomplete."""
        silent = [number for number in self._entries[current.entry] if number not in current.ran | self._off.keys()]
        rows = current.items if current.labelled is None else current.labelled.step.n_rows
        for number in silent:
            self._counter.unowned(doubt.SILENT, rows, self._names[number])
        if silent and len(silent) == len(self._entries[current.entry]):
            current.doubt = doubt.SILENT
        return bool(silent)

    def _close_step(self, current: Pass, labelled: Labelled, whole: bool, output: object) -> None:
        if not whole:
            self._counter.add(incomplete_passes=1)
            self._tokens.requests.take_back(labelled.step)
            if current.doubt is not None:
                self._counter.unowned(current.doubt, current.handed_rows)
        else:
            self._count(current, labelled)
        try:
            self._handover.end(labelled.step, whole)
        finally:
            if whole:
                self._go_on(current, labelled, output)
        if current.refused and self._raises:
            raise RecordingError(current.refused)

    def _begin_check(self, check: FirstPassCheck, opened: Pass) -> None:
        if not check.begin(opened):
            opened.doubt = doubt.UNCHECKED

    def _end_check(self, check: FirstPassCheck, current: Pass, complete: bool) -> None:
        """Take what the first pass showed: points that are not what their names say give no rows, in this pass neither."""
        refused = check.end(current, complete)
        if check.done:
            self._check = None
        for name, why in refused.items():
            log.error("%s is refused and gives no rows, because %s", name, why)
            self._off[self._names.index(name)] = doubt.UNTRUE
        if refused:
            current.refused = "; ".join(f"{name} is refused, because {why}" for name, why in refused.items())
        if current.handed & self._off.keys():  # too many rows to hold them back: none of this pass is delivered
            current.doubt = current.doubt or doubt.UNTRUE

    def _release(self, current: Pass) -> None:
        """Hand over the rows that were held back for the check, but those of refused points."""
        held, current.held = current.held, []
        for number, rows in held:
            if number in self._off:
                self._counter.unowned(self._off[number], len(rows), self._names[number])
            elif current.labelled is not None:
                self._put(current, current.labelled, number, rows)

    def _count(self, current: Pass, labelled: Labelled) -> None:
        self._counter.add(
            tokens=labelled.step.n_rows,
            left_out_tokens=labelled.left_out,
            after_end_tokens=labelled.after_end,
            requests=sum(bool(span.flags & SpanFlag.FIRST) for span in labelled.step.spans),
            rows=current.handed_rows,
            bytes=current.handed_bytes,
        )

    def _go_on(self, current: Pass, labelled: Labelled, output: object) -> None:
        if current.inputs is None:
            self._items.finish(labelled, current.scope)
        else:
            cache = current.inputs.cache if current.inputs.cache is not None else cache_in(output)
            self._tokens.finish(labelled, current.inputs, current.scope, cache)


#: Instances whose hooks are attached to a model.
_ATTACHED: weakref.WeakSet[ForwardHooks] = weakref.WeakSet()


def _after_fork() -> None:
    """Remove all hooks in a forked child. It has none of our threads, and the recording belongs to its parent."""
    for passes in list(_ATTACHED):
        passes.unhook()


os.register_at_fork(after_in_child=_after_fork)


def _misfit(current: Pass, number: int, hidden: Tensor) -> Ambiguity | None:
    if current.labelled is None:
        return doubt.SHAPE
    if number in current.fired:
        return doubt.TWICE
    shape = current.labelled.shape
    return None if tuple(hidden.shape[:-1]) in (shape, (prod(shape),)) else doubt.SHAPE


def _copy(hidden: Tensor, index: Tensor | None) -> Tensor:
    """Return rows [n, d] as a contiguous copy, detached from autograd."""
    flat = hidden.detach().reshape(-1, hidden.shape[-1])
    if index is not None:
        return flat.index_select(0, index)
    return flat.clone(memory_format=torch.contiguous_format)


def _not_compiled(hook: Callable[..., None]) -> Callable[..., None]:
    """Exclude a hook from torch.compile, so that it runs between compiled graphs. Costs 0.6 µs per call."""
    disabled: Callable[..., None] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    return disabled


def _caller() -> FrameType:
    """Return the frame that runs the module whose hook is being called."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (frame.f_code.co_filename == __file__ or "_dynamo" in frame.f_code.co_filename):
        frame = frame.f_back
    assert frame is not None
    return frame


def _on_stack(frame: FrameType) -> bool:
    above: FrameType | None = sys._getframe(1)
    while above is not None and above is not frame:
        above = above.f_back
    return above is frame


def _no_rows() -> np.ndarray:
    return np.zeros(0, ROW_META)

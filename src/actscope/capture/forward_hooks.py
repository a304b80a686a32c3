"""Forward hooks: label every forward pass of a model before its layers run, and forward its rows.

    pre-hook of the model   read arguments, label, begin(step)          ┐
    hook of each site       one copy of the selected rows, put()        ├ one pass, on the thread that runs the model
    hook of the model       end(step): complete, or not if it raised    ┘

A pass ends as incomplete if it raises or its labels turn out to be ambiguous. None of its rows is delivered.
"""

from __future__ import annotations

import copy
import functools
import itertools
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from types import FrameType
from typing import TypeVarTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from actscope.capture.device_copy import Handover
from actscope.capture.first_pass import FirstPassCheck
from actscope.capture.labels import ambiguity as doubt
from actscope.capture.labels.ambiguity import Ambiguity, AmbiguousLabels
from actscope.capture.labels.forward_inputs import ForwardInputs, Signature, read, same_columns, tokens_of
from actscope.capture.labels.item_labels import ItemLabels
from actscope.capture.labels.kv_cache_watch import CACHES
from actscope.capture.labels.scopes import Scope, Scopes, Story, generation_of
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

#: transformers model types whose blocks, or parts of them, take [time, batch, d].
_TIME_FIRST = {"xlnet", "transfo-xl", "fsmt", "chatglm", "longformer", "led"}

_STOPPED = Ambiguity("the recording takes no more rows", "see the error in the log")
_REFUSED = Ambiguity("the recording did not take these rows", "see the error in the log")


@dataclass(slots=True, eq=False)
class Pass:
    """A running forward pass."""

    entry: nn.Module
    frame: FrameType
    raised: BaseException | None
    """The exception that was already being handled when the pass began."""
    scope: Scope
    inputs: ForwardInputs | None = None
    items: int = 0
    labelled: Labelled | None = None
    doubt: Ambiguity | None = None
    depth: int = 0
    """Number of nested calls of the entry module."""
    inner: set[int] = field(default_factory=set)
    fired: set[int] = field(default_factory=set)
    held: list[tuple[int, Tensor]] = field(default_factory=list)
    """Sites and rows that wait for the truth check at the end of the pass."""
    handed: set[int] = field(default_factory=set)
    handed_rows: int = 0
    handed_bytes: int = 0
    refused: str = ""
    """Points that the first pass showed to be wrong, and why."""
    index: dict[torch.device, Tensor] = field(default_factory=dict)

    def chosen(self, device: torch.device) -> Tensor | None:
        """Return the indices (int64 [n]) of the rows to take, on `device`; None for all rows."""
        assert self.labelled is not None
        if self.labelled.index is None:
            return None
        if device not in self.index:
            self.index[device] = torch.from_numpy(self.labelled.index).to(device, non_blocking=True)
        return self.index[device]


class Orientation:
    """Whether the rows of a site are laid out [batch, time] or [time, batch].

    If batch and time are equal in length, only another pass can show which. Models of transformers are [batch, time], except
    `_TIME_FIRST`. A module that takes no tokens is [batch, time] unless one of its parts sets `batch_first` to False.
    Thread-safe.
    """

    def __init__(self, model: nn.Module, entries: Collection[nn.Module]) -> None:
        kinds = {getattr(getattr(module, "config", None), "model_type", "") for module in (model, *entries)}
        known = any(base.__module__.startswith("transformers.") for module in entries for base in type(module).__mro__)
        says_otherwise = any(getattr(module, "batch_first", True) is False for module in model.modules())
        self._certain = not kinds & _TIME_FIRST and not says_otherwise and (known or not entries)
        self._seen: set[int] = set()

    def doubt_of(self, number: int, found: tuple[int, ...], shape: tuple[int, ...]) -> Ambiguity | None:
        """Return why rows of leading dimensions `found` are ambiguous, or None. `shape` is the pass's [batch, time]."""
        if self._certain or len(found) < 2 or number in self._seen:
            return None
        if shape[0] == shape[1]:
            return doubt.TURNED if shape[0] > 1 else None
        self._seen.add(number)
        return None


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
        self._signatures = {m: s for m in model.modules() if (s := _entry_signature(m, model)) is not None}
        self._by_tokens = bool(self._signatures)
        self._entries = dict.fromkeys(self._signatures or (model,))
        self._orientation = Orientation(model, self._signatures)
        self._taps = RowTaps(places, _not_compiled(self._on_rows))
        self._names = [site.name for site in places]
        self._off: dict[int, Ambiguity] = {}
        self._check = check
        self._stopped = False
        self._hooks: list[RemovableHandle] = []
        self._generates: list[tuple[nn.Module, object]] = []
        self._numbers = itertools.count(1)
        self._current = _Current()

    # --- attach and detach ----------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Register all hooks and wrap `generate`."""
        enter, leave = _not_compiled(self._on_enter), _not_compiled(self._on_leave)
        for entry in self._entries:
            self._hooks.append(entry.register_forward_pre_hook(enter, with_kwargs=True))
            self._hooks.append(entry.register_forward_hook(leave, with_kwargs=True, always_call=True))
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
        for entry, before in self._generates:
            if before is None:
                del entry.__dict__["generate"]
            else:
                entry.__dict__["generate"] = before
        self._hooks, self._generates = [], []

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
        original = getattr(entry, "generate", None)
        if not callable(original):
            return
        self._generates.append((entry, entry.__dict__.get("generate")))

        entry.__dict__["generate"] = _Generate(self, entry, original)

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
            yield lambda result: self._guarded("reading what generate gave back", self._settle, result)

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

    def _on_cache(self, cache: object, lanes: list[int] | None) -> None:
        sequences = self._tokens.requests.of(cache)
        if sequences is None:
            return
        if lanes is None:
            sequences.trouble = doubt.CACHE_SPLIT
        elif not self._guarded("following a cache", sequences.select, lanes):
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
            opened.inputs = read(self._signatures[module].named(args, kwargs))
            labelled = self._tokens.label(opened.inputs, opened.scope, next(self._numbers))
        except AmbiguousLabels as uncertain:
            opened.doubt = uncertain.doubt
            return
        self._open_step(opened, labelled)

    def _open_step(self, opened: Pass, labelled: Labelled) -> None:
        self._handover.begin(labelled.step)
        opened.labelled = labelled
        if self._check is not None and labelled.step.n_rows:
            self._guarded("checking the first pass", self._check.begin, opened)

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
        elif id(module) in current.inner or not _same(current.inputs, self._signatures[module], args, kwargs):
            current.doubt = doubt.INNER_DIFFERS
        current.inner.add(id(module))

    def _take(self, number: int, value: object) -> None:
        hidden = tensor_of(value)
        rows = prod(hidden.shape[:-1]) if hidden.ndim else 0
        current = self._current.one
        if current is None:
            self._counter.unowned(doubt.OUTSIDE, rows, self._names[number])
            return
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
        labelled = current.labelled
        if self._check is not None:
            if not self._guarded("checking the first pass", self._end_check, self._check, current, complete):
                self._check = None
            self._guarded("handing over the first pass", self._release, current)
        whole = complete and current.doubt is None
        if labelled is None:
            self._counter.add(incomplete_passes=int(not whole))
            return
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

    def _end_check(self, check: FirstPassCheck, current: Pass, complete: bool) -> None:
        """Take what the first pass showed: points that are not what their names say give no rows, in this pass neither."""
        refused = check.end(current, complete)
        if refused is None:
            return
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
            cache = current.inputs.cache if current.inputs.cache is not None else _cache_in(output)
            self._tokens.finish(labelled, current.inputs, current.scope, cache)


class _Generate:
    """Replacement of a model's `generate` while a capture runs."""

    def __init__(self, passes: ForwardHooks, entry: nn.Module, original: Callable[..., object]) -> None:
        functools.update_wrapper(self, original)
        self._passes, self._entry, self._original = passes, entry, original

    def __call__(self, *args: object, **kwargs: object) -> object:
        with self._passes.generation(self._entry, args, kwargs) as settle:
            result = self._original(*args, **kwargs)
            settle(result)
            return result

    def __deepcopy__(self, memo: dict[int, object]) -> object:
        """Copy the original `generate`, so that a copy of the model uses its own weights."""
        return copy.deepcopy(self._original, memo)


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


def _entry_signature(module: nn.Module, model: nn.Module) -> Signature | None:
    """Return the signature of a module if each of its passes is one batch of tokens, else None.

    Such a module takes `input_ids` but not `decoder_input_ids`. A part of the model must also take `attention_mask`, which
    excludes embeddings.
    """
    try:
        signature = Signature(module)
    except (TypeError, ValueError):  # a forward without an inspectable signature
        return None
    fits = signature.takes_tokens and "decoder_input_ids" not in signature.names
    return signature if fits and (module is model or "attention_mask" in signature.names) else None


def _same(inputs: ForwardInputs, signature: Signature, args: tuple[object, ...], kwargs: dict[str, object]) -> bool:
    """Return whether a part of the model is called with the columns of the pass."""
    arguments = signature.named(args, kwargs)
    takes_cache = "past_key_values" in signature.names
    return _same_tokens(inputs, tokens_of(arguments)) and same_columns(inputs, arguments, takes_cache)


def _same_tokens(inputs: ForwardInputs, tensor: Tensor | None) -> bool:
    """Return whether these are the tokens of the pass, or embeddings of the same [batch, columns]."""
    if tensor is None or tensor.shape[:2] != inputs.tensor.shape[:2]:
        return False
    if tensor is inputs.tensor or tensor.ndim == 3 or inputs.tensor.ndim == 3:
        return True
    return bool(torch.equal(tensor.to(inputs.tensor.device), inputs.tensor))


def _cache_in(output: object) -> object:
    """Return the key-value cache in a model's output, or None."""
    named = getattr(output, "past_key_values", None)
    if named is None and isinstance(output, tuple):
        named = next((part for part in output if hasattr(part, "get_seq_length")), None)
    return named if hasattr(named, "get_seq_length") else None


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

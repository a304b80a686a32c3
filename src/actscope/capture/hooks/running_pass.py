"""A running forward pass: what is known of it, and how its rows are laid out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from types import FrameType

import torch
from torch import Tensor, nn

from actscope.capture.labels import ambiguity as doubt
from actscope.capture.labels.ambiguity import Ambiguity
from actscope.capture.labels.forward_inputs import ForwardInputs
from actscope.capture.labels.scopes import Scope
from actscope.capture.labels.token_labels import Labelled

#: transformers model types whose blocks, or parts of them, take [time, batch, d].
_TIME_FIRST = {"xlnet", "transfo-xl", "fsmt", "chatglm", "longformer", "led"}


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
    ran: set[int] = field(default_factory=set)
    """Numbers of the sites whose module ran."""
    fired: set[int] = field(default_factory=set)
    """Numbers of the sites whose rows were taken."""
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

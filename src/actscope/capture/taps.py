"""Taps: what is attached to a model to read it. Two boards outlive the steps; forward hooks fill them by custom op."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from actscope.capture import ops
from actscope.capture.anatomy import Location, hidden_of, locate
from actscope.errors import SiteError
from actscope.frames import SCORES, Frame
from actscope.probes import ACTIVATIONS, Probe
from actscope.sites import Site

log = logging.getLogger("actscope.capture")


@dataclass(frozen=True, slots=True)
class _SiteProbes:
    """The probes of one site as the tensors that `ops.score` takes."""

    weight: Tensor
    bias: Tensor
    jump: Tensor
    activation: Tensor
    columns: Tensor

    def __call__(self, hidden: Tensor, board: Tensor) -> None:
        ops.score(hidden, board, self.weight, self.bias, self.jump, self.activation, self.columns)


def _pack(probes: Sequence[tuple[int, Probe]], device: torch.device) -> _SiteProbes:
    def tensor(values: Any, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(np.asarray(values), dtype=dtype, device=device)

    infos = [probe.info for _, probe in probes]
    return _SiteProbes(
        weight=tensor(np.stack([probe.weight for _, probe in probes], axis=1), torch.float32),
        bias=tensor([info.bias for info in infos], torch.float32),
        jump=tensor([info.jump for info in infos], torch.float32),
        activation=tensor([ACTIVATIONS[info.activation] for info in infos], torch.int64),
        columns=tensor([column for column, _ in probes], torch.int64),
    )


class Taps:
    """Reads scores, and rows where asked, at the sites of one model.

    The score board is float32 [max_rows, width]; NaN stands for "not computed". All methods are to be called on the
    model's thread, between steps. A tap that fails is counted, logged once and goes quiet; the forward pass goes on.
    """

    def __init__(self, model: nn.Module, *, width: int, max_rows: int) -> None:
        self.model = model
        self.width = width
        self.max_rows = max_rows
        self.device = next(model.parameters()).device
        self.faults = 0
        self._board = torch.full((max_rows, width + 1), torch.nan, device=self.device)
        self._rows: dict[Site, int] = {}
        self._store: Tensor | None = None
        self._hooks: dict[tuple[str, Site], RemovableHandle] = {}
        self._fired = 0

    def set_probes(self, probes: Sequence[tuple[int, Probe]]) -> None:
        """Score these probes, given as (column, probe), from the next step on, and no others."""
        self._detach("score")
        self._board.fill_(torch.nan)
        by_site: dict[str, list[tuple[int, Probe]]] = {}
        for column, probe in probes:
            by_site.setdefault(probe.info.site, []).append((column, probe))
        for name, members in by_site.items():
            self._attach("score", Site.parse(name), self._scorer(_pack(members, self.device)))

    def keep_rows(self, sites: Sequence[Site]) -> None:
        """Keep the rows of these sites from the next step on, and no others. Raises SiteError for an unknown site."""
        self._detach("keep")
        self._store, self._rows = None, {site: slot for slot, site in enumerate(sites)}
        for site, slot in self._rows.items():
            self._attach("keep", site, self._keeper(slot))

    def frames(self, index: np.ndarray) -> list[Frame]:
        """The last step's frames, with only the rows `index` of the flattened batch; copies, on the CPU.

        A step in which some tap did not fire delivers "not computed" and no rows: what lies on the boards is of an
        earlier step.
        """
        complete = self._fired == len(self._hooks)
        self._fired = 0
        if not complete:
            self.faults += 1
            self._board.fill_(torch.nan)
            return [Frame(SCORES, np.full((len(index), self.width), np.nan, np.float32))]
        chosen = torch.from_numpy(index).to(self.device, non_blocking=True)
        frames = [Frame(SCORES, self._board[:, : self.width].index_select(0, chosen).cpu().numpy())]
        if self._store is not None:
            frames += [
                Frame(site.name, self._store[slot].index_select(0, chosen).cpu()) for site, slot in self._rows.items()
            ]
        return frames

    def frames_of_none(self) -> list[Frame]:
        """The frames of a step without rows."""
        return [Frame(SCORES, np.empty((0, self.width), np.float32))]

    def detach(self) -> None:
        """Remove every hook."""
        for kind in ("score", "keep"):
            self._detach(kind)

    def _scorer(self, probes: _SiteProbes) -> Callable[[Tensor], None]:
        return lambda hidden: probes(hidden, self._board)

    def _keeper(self, slot: int) -> Callable[[Tensor], None]:
        def keep(hidden: Tensor) -> None:
            if self._store is None:
                shape = (len(self._rows), self.max_rows, hidden.shape[-1])
                self._store = torch.empty(shape, dtype=hidden.dtype, device=hidden.device)
            ops.keep(hidden, self._store, slot)

        return keep

    def _attach(self, kind: str, site: Site, read: Callable[[Tensor], None]) -> None:
        location = locate(self.model, site)
        self._hooks[kind, site] = _hook(location, self._guarded(site, read))

    def _guarded(self, site: Site, read: Callable[[Tensor], None]) -> Callable[[Any], None]:
        quiet = False

        def tap(value: Any) -> None:
            nonlocal quiet
            if quiet:
                return
            try:
                read(hidden_of(value))
                self._fired += 1
            except Exception:  # the model being watched never dies of us
                quiet = True
                self.faults += 1
                log.exception("the tap at %s failed and is off from now on; generation goes on", site)

        return tap

    def _detach(self, kind: str) -> None:
        for key in [key for key in self._hooks if key[0] == kind]:
            self._hooks.pop(key).remove()


def _hook(location: Location, tap: Callable[[Any], None]) -> RemovableHandle:
    if location.side == "output":
        return location.module.register_forward_hook(lambda module, args, output: tap(output))
    return location.module.register_forward_pre_hook(
        lambda module, args, kwargs: tap(_first_input(args, kwargs)), with_kwargs=True
    )


def _first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args:
        return args[0]
    if "hidden_states" in kwargs:
        return kwargs["hidden_states"]
    raise SiteError(f"this block takes no hidden_states; it was called with {', '.join(kwargs)}")

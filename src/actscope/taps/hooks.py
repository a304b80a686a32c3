"""Taps: forward hooks that read a model through custom ops into two buffers that outlive the steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from actscope.errors import SiteError
from actscope.frames import SCORES, Frame
from actscope.probes import ACTIVATIONS, Probe
from actscope.sites import Site
from actscope.taps import ops
from actscope.taps.anatomy import Location, hidden_of, locate
from actscope.taps.text_model import input_device

log = logging.getLogger("actscope.taps")


@dataclass(frozen=True, slots=True)
class _SiteProbes:
    """The probes of one site, as the tensors that `ops.score` takes."""

    weight: Tensor
    bias: Tensor
    jump: Tensor
    activation: Tensor
    columns: Tensor

    def __call__(self, hidden: Tensor, board: Tensor) -> None:
        ops.score(hidden, board, self.weight, self.bias, self.jump, self.activation, self.columns)


def _pack(probes: Sequence[tuple[int, Probe]], device: torch.device) -> _SiteProbes:
    def tensor(values: npt.ArrayLike, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(np.asarray(values), dtype=dtype, device=device)

    infos = [probe.info for _, probe in probes]
    return _SiteProbes(
        weight=tensor(np.stack([probe.weight for _, probe in probes], axis=1), torch.float32),
        bias=tensor([info.bias for info in infos], torch.float32),
        jump=tensor([info.jump for info in infos], torch.float32),
        activation=tensor([ACTIVATIONS[info.activation] for info in infos], torch.int64),
        columns=tensor([column for column, _ in probes], torch.int64),
    )


@dataclass(slots=True, eq=False)
class _Tap:
    """One tap: its site, what it does with the hidden states, and whether it ran in this pass."""

    site: Site
    read: Callable[[Tensor], None]
    columns: list[int]  # columns of the score board that it fills
    hook: RemovableHandle | None = None
    fired: bool = False
    broken: bool = False
    scale: float = 1.0

    def __call__(self, value: object) -> None:
        if self.broken:
            return
        try:
            hidden = hidden_of(value)
            self.read(hidden if self.scale == 1 else hidden * self.scale)
            self.fired = True
        except Exception:  # a fault of ours must never stop the model
            self.broken = True
            log.exception("the tap at %s failed and is off from now on; generation goes on", self.site)

    def attach(self, location: Location) -> None:
        self.scale = location.scale
        if location.side == "output":
            self.hook = location.module.register_forward_hook(lambda module, args, output: self(output))
        else:
            self.hook = location.module.register_forward_pre_hook(
                lambda module, args, kwargs: self(_first_input(args, kwargs)), with_kwargs=True
            )

    def detach(self) -> None:
        if self.hook is not None:
            self.hook.remove()


class Taps:
    """Reads scores, and rows on request, at the sites of one model.

    The score board is float32 [max_rows, width]; NaN means "not computed". Call every method on the model's thread,
    between passes. A tap that fails is logged once and disabled; the forward pass and the other taps continue.
    `faults` counts the taps that did not run in a pass. Data that a tap did not write in the current pass is never
    delivered.
    """

    def __init__(self, model: nn.Module, *, width: int, max_rows: int) -> None:
        self.model = model
        self.width = width
        self.max_rows = max_rows
        self.device = input_device(model)
        self.faults = 0
        self._board = torch.full((max_rows, width + 1), torch.nan, device=self.device)
        self._store: Tensor | None = None
        self._scorers: list[_Tap] = []
        self._keepers: list[_Tap] = []

    def set_probes(self, probes: Sequence[tuple[int, Probe]]) -> None:
        """Score exactly these (column, probe) pairs from the next pass on.

        Raises SiteError, and changes nothing, if the model has no such site.
        """
        by_site: dict[Site, list[tuple[int, Probe]]] = {}
        for column, probe in probes:
            by_site.setdefault(Site.parse(probe.info.site), []).append((column, probe))
        places = {site: self._place(site) for site in by_site}
        _detach(self._scorers)
        self._board.fill_(torch.nan)
        self._scorers = [
            _Tap(site, self._scorer(_pack(members, self.device)), [column for column, _ in members])
            for site, members in by_site.items()
        ]
        for tap in self._scorers:
            tap.attach(places[tap.site])

    def keep_rows(self, sites: Sequence[Site]) -> None:
        """Keep the rows of exactly these sites from the next pass on.

        Raises SiteError, and changes nothing, if the model has no such site.
        """
        places = {site: self._place(site) for site in sites}
        _detach(self._keepers)
        self._store = None
        self._keepers = [_Tap(site, self._keeper(slot, len(places)), []) for slot, site in enumerate(places)]
        for tap in self._keepers:
            tap.attach(places[tap.site])

    def _place(self, site: Site) -> Location:
        place = locate(self.model, site)
        if place.after is not None:
            raise SiteError(f"{site}: its module runs several times in a pass, and the engine reads each module once")
        return place

    def begin(self) -> None:
        """Begin a pass: data on the boards is now of an earlier one."""
        for tap in (*self._scorers, *self._keepers):
            tap.fired = False

    def frames(self, index: np.ndarray) -> list[Frame]:
        """Return the frames of the pass that just ended, on the CPU, with only rows `index` of the flattened batch.

        Scores of a tap that did not run are NaN, and its rows are left out.
        """
        self._blank_what_did_not_fire()
        chosen = torch.from_numpy(index).to(self.device, non_blocking=True)
        frames = [Frame(SCORES, self._board[:, : self.width].index_select(0, chosen).cpu().numpy())]
        if self._store is not None:
            frames += [
                Frame(tap.site.name, self._store[slot].index_select(0, chosen).cpu())
                for slot, tap in enumerate(self._keepers)
                if tap.fired
            ]
        return frames

    def frames_of_none(self) -> list[Frame]:
        """Return the frames of a step without rows."""
        return [Frame(SCORES, np.empty((0, self.width), np.float32))]

    def detach(self) -> None:
        """Remove every hook."""
        _detach([*self._scorers, *self._keepers])
        self._scorers, self._keepers = [], []

    def _blank_what_did_not_fire(self) -> None:
        silent = [tap for tap in (*self._scorers, *self._keepers) if not tap.fired]
        self.faults += len(silent)
        for tap in silent:
            self._board[:, tap.columns] = torch.nan

    def _scorer(self, probes: _SiteProbes) -> Callable[[Tensor], None]:
        return lambda hidden: probes(hidden, self._board)

    def _keeper(self, slot: int, n_sites: int) -> Callable[[Tensor], None]:
        def keep(hidden: Tensor) -> None:
            if self._store is None:
                shape = (n_sites, self.max_rows, hidden.shape[-1])
                self._store = torch.empty(shape, dtype=hidden.dtype, device=hidden.device)
            ops.keep(hidden, self._store, slot)

        return keep


def _detach(taps: Sequence[_Tap]) -> None:
    for tap in taps:
        tap.detach()


def _first_input(args: tuple[object, ...], kwargs: dict[str, object]) -> object:
    if args:
        return args[0]
    if "hidden_states" in kwargs:
        return kwargs["hidden_states"]
    raise SiteError(f"this block takes no hidden_states; it was called with {', '.join(kwargs)}")

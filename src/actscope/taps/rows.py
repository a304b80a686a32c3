"""Row taps: one forward hook per site that passes on its module's input or output without a copy."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from actscope.errors import SiteError
from actscope.sites import Site
from actscope.taps.anatomy import Location

#: Called with the index of the site and its module's input or output, inside the forward pass.
Take = Callable[[int, object], None]


class RowTaps:
    """Hooks at several sites.

    `take(i, value)` receives the input or output of the i-th site's module, times the factor of its location, and must copy
    what it keeps. `tensor_of(value)` is its tensor [..., d]. An exception in `take` propagates into the model's forward pass.
    """

    def __init__(self, places: Mapping[Site, Location], take: Take) -> None:
        self.sites: Sequence[Site] = tuple(places)
        self._locations = tuple(places.values())
        self._take = take
        self._hooks: list[RemovableHandle] = []

    def attach(self) -> None:
        """Register the hooks. Raises RuntimeError if they are registered already."""
        if self._hooks:
            raise RuntimeError("these taps are attached already")
        for i, place in enumerate(self._locations):
            if place.after is None:
                self._hooks.append(_register(place, i, self._take))
            else:
                turn = _Turn(self._take)
                begin, take = torch.compiler.disable(turn.begin), torch.compiler.disable(turn.take)  # type: ignore[no-untyped-call]
                self._hooks += [place.after.register_forward_hook(begin), _register(place, i, take)]

    def detach(self) -> None:
        """Remove the hooks. Idempotent."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


class _Turn(threading.local):
    """The run of a module that follows another one, of several runs in a pass. Each thread has its own pass."""

    def __init__(self, take: Take) -> None:
        self._take = take
        self._awaited: weakref.ref[Tensor] | None = None

    def begin(self, module: nn.Module, args: object, output: object) -> None:
        """Wait for the next run, while this output lives: a pass that raised is not continued by another one."""
        found = output[0] if isinstance(output, tuple | list) and output else output
        self._awaited = weakref.ref(found) if isinstance(found, Tensor) else None

    def take(self, number: int, value: object) -> None:
        """Pass the value on if this is the run."""
        if self._awaited is not None and self._awaited() is not None:
            self._take(number, value)
        self._awaited = None


def _register(place: Location, number: int, take: Take) -> RemovableHandle:
    if place.scale != 1:
        take = _scaled(take, place.scale)
    if place.side == "output":

        def after(module: nn.Module, args: object, output: object) -> None:
            take(number, output)

        return place.module.register_forward_hook(after)

    def before(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        take(number, args[0] if args else kwargs.get("hidden_states", kwargs))

    return place.module.register_forward_pre_hook(before, with_kwargs=True)


def _scaled(take: Take, scale: float) -> Take:
    return lambda number, value: take(number, tensor_of(value) * scale)


def tensor_of(value: object) -> Tensor:
    """Return the value itself if it is a tensor, else the first tensor of a sequence or of a mapping's values.

    Raises SiteError if there is none.
    """
    if isinstance(value, Tensor):
        return value
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, Sequence) else ()
    found = next((item for item in inner if isinstance(item, Tensor)), None)
    if found is None:
        raise SiteError(f"expected a tensor, or a tuple or mapping with one; found {type(value).__name__}")
    return found

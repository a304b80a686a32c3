"""The truth check of a capture, on the first complete pass of the model: are the points what their names say?"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from torch import nn

from actscope.errors import SiteError
from actscope.sites import Site
from actscope.taps.anatomy import Location, is_learned, refusals, truth_check
from actscope.taps.truth import TruthCheck

log = logging.getLogger("actscope.capture")

#: Most bytes of rows that are held back until the check has ended.
_MOST_HELD_BYTES = 512 << 20
#: Passes after which a model whose blocks do not all run is no longer watched.
_MOST_PASSES = 8


class FirstPassCheck:
    """Holds the named sites of a capture against one of its own passes. Thread-safe."""

    def __init__(self, model: nn.Module, places: Mapping[Site, Location], check: TruthCheck) -> None:
        self._model, self._places, self._check = model, places, check
        self._lock = threading.Lock()
        self._pass: object | None = None
        self._passes = 0
        self._held = 0

    def begin(self, opened: object) -> None:
        """Watch this pass, unless another thread's pass is being watched."""
        with self._lock:
            if self._pass is None:
                self._pass = opened
                self._held = 0
                self._check.attach()

    def holds_back(self, running: object, size: int) -> bool:
        """Return whether `size` more bytes of rows of this pass should wait for the end of the check."""
        with self._lock:
            if self._pass is not running or self._held + size > _MOST_HELD_BYTES:
                return False
            self._held += size
            return True

    def end(self, ended: object, complete: bool) -> dict[str, str] | None:
        """End the watch of a pass.

        Returns:
            By the name of each site that is refused, the reason; None if this pass showed nothing: another one is to come.
        """
        with self._lock:
            if self._pass is not ended:
                return None
            self._pass = None
            self._passes += 1
            self._check.detach()
            if complete and self._check.ran:
                found = refusals(self._model, self._places, self._check.truth())
                return {site.name: why for site, why in found.items()}
            if self._passes < _MOST_PASSES:
                return None
            log.warning("the points of this model were not checked: in %d passes not all its blocks ran", self._passes)
            return {}

    def detach(self) -> None:
        """Remove the hooks of a pass that has not ended."""
        with self._lock:
            self._check.detach()
            self._pass = None


def first_pass_check(model: nn.Module, places: Mapping[Site, Location]) -> FirstPassCheck | None:
    """Return the check of these sites; None if there is nothing to check: modules by path, or a model that was checked."""
    if is_learned(model) or all(site.is_module for site in places):
        return None
    try:
        return FirstPassCheck(model, places, truth_check(model))
    except SiteError:
        return None

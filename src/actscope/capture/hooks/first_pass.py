"""The truth check of a capture, on the first passes of the model: are the points what their names say?"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from torch import nn

from actscope.errors import SiteError
from actscope.sites import Site
from actscope.taps.anatomy import Location, is_learned, refusals, truth_check
from actscope.taps.truth import TruthCheck

#: Most bytes of rows that are held back until the check has ended.
_MOST_HELD_BYTES = 512 << 20
#: Passes after which a point whose block has not run is refused.
_MOST_PASSES = 8
#: Seconds for which a pass waits for the one that another thread is running under watch.
_MOST_WAIT_S = 60.0
#: Seconds after which a waiting pass looks whether that thread still lives.
_LOOK_S = 1.0


class FirstPassCheck:
    """Holds the named sites of a capture against one of its own passes. Thread-safe."""

    def __init__(self, model: nn.Module, places: Mapping[Site, Location], check: TruthCheck) -> None:
        self._model, self._places, self._check = model, places, check
        self._pending = [site for site in places if not site.is_module]
        self._lock = threading.Condition()
        self._pass: object | None = None
        self._thread = threading.current_thread()
        self._passes = 0
        self._held = 0

    def begin(self, opened: object) -> bool:
        """Watch this pass. A pass of another thread that is being watched is waited for.

        Returns:
            False if that pass did not end in time: nothing shows then whether this one's rows are what their names say.
        """
        deadline = time.monotonic() + _MOST_WAIT_S
        with self._lock:
            own = threading.current_thread()
            while self._pass is not None and self._thread is not own and self._thread.is_alive():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._lock.wait(min(_LOOK_S, left))
            if self._pass is not None:  # its thread left it in the middle
                self._check.detach()
                self._pass = None
            if self._pending:
                self._pass, self._thread, self._held = opened, own, 0
                self._check.attach()
        return True

    def holds_back(self, running: object, size: int) -> bool:
        """Return whether `size` more bytes of rows of this pass should wait for the end of the check."""
        with self._lock:
            if self._pass is not running or self._held + size > _MOST_HELD_BYTES:
                return False
            self._held += size
            return True

    def end(self, ended: object, complete: bool) -> dict[str, str]:
        """End the watch of a pass, and return by the name of each site that is refused the reason.

        Sites whose blocks did not run wait for the next pass. After `_MOST_PASSES` they are refused.
        """
        with self._lock:
            if self._pass is not ended:
                return {}
            self._pass = None
            self._lock.notify_all()
            self._passes += 1
            self._check.detach()
            seen = [site for site in self._pending if complete and self._check.ran(_layer_of(site))]
            found: dict[Site, str] = {}
            if seen:
                found = refusals(self._model, {s: self._places[s] for s in seen}, self._check.truth())
                self._pending = [site for site in self._pending if site not in seen]
            if self._passes >= _MOST_PASSES:
                why = f"its block did not run in {self._passes} passes, so that it could not be checked"
                found |= dict.fromkeys(self._pending, why)
                self._pending.clear()
            return {site.name: why for site, why in found.items()}

    @property
    def done(self) -> bool:
        """Whether no site waits for a pass in which its block runs."""
        return not self._pending

    def detach(self) -> None:
        """Remove the hooks of a pass that has not ended."""
        with self._lock:
            self._check.detach()
            self._pass = None
            self._lock.notify_all()


def _layer_of(site: Site) -> int:
    """Return the block with which a site is checked: its own, the first for `embed`, the last (-1) for `final_norm`."""
    if site.layer is not None:
        return site.layer
    return 0 if site.point == "embed" else -1


def first_pass_check(model: nn.Module, places: Mapping[Site, Location]) -> FirstPassCheck | None:
    """Return the check of these sites; None if there is nothing to check: modules by path, or a model that was checked."""
    if is_learned(model) or all(site.is_module for site in places):
        return None
    try:
        return FirstPassCheck(model, places, truth_check(model))
    except SiteError:
        return None

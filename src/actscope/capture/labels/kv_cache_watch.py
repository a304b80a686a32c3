"""Observer of caches: a change of a cache's lanes or length changes which requests and positions its next rows belong to.

While a capture runs, the methods of `transformers.Cache` that do so are wrapped on their classes and restored afterwards.
Wrapping instances would fail when they are copied.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheChange:
    """A change of a cache."""

    lanes: list[int] | None = None
    """The lanes that it keeps, in order; None if they are unknown."""
    removed: int | None = None
    """Columns removed from its end; the lanes stay. None: another kind of change."""


#: Called before a cache changes.
Changed = Callable[[object, CacheChange], None]

_METHODS = ("reorder_cache", "batch_select_indices", "batch_repeat_interleave", "crop")


class KvCacheWatch:
    """Notifies subscribers of changes to any cache in this process. Thread-safe."""

    def __init__(self) -> None:
        self._subscribers: list[Changed] = []
        self._wrapped: list[tuple[type, str, object]] = []
        self._lock = threading.Lock()
        self._changing = threading.local()

    def subscribe(self, changed: Changed) -> None:
        """Add a subscriber. The first one wraps the cache methods."""
        with self._lock:
            if not self._subscribers:
                self._wrap_all()
            self._subscribers.append(changed)

    def unsubscribe(self, changed: Changed) -> None:
        """Remove a subscriber, if present. Removing the last one restores the cache methods."""
        with self._lock:
            if changed in self._subscribers:
                self._subscribers.remove(changed)
                if not self._subscribers:
                    self._unwrap_all()

    def _wrap_all(self) -> None:
        try:
            from transformers import Cache
        except ImportError:  # without transformers there is no such cache
            return
        for kind in _with_subclasses(Cache):
            for name in _METHODS:
                if name in vars(kind):
                    original = vars(kind)[name]
                    self._wrapped.append((kind, name, original))
                    setattr(kind, name, self._watched(original))

    def _unwrap_all(self) -> None:
        for kind, name, original in self._wrapped:
            setattr(kind, name, original)
        self._wrapped.clear()

    def _watched(self, original: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(original)
        def change(cache: object, *args: object, **kwargs: object) -> object:
            changing = self._changing.__dict__.setdefault("caches", set())
            if id(cache) in changing or _nothing(original.__name__, args, kwargs):
                # no change, or a subclass calls its base method: notify once per change
                return original(cache, *args, **kwargs)
            changing.add(id(cache))
            try:
                for changed in list(self._subscribers):
                    changed(cache, _change(original.__name__, args, kwargs))
                return original(cache, *args, **kwargs)
            finally:
                changing.discard(id(cache))

        return change


def _with_subclasses(kind: type) -> list[type]:
    children: list[type] = type.__subclasses__(kind)
    return [kind, *(found for child in children for found in _with_subclasses(child))]


def _nothing(method: str, args: tuple[object, ...], kwargs: dict[str, object]) -> bool:
    return method == "batch_repeat_interleave" and (args[0] if args else kwargs.get("repeats")) == 1


def _change(method: str, args: tuple[object, ...], kwargs: dict[str, object]) -> CacheChange:
    value = args[0] if args else next(iter(kwargs.values()), None)
    if method == "crop":
        return CacheChange(removed=max(0, -value) if isinstance(value, int) else 0)
    if method == "batch_repeat_interleave":
        return CacheChange()
    indices = getattr(value, "tolist", lambda: None)()
    if isinstance(indices, list) and all(type(i) is int for i in indices):
        return CacheChange([int(i) for i in indices])
    return CacheChange()


#: The only instance in this process.
CACHES = KvCacheWatch()

"""Names of requests in recordings."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b

from actscope.engines.vllm.sidecar_protocol import external_id

#: Number of requests that have ended and whose names are remembered, for messages that come late.
_REMEMBERED = 1 << 16
#: Bits of the filter of used names, 8 MiB. With 4 bits a name, 1 % of new names count as used after 5 million requests.
_BITS = 1 << 26


class UsedNames:
    """A Bloom filter: a set of names in fixed memory. A name that was added is always found; others are found rarely."""

    def __init__(self) -> None:
        self._bits = bytearray(_BITS // 8)

    def add(self, name: str) -> None:
        """Add a name."""
        for at in self._places(name):
            self._bits[at >> 3] |= 1 << (at & 7)

    def __contains__(self, name: str) -> bool:
        return all(self._bits[at >> 3] & 1 << (at & 7) for at in self._places(name))

    def _places(self, name: str) -> list[int]:
        digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        return [int.from_bytes(digest[i : i + 4], "little") % _BITS for i in (0, 4, 8, 12)]


class Names:
    """Request names in recordings: the client's id; the engine's own id if the client's was used before; that with a number.

    Memory does not grow with the number of requests. A client's id that only seems to be used costs it its name, not its rows.
    """

    def __init__(self, used: Iterable[str]) -> None:
        self._used = UsedNames()
        for name in used:
            self._used.add(name)
        self._running: dict[str, str] = {}
        self._ended: OrderedDict[str, str] = OrderedDict()
        self._engine_ids: dict[str, str] = {}  # of running requests, by name
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._running)

    def name(self, request: str, *, begins: bool = False) -> str:
        """Return a request's name. Thread-safe; repeated calls return the same name until long after the request's end.

        Args:
            request: The engine's id of the request.
            begins: The request begins now, if it does not run. Without it, an id that has ended stands for the request that
                ended. Ids come again where vLLM appends nothing to them (see `ids_are_plain`).
        """
        with self._lock:
            found = self._running.get(request) or (None if begins else self._ended.get(request))
            return found or self._new(request, numbered=begins)

    def recorded(self, request: str) -> str:
        """Return the name of a request that has one; `request` unchanged if not. Thread-safe."""
        with self._lock:
            return self._running.get(request) or self._ended.get(request) or request

    def _new(self, request: str, *, numbered: bool) -> str:
        external = external_id(request)
        found = request if external in self._used else external
        number = 2
        while numbered and found in self._used:
            found, number = f"{request}:{number}", number + 1
        earlier = self._ended.pop(request, None)
        if earlier is not None:
            self._engine_ids.pop(earlier, None)
        self._used.add(found)
        self._running[request] = found
        self._engine_ids[found] = request
        return found

    def resume(self, request: str, name: str) -> None:
        """Give a request the name that an earlier sidecar gave it. Thread-safe."""
        with self._lock:
            self._used.add(name)
            self._running[request] = name
            self._engine_ids[name] = request

    def known(self, requests: Iterable[str]) -> list[str]:
        """Return the names of those of these requests that run and have one. Thread-safe."""
        with self._lock:
            return [self._running[request] for request in requests if request in self._running]

    def engine_id(self, name: str) -> str | None:
        """Return the engine's id of a running request, or None. Thread-safe."""
        with self._lock:
            return self._engine_ids.get(name)

    def end(self, request: str) -> None:
        """Note that a request has ended, and remember its name for a while. Thread-safe."""
        with self._lock:
            found = self._running.pop(request, None)
            if found is None:
                return
            self._ended[request] = found
            if len(self._ended) > _REMEMBERED:
                old, name = self._ended.popitem(last=False)
                if self._engine_ids.get(name) == old:
                    del self._engine_ids[name]

    def running(self) -> list[str]:
        """Return the engine's ids of the requests that run and have a name. Thread-safe."""
        with self._lock:
            return list(self._running)

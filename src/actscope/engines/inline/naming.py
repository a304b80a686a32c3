"""Request ids: given by the user, or counted."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable

from actscope.engines.inline import doubt
from actscope.engines.inline.doubt import Uncertain

_COUNTED = re.compile(r"r(\d+)")


class Naming:
    """Gives every sequence an id that no other sequence of the recording has. Thread-safe.

    Counted ids are `r000001`, `r000002`...; in a recording that goes on they go on. An id that the user gives to a
    batch of several sequences is told apart by `/0`, `/1`...; an id that is used for a second sequence by `#2`, `#3`...
    An id of an earlier session may be given once more: its request is computed again.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        numbers = [int(match[1]) for request in known if (match := _COUNTED.fullmatch(request))]
        self._count = max(numbers, default=0)
        self._uses: dict[str, int] = {}
        self._lock = threading.Lock()

    def name(self, ids: tuple[str, ...], lanes: int) -> list[str]:
        """Ids for `lanes` new sequences. Raises Uncertain when the ids given do not fit so many."""
        with self._lock:
            if not ids:
                self._count += lanes
                return [f"r{number:06d}" for number in range(self._count - lanes + 1, self._count + 1)]
            if lanes % len(ids):
                raise Uncertain(doubt.IDS_DO_NOT_FIT)
            copies = lanes // len(ids)
            return [self._unused(_lane_id(ids[i // copies], i % copies, copies)) for i in range(lanes)]

    def _unused(self, request: str) -> str:
        uses = self._uses[request] = self._uses.get(request, 0) + 1
        return request if uses == 1 else f"{request}#{uses}"


def _lane_id(request: str, copy: int, copies: int) -> str:
    return request if copies == 1 else f"{request}/{copy}"

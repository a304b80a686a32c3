"""Request ids: given by the user or numbered."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable

from actscope.capture.labels import ambiguity as doubt
from actscope.capture.labels.ambiguity import AmbiguousLabels

_COUNTED = re.compile(r"r(\d+)")


class RequestIds:
    """Assigns every sequence an id that is unique in its recording. Thread-safe.

    Numbered ids are `r000001`, `r000002`...; a resumed recording continues the numbering. If the user gives one id for several
    sequences of a batch, they get the suffixes `/0`, `/1`... A reused id gets the suffix `#2`, `#3`... An id of an earlier
    session may be given once more; it then denotes the same request, computed again.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        numbers = [int(match[1]) for request in known if (match := _COUNTED.fullmatch(request))]
        self._count = self._known_count = max(numbers, default=0)
        self._uses: dict[str, int] = {}
        self._lock = threading.Lock()

    def name(self, ids: tuple[str, ...], lanes: int) -> list[str]:
        """Return ids for `lanes` new sequences. Raises AmbiguousLabels if `lanes` is no multiple of the number of ids."""
        with self._lock:
            if not ids:
                return [self._counted() for _ in range(lanes)]
            if lanes % len(ids):
                raise AmbiguousLabels(doubt.IDS_DO_NOT_FIT)
            copies = lanes // len(ids)
            return [self._unused(_lane_id(ids[i // copies], i % copies, copies)) for i in range(lanes)]

    def _counted(self) -> str:
        self._count += 1
        while (request := f"r{self._count:06d}") in self._uses:  # already given by the user
            self._count += 1
        return request

    def _unused(self, request: str) -> str:
        found = request
        while self._is_taken(found):
            uses = self._uses[request] = self._uses.get(request, 1) + 1
            found = f"{request}#{uses}"
        self._uses.setdefault(found, 1)
        return found

    def _is_taken(self, request: str) -> bool:
        if request in self._uses:
            return True
        number = int(match[1]) if (match := _COUNTED.fullmatch(request)) else 0
        return self._known_count < number <= self._count and request == f"r{number:06d}"


def _lane_id(request: str, copy: int, copies: int) -> str:
    return request if copies == 1 else f"{request}/{copy}"

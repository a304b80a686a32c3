"""Interface of a shard that is being written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from actscope.harvest.cutting import OwnedPiece

if TYPE_CHECKING:
    from torch import Tensor


class PendingShard(Protocol):
    """Shard that is being written, in memory. `suffix`: its file name extension."""

    suffix: str

    def add(self, pieces: Sequence[OwnedPiece], values: dict[str, Tensor]) -> None:
        """Append the rows of the unit's next pieces: values[site] [n, d]."""
        ...

    def finish(self) -> memoryview:
        """Return the complete file. Call after all pieces were added."""
        ...

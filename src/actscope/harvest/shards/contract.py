"""What puts the rows of a unit into a shard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from actscope.harvest.cutting import OwnedPiece

if TYPE_CHECKING:
    from torch import Tensor


class PendingShard(Protocol):
    """A shard that is being made, in memory."""

    suffix: str

    def add(self, pieces: Sequence[OwnedPiece], values: dict[str, Tensor]) -> None:
        """The rows of the unit's next pieces: values[site] [n, d]."""
        ...

    def finish(self) -> memoryview:
        """The whole file, once all pieces were added."""
        ...

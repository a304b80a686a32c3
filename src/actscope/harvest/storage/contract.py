"""What a harvest asks of its storage. Everything else (claims, commits, resuming) is built on `put_new`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

Data = bytes | bytearray | memoryview


class Storage(Protocol):
    """Whole objects under names such as `receipts/000012.json`. No reader ever sees half an object.

    What `put_new` and `put` have returned for survives the end of the process, and on local disks the loss of power. Every
    method raises HarvestError, naming the place, when the storage cannot be reached or refuses.
    """

    url: str
    """What it was opened by, for messages."""

    def put_new(self, name: str, data: Data) -> bool:
        """Put an object unless there is one of that name. True when what lies there is ours: this call put it, or it has
        exactly these bytes. Of several that put different bytes at once, one gets True."""
        ...

    def put(self, name: str, data: Data) -> None:
        """Put an object, in place of what was there."""
        ...

    def get(self, name: str) -> bytes | None:
        """An object's bytes; None where there is none."""
        ...

    def size(self, name: str) -> int | None:
        """How many bytes an object has; None where there is none."""
        ...

    def chunks(self, name: str) -> Iterator[Data]:
        """An object's bytes, piece by piece, for what need not be in memory at once. Raises HarvestError where there is none."""
        ...

    def names(self, folder: str) -> list[str]:
        """The names of all objects in `folder` (such as "receipts"), with the folder, sorted."""
        ...

    def delete(self, names: list[str]) -> None:
        """Remove objects; one that is not there is no error."""
        ...

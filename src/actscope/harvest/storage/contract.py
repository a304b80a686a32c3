"""Interface of a harvest's storage. Claims, commits and resuming are built on its put-if-absent, `put_new`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

Data = bytes | bytearray | memoryview


class Storage(Protocol):
    """Whole objects under names such as `receipts/000012.json`. Writes are atomic: no reader ever sees part of an object.

    Once `put_new` or `put` has returned, the object survives the end of the process, and on local disks a power loss. Every
    method raises HarvestError, naming the place, if the storage cannot be reached or refuses.
    """

    url: str
    """Path or URL of the storage, for messages."""

    def put_new(self, name: str, data: Data) -> bool:
        """Put an object if there is none of that name (put-if-absent).

        Returns:
            True if this call put the object, or an existing one has exactly these bytes. Of several concurrent calls with
            different bytes, one returns True.
        """
        ...

    def put(self, name: str, data: Data) -> None:
        """Put an object, replacing an existing one."""
        ...

    def get(self, name: str) -> bytes | None:
        """Return the bytes of an object; None if it does not exist."""
        ...

    def size(self, name: str) -> int | None:
        """Return the size of an object in bytes; None if it does not exist."""
        ...

    def chunks(self, name: str) -> Iterator[Data]:
        """Yield the bytes of an object in chunks, to bound memory. Raises HarvestError if it does not exist."""
        ...

    def names(self, folder: str) -> list[str]:
        """Return the names of all objects in `folder` (such as "receipts"), including the folder, sorted."""
        ...

    def delete(self, names: list[str]) -> None:
        """Delete objects. An object that does not exist is not an error."""
        ...

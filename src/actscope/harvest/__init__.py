"""Harvests: a dataset goes through a model on many workers, and the rows of its tokens are kept as shards.

settings, plan    what is harvested; everything that decides the bytes, and the units that follow from it
storage           a local directory, or a prefix of a bucket
claims            who works on which unit
worker, cutting   a unit of texts becomes rows
shards            … and rows a file
receipt, manifest what was published, with checksums
crews             where workers run: processes of this machine, actors of a Ray cluster
harvesting        the whole of it
opening, batches  reading a harvest; shuffled batches of it
verifying         every byte of it checked
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actscope.harvest.opening import Harvest, open_harvest

__all__ = ["Harvest", "open_harvest"]


def __getattr__(name: str) -> Any:
    """Loaded when it is asked for: what only harvests needs nothing that only reads."""
    if name not in __all__:
        raise AttributeError(name)
    from actscope.harvest import opening

    return getattr(opening, name)

"""Harvests: a dataset goes through a model on many workers, and the rows of its tokens are kept as shards.

settings, plan     what is harvested; everything that decides the bytes, and the units that follow from it
storage            a local directory, or a prefix of a bucket
claims             which process works on which unit
worker, cutting    a unit of texts becomes rows
shards             ... rows become a file, and a file rows
commit, manifest   what was published, with checksums
workers            where units run: processes of this machine, actors of a Ray cluster
driver             the whole run
opening, batches   reading a harvest; shuffled batches of it
verifying          checking every byte
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actscope._lazy import attach

if TYPE_CHECKING:
    from actscope.harvest.opening import Harvest, open_harvest

__all__ = ["Harvest", "open_harvest"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "Harvest": "actscope.harvest.opening:Harvest",
        "open_harvest": "actscope.harvest.opening:open_harvest",
    },
)

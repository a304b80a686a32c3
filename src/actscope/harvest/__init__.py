"""Harvests: workers run a dataset through a model and keep the rows of its tokens as shards.

settings, plan     settings; the plan that decides every byte, and its units of work
storage            a local directory, or a prefix of a bucket
claims             claims of harvests on units
worker, cutting    computing the rows of a unit's texts
shards             file formats of rows, written and read
commit, manifest   receipts of published units, and the whole harvest, with checksums
workers            processes on this machine, or actors of a Ray cluster
driver             one run, from the plan to the manifest
opening, batches   reading a harvest, and shuffled batches of it
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

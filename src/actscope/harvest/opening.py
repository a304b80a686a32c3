"""Opening a finished harvest. Its shards are mapped into memory one at a time, with the label of every row."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from actscope.errors import HarvestDamaged, HarvestError, SettingsError
from actscope.harvest import layout
from actscope.harvest import manifest as manifests
from actscope.harvest.batches import Batches, BatchOptions
from actscope.harvest.manifest import HarvestManifest, ShardEntry
from actscope.harvest.shards.reading import ShardRows
from actscope.harvest.storage import Storage, open_storage
from actscope.harvest.storage.local import LocalStorage
from actscope.near_miss import hinted, hinted_class


@hinted
def open_harvest(out: str | Path, *, allow_http: bool = False) -> Harvest:
    """Open a finished harvest.

    Args:
        out: Directory, or URL of a bucket.
        allow_http: Whether to allow unencrypted HTTP to the object store.

    Returns:
        The harvest. No shard is read yet.

    Raises:
        HarvestError: There is no harvest, it is not finished, or the storage cannot be reached.
        HarvestDamaged: The manifest is malformed.
        SettingsError: `out` is a URL with an unknown scheme.
        MissingExtra: `out` is a bucket, and obstore is not installed.
    """
    storage = open_storage(str(out), allow_http=allow_http)
    data = storage.get(layout.MANIFEST)
    if data is None:
        begun = storage.size(layout.PLAN) is not None
        state = "this harvest is not finished: resume it with the command that began it" if begun else "no harvest here"
        raise HarvestError(f"{storage.url}/{layout.MANIFEST}: is missing; {state}")
    return Harvest(storage, manifests.decode(data, f"{storage.url}/{layout.MANIFEST}"))


@hinted_class
class Harvest:
    """Finished harvest of safetensors shards, which are read on demand.

    Shards of a local directory are memory-mapped copy-on-write: rows are read when touched, and files never change. Shards in
    a bucket are fetched whole. Open a harvest of arrow shards with `datasets.load_from_disk`.

    Attributes:
        manifest: Contents of the harvest, with its statistics.
        plan: Description of the harvest.
    """

    def __init__(self, storage: Storage, manifest: HarvestManifest) -> None:
        self.manifest = manifest
        self.plan = manifest.plan
        self._storage = storage

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites."""
        return self.plan.sites

    @property
    def n_rows(self) -> int:
        """Number of rows at each site."""
        return self.manifest.rows

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return len(self.manifest.shards)

    def shard(self, number: int) -> ShardRows:
        """Return shard `number`, counted from 0 in the order of the units.

        Raises:
            HarvestDamaged: The file is missing, truncated, or does not match the manifest.
            SettingsError: The harvest has arrow shards.
            IndexError: There is no such shard.
        """
        entry = self.manifest.shards[number]
        where = f"{self._storage.url}/{entry.name}"
        if self.plan.shard_format != "safetensors":
            raise SettingsError(
                f"{self._storage.url}: its shards are {self.plan.shard_format}; open it with datasets.load_from_disk"
            )
        data = self._data(entry)
        if data is None or len(data) != entry.bytes:
            found = "nothing" if data is None else f"{len(data)} bytes"
            raise HarvestDamaged(
                f"{where}: expected {entry.bytes} bytes, found {found}; check all shards with --verify"
            )
        return ShardRows(data, self.plan, entry.rows, where)

    def shards(self) -> Iterator[ShardRows]:
        """Return an iterator of all shards, in the order of the units. Raises as `shard` does."""
        return map(self.shard, range(self.n_shards))

    def batches(self, site: str, batch_size: int, **options: Unpack[BatchOptions]) -> Batches:
        """Return shuffled batches of one site's rows.

        Args:
            site: Name of the site.
            batch_size: Rows of a batch.
            **options: Keyword arguments of `Batches`.

        Returns:
            An iterator of tensors [batch_size, d].

        Raises:
            SettingsError: An argument is out of range, the site is unknown, or the harvest has no rows.
        """
        return Batches(self, site, batch_size, **options)

    def _data(self, entry: ShardEntry) -> bytearray | mmap.mmap | None:
        """Return the bytes of a shard, writable and private; None if it is missing."""
        if not isinstance(self._storage, LocalStorage):
            data = self._storage.get(entry.name)
            return None if data is None else bytearray(data)
        try:
            with os.fdopen(self._storage.open(entry.name), "rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # copy-on-write: the file never changes
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise HarvestDamaged(f"{self._storage.url}/{entry.name}: cannot be mapped: {error}") from error

"""Opening a finished harvest: its shards one by one, mapped into memory, with the label of every row."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from actscope.errors import HarvestDamaged, HarvestError, SettingsError
from actscope.harvest import layout
from actscope.harvest import manifest as manifests
from actscope.harvest.commit import Receipt
from actscope.harvest.manifest import HarvestManifest, ShardEntry
from actscope.harvest.plan import HarvestPlan
from actscope.harvest.shards.safetensors import LABELS, TYPES
from actscope.harvest.storage import Storage, open_storage
from actscope.harvest.storage.local import LocalStorage

if TYPE_CHECKING:
    from torch import Tensor

    from actscope.harvest.batches import Batches

_SHARD = re.compile(rf"{layout.SHARDS}/[0-9a-f-]+\.(safetensors|arrow)")
_MOST_HEADER = 100 << 20


def open_harvest(out: str | Path, *, allow_http: bool = False) -> Harvest:
    """A finished harvest in a directory or a bucket. Raises HarvestError when there is none, or it is not finished yet."""
    storage = open_storage(str(out), allow_http=allow_http)
    data = storage.get(layout.MANIFEST)
    if data is None:
        begun = storage.size(layout.PLAN) is not None
        state = (
            "this harvest is not finished: go on with it by the command that began it" if begun else "no harvest here"
        )
        raise HarvestError(f"{storage.url}/{layout.MANIFEST}: is missing; {state}")
    return Harvest(storage, manifests.decode(data, f"{storage.url}/{layout.MANIFEST}"))


class Harvest:
    """A finished harvest of safetensors shards, which are not read before they are asked for.

    Shards of a local directory are mapped: rows are read from the disk when they are touched, and never written. Those in a
    bucket are fetched whole. (One of arrow shards is opened with `datasets.load_from_disk`.)
    """

    def __init__(self, storage: Storage, manifest: HarvestManifest) -> None:
        self.manifest = manifest
        self.plan = manifest.plan
        self._storage = storage
        for entry in manifest.shards:
            if not _SHARD.fullmatch(entry.name):
                raise HarvestDamaged(f"{storage.url}/{layout.MANIFEST}: {entry.name!r} is no shard's name")

    @property
    def sites(self) -> tuple[str, ...]:
        return self.plan.sites

    @property
    def n_rows(self) -> int:
        return self.manifest.rows

    @property
    def n_shards(self) -> int:
        return len(self.manifest.shards)

    def shard(self, number: int) -> ShardRows:
        """Raises HarvestDamaged when its file is missing, cut off, or not what the manifest says."""
        entry = self.manifest.shards[number]
        where = f"{self._storage.url}/{entry.name}"
        if self.plan.shard_format != "safetensors":
            raise SettingsError(
                f"{self._storage.url}: is of {self.plan.shard_format}; open it with datasets.load_from_disk"
            )
        data = self._data(entry)
        if data is None or len(data) != entry.bytes:
            found = "nothing" if data is None else f"{len(data)} bytes"
            raise HarvestDamaged(f"{where}: expected {entry.bytes} bytes, found {found}; check all: --verify")
        return ShardRows(data, self.plan, entry.rows, where)

    def shards(self) -> Iterator[ShardRows]:
        """All shards, in the order of the units."""
        return map(self.shard, range(self.n_shards))

    def batches(self, site: str, batch_size: int, **options: Any) -> Batches:
        """Shuffled batches of a site's rows, for trainers; `options` are those of Batches."""
        from actscope.harvest.batches import Batches

        return Batches(self, site, batch_size, **options)

    def _data(self, entry: ShardEntry) -> Any:
        if not isinstance(self._storage, LocalStorage):
            data = self._storage.get(entry.name)
            return None if data is None else bytearray(data)
        try:
            with (self._storage.root / entry.name).open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # nothing that is written gets to the file
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise HarvestDamaged(f"{self._storage.url}/{entry.name}: cannot be mapped: {error}") from error


class ShardRows:
    """The rows of a unit: `rows(site)` [n, d], and labels [n], without a copy."""

    def __init__(self, data: Any, plan: HarvestPlan, n_rows: int, where: str) -> None:
        self.n_rows = n_rows
        self._data, self._plan = data, plan
        entries, self._start = read_header(data, where)
        if (wrong := _check_entries(entries, plan, n_rows, len(data) - self._start)) is not None:
            raise HarvestDamaged(f"{where}: {wrong}")
        self._offsets = {name: entry["data_offsets"][0] for name, entry in entries.items() if name != "__metadata__"}

    def rows(self, site: str) -> Tensor:
        """[n, d] in the harvest's dtype. Raises SettingsError for a site that was not harvested."""
        import torch

        if site not in self._plan.sites:
            raise SettingsError(f"site {site!r}: this harvest has {', '.join(self._plan.sites)}")
        count = self.n_rows * self._plan.d_model
        dtype = getattr(torch, self._plan.dtype)
        if not count:
            return torch.empty(0, self._plan.d_model, dtype=dtype)
        flat = torch.frombuffer(self._data, dtype=dtype, count=count, offset=self._start + self._offsets[site])
        return flat.view(self.n_rows, self._plan.d_model)

    def labels(self, name: str) -> np.ndarray:
        """text int64, piece, position or token_id int32 [n]: see docs/harvest.md."""
        dtype = np.dtype(f"<i{LABELS[name][1]}")
        return np.frombuffer(self._data, dtype, self.n_rows, self._start + self._offsets[name])


def check_shard(head: bytes, plan: HarvestPlan, receipt: Receipt) -> str | None:
    """What is wrong with a shard, as far as its first bytes say; None when nothing is."""
    if plan.shard_format != "safetensors":
        return None
    try:
        entries, start = read_header(head, "")
    except HarvestDamaged as error:
        return str(error).removeprefix(": ")
    return _check_entries(entries, plan, receipt.rows, receipt.files[0].bytes - start)


def read_header(data: Any, where: str) -> tuple[dict[str, Any], int]:
    """A safetensors header, and where the tensors begin. Raises HarvestDamaged for what is none."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(_MOST_HEADER, len(data) - 8):
        raise HarvestDamaged(f"{where}: is no safetensors file: its header is said to have {size} bytes")
    try:
        entries = json.loads(bytes(data[8 : 8 + size]))
    except ValueError as error:
        raise HarvestDamaged(f"{where}: is no safetensors file: {error}") from error
    if not isinstance(entries, dict):
        raise HarvestDamaged(f"{where}: is no safetensors file: its header is no object")
    return entries, 8 + size


def _check_entries(entries: dict[str, Any], plan: HarvestPlan, rows: int, length: int) -> str | None:
    """What of a header is not as it must be for this plan and so many rows."""
    expected = {name: (kind, [rows], width * rows) for name, (kind, width) in LABELS.items()}
    kind, width = TYPES[plan.dtype]
    expected |= {site: (kind, [rows, plan.d_model], rows * plan.d_model * width) for site in plan.sites}
    if missing := expected.keys() ^ (entries.keys() - {"__metadata__"}):
        return f"expected tensors {', '.join(expected)}; differs in {', '.join(sorted(missing))}"
    for name, (kind, shape, size) in expected.items():
        begin, end = _span(entries[name])
        if (entries[name].get("dtype"), entries[name].get("shape"), end - begin) != (kind, shape, size) or end > length:
            return f"tensor {name}: expected {kind} {shape}, {size} bytes, found {entries[name]}"
    return None


def _span(entry: Any) -> tuple[int, int]:
    """The offsets of a tensor; (0, -1), which fits none, when they are none."""
    found = entry.get("data_offsets") if isinstance(entry, dict) else None
    match found:
        case [int(begin), int(end)] if 0 <= begin <= end:
            return begin, end
    return 0, -1

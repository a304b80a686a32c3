"""Reading of safetensors shards: rows and labels without a copy, and checks of the header."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

import numpy as np

from actscope.errors import HarvestDamaged, SettingsError
from actscope.harvest.commit import Receipt
from actscope.harvest.plan import HarvestPlan
from actscope.harvest.shards.safetensors import LABELS, TYPES
from actscope.runtime.decoding import decode_json

if TYPE_CHECKING:
    from torch import Tensor

#: A shard's bytes: read, or mapped copy-on-write.
Mapped = bytes | bytearray | mmap.mmap

_MOST_HEADER = 16 << 20


class ShardRows:
    """Rows of one shard: `rows(site)` [n, d] and `labels(name)` [n], both views of the file's bytes.

    Raises:
        HarvestDamaged: The header is malformed, or does not match the plan.
    """

    def __init__(self, data: Mapped, plan: HarvestPlan, n_rows: int, where: str) -> None:
        self.n_rows = n_rows
        self._data, self._plan = data, plan
        entries, self._start = read_header(data, where)
        if (wrong := _check_entries(entries, plan, n_rows, len(data) - self._start)) is not None:
            raise HarvestDamaged(f"{where}: {wrong}")
        self._offsets = {name: entry["data_offsets"][0] for name, entry in entries.items() if name != "__metadata__"}

    def rows(self, site: str) -> Tensor:
        """Return a view of the rows of one site.

        Args:
            site: Name of the site.

        Returns:
            Rows [n, d] in the harvest's dtype, on the CPU.

        Raises:
            SettingsError: The site was not harvested.
        """
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
        """Return a view of one label of all rows; see docs/harvest.md.

        Args:
            name: "text" (int64), "piece", "position" or "token_id" (int32).

        Returns:
            Array [n].

        Raises:
            KeyError: There is no such label.
        """
        dtype = np.dtype(f"<i{LABELS[name][1]}")
        return np.frombuffer(self._data, dtype, self.n_rows, self._start + self._offsets[name])


def check_shard(head: bytes, plan: HarvestPlan, receipt: Receipt) -> str | None:
    """Return the first defect of a shard that its header shows, or None. Checks safetensors shards only."""
    if plan.shard_format != "safetensors":
        return None
    try:
        entries, start = read_header(head, "")
    except HarvestDamaged as error:
        return str(error).removeprefix(": ")
    return _check_entries(entries, plan, receipt.rows, receipt.files[0].bytes - start)


def read_header(data: Mapped, where: str) -> tuple[dict[str, Any], int]:
    """Return a safetensors header, and the offset of the tensors. Raises HarvestDamaged if the header is malformed."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(_MOST_HEADER, len(data) - 8):
        raise HarvestDamaged(f"{where}: is not a safetensors file: its header claims {size} bytes")
    what = f"{where}: is not a safetensors file"
    return decode_json(bytes(data[8 : 8 + size]), dict[str, Any], HarvestDamaged, what), 8 + size


def _check_entries(entries: dict[str, Any], plan: HarvestPlan, rows: int, length: int) -> str | None:
    """Return the first mismatch between a header and the plan, or None."""
    expected = {name: (kind, [rows], width * rows) for name, (kind, width) in LABELS.items()}
    kind, width = TYPES[plan.dtype]
    expected |= {site: (kind, [rows, plan.d_model], rows * plan.d_model * width) for site in plan.sites}
    if missing := expected.keys() ^ (entries.keys() - {"__metadata__"}):
        return f"expected tensors {', '.join(expected)}; missing or unexpected: {', '.join(sorted(missing))}"
    for name, (kind, shape, size) in expected.items():
        begin, end = _span(entries[name])
        if (entries[name].get("dtype"), entries[name].get("shape"), end - begin) != (kind, shape, size) or end > length:
            return f"tensor {name}: expected {kind} {shape}, {size} bytes, found {entries[name]}"
    return None


def _span(entry: object) -> tuple[int, int]:
    """Return the offsets of a tensor; (0, -1), which fits no tensor, if they are malformed."""
    found = entry.get("data_offsets") if isinstance(entry, dict) else None
    match found:
        case [int(begin), int(end)] if 0 <= begin <= end:
            return begin, end
    return 0, -1

"""Baseline without a feed: a torch DataLoader over a memory-mapped safetensors file of rows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler


class _Rows(Dataset[Tensor]):
    """Dataset of rows. An index gives one row; a list of indices gives a batch at once."""

    def __init__(self, path: Path) -> None:
        with ExitStack() as stack:
            file: Any = stack.enter_context(safe_open(path, "pt"))
            self._rows: Tensor = file.get_tensor("activations")  # a view of the mapped file

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int | list[int]) -> Tensor:
        return self._rows[number]


class Loaders:
    """Shuffling loaders over one file: row by row, in this process and with two workers, and by lists of rows."""

    def __init__(self, path: Path, rows: Tensor, batch: int) -> None:
        save_file({"activations": rows}, path)
        dataset = _Rows(path)
        by_batch = BatchSampler(RandomSampler(dataset), batch, drop_last=False)
        self._all: dict[str, DataLoader[Tensor]] = {
            "loader": DataLoader(dataset, batch, shuffle=True),
            "loader_2_workers": DataLoader(dataset, batch, shuffle=True, num_workers=2, persistent_workers=True),
            "loader_by_batch": DataLoader(dataset, batch_size=None, sampler=by_batch),
        }
        for loader in self._all.values():
            _drain(iter(loader))

    def epoch(self) -> dict[str, float]:
        """Return the seconds that each loader takes to read all rows once."""
        return {name: _seconds(loader) for name, loader in self._all.items()}


def _seconds(loader: DataLoader[Tensor]) -> float:
    begin = time.perf_counter()
    _drain(iter(loader))
    return time.perf_counter() - begin


def _drain(batches: Iterator[Tensor]) -> None:
    for batch in batches:
        assert isinstance(batch, torch.Tensor)

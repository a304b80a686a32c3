"""Host buffers for rows: one tensor on the CPU per site, filled from the device in any order."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

#: Maximum number of copies in flight per site, while the model computes further batches.
_UNDER_WAY = 2


class Landing:
    """Host buffers `values[i]` [n, d] of the i-th site. A GPU's rows are copied asynchronously, through pinned memory."""

    def __init__(self, n_rows: int, widths: Sequence[int], dtype: torch.dtype) -> None:
        self.values = [torch.empty(n_rows, width, dtype=dtype) for width in widths]
        self._dtype = dtype
        self._waiting: deque[tuple[torch.cuda.Event, Tensor, int, Tensor]] = deque()

    def put(self, number: int, rows: Tensor, chosen: Tensor, places: Tensor) -> None:
        """Copy `rows[chosen]` of a site to `values[number][places]`.

        `chosen` is int64 on the rows' device, `places` int64 on the CPU. The copy from a GPU may complete later.
        """
        picked = rows.index_select(0, chosen).to(self._dtype)
        if not picked.is_cuda:
            self.values[number].index_copy_(0, places, picked)
            return
        pinned = torch.empty(picked.shape, dtype=self._dtype, pin_memory=True)
        pinned.copy_(picked, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._waiting.append((event, pinned, number, places))
        self._settle(_UNDER_WAY * len(self.values))

    def finish(self) -> list[Tensor]:
        """Wait for all copies and return the values."""
        self._settle(0)
        return self.values

    def _settle(self, allowed: int) -> None:
        while len(self._waiting) > allowed:
            event, pinned, number, places = self._waiting.popleft()
            event.synchronize()
            self.values[number].index_copy_(0, places, pinned)

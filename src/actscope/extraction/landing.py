"""Where rows come down from the device: one tensor on the CPU for each site, filled in any order."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

#: So many copies of each site may be under way while the model computes further ones.
_UNDER_WAY = 2


class Landing:
    """`values[i]` [n, d] of the i-th site. Rows of a GPU come through pinned memory, while the next batch is computed."""

    def __init__(self, n_rows: int, widths: Sequence[int], dtype: torch.dtype) -> None:
        self.values = [torch.empty(n_rows, width, dtype=dtype) for width in widths]
        self._dtype = dtype
        self._waiting: deque[tuple[torch.cuda.Event, Tensor, int, Tensor]] = deque()

    def put(self, number: int, rows: Tensor, chosen: Tensor, places: Tensor) -> None:
        """Put rows[chosen] of a site at these places. `chosen` is on the rows' device, `places` on the CPU; both int64."""
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
        """The values, once all that was put has come down."""
        self._settle(0)
        return self.values

    def _settle(self, allowed: int) -> None:
        while len(self._waiting) > allowed:
            event, pinned, number, places = self._waiting.popleft()
            event.synchronize()
            self.values[number].index_copy_(0, places, pinned)

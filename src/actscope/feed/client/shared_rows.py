"""Rows of a feed on the same machine, read from its shared memory as tensors."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from actscope.feed.buffer.gather import indices_of, labels_of, unchanged
from actscope.feed.buffer.layout import Layout
from actscope.feed.buffer.memory import FeedMemory
from actscope.feed.client.private_views import PrivateViews
from actscope.feed.messages import Stretch

log = logging.getLogger("actscope.feed")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class SharedRows:
    """Reader of a feed's memory, mapped read-only. Its windows are seqlocks: after reading, check `intact`.

    Args:
        fd: Descriptor of the memory. This object closes it.
        layout: Layout of the memory.
        seed: Seed of the feed's order.

    Raises:
        FeedError: The descriptor is not memory of this layout.
    """

    def __init__(self, fd: int, layout: Layout, seed: int) -> None:
        self._memory = FeedMemory.attach(fd, layout)
        self._seed = seed
        self.planes = [[self._plane(w, s) for s in range(layout.n_sites)] for w in range(layout.n_windows)]
        """Rows [window_rows, width] of each site of each window, read-only: never handed out, as a write would be a crash."""
        self._private: PrivateViews | None = None

    @property
    def layout(self) -> Layout:
        """Return the layout of the memory."""
        return self._memory.layout

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the rows."""
        return DTYPES[self.layout.dtype]

    def read(self, extents: Sequence[Stretch], sites: Sequence[int], out: Tensor) -> None:
        """Copy the rows of these extents to `out`: [n, width] for one site, [n, sites, width] for several."""
        begin = 0
        for extent in extents:
            part, indices = out[begin : begin + extent.n], indices_of(extent, self._seed)
            for place, site in enumerate(sites):
                _copy(self.planes[extent.window][site], indices, part if len(sites) == 1 else part[:, place])
            begin += extent.n

    @contextmanager
    def view(self, extents: Sequence[Stretch], site: int) -> Iterator[Tensor]:
        """Yield the rows [n, width] of one site: a view of the memory if they are contiguous, else a copy.

        A view is valid within the context, in which the grant of these extents must be held. It may be written to: the write is
        seen by this view alone. A copy is yielded also where the memory cannot be mapped once more.
        """
        first = extents[0]
        contiguous = len(extents) == 1 and isinstance(indices_of(first, self._seed), slice)
        private = self.private_views() if contiguous else None
        if private is None:
            out = torch.empty(sum(extent.n for extent in extents), self.layout.width, dtype=self.dtype)
            self.read(extents, [site], out)
            yield out
            return
        with private.view(first.window, site, first.start, first.n) as held:
            yield held.rows

    def private_views(self) -> PrivateViews | None:
        """Return the mapping of which views are made, or None where the memory cannot be mapped once more."""
        if self._private is None:
            try:
                self._private = PrivateViews(self._memory.fd, self.layout, self.dtype)
            except OSError as error:
                log.info("batches are copied, because the feed's memory cannot be mapped once more: %s", error)
        return self._private

    def labels(self, extents: Sequence[Stretch]) -> np.ndarray:
        """Return the label of each row, ROW_LABEL [n]."""
        return labels_of(self._memory, extents, self._seed)

    def intact(self, extents: Sequence[Stretch]) -> bool:
        """Return whether the rows read so far are intact. False if the lease expired and their window is being refilled."""
        return unchanged(self._memory, extents)

    def _plane(self, window: int, site: int) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*")  # the tensor is never written
            return torch.from_numpy(self._memory.plane(window, site)).view(DTYPES[self._memory.layout.dtype])

    def close(self) -> None:
        """Unmap the memory. Views that are still in use keep it mapped until they are dropped."""
        self.planes = []
        if self._private is not None:
            self._private.close()
        self._memory.close()


def _copy(plane: Tensor, indices: slice | np.ndarray, out: Tensor) -> None:
    if isinstance(indices, slice):
        out.copy_(plane[indices])
    else:
        torch.index_select(plane, 0, torch.from_numpy(indices), out=out)  # via a temporary tensor: 3 to 7 times slower

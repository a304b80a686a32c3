"""Probe banks in the model's process: unpacked on a client thread, applied by the model's thread between two passes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from actscope.engines.vllm.sidecar_protocol import SetBank, SiteBank
from actscope.taps.tap import TapBuffers


@dataclass(slots=True)
class _Slots:
    """The probes of one site as `TapBuffers` stores them: weight float32 [d, k]; the other tensors [k]."""

    weight: Tensor
    bias: Tensor
    jump: Tensor
    activation: Tensor
    columns: Tensor
    since: list[int]


@dataclass(slots=True)
class InForce:
    """The bank that scores the next pass: the columns filled by each site, and the generation of each column's probe."""

    columns_of: dict[int, list[int]]
    since: np.ndarray  # int64 [width]
    generation: int = 0


@dataclass(slots=True)
class StagedBank:
    """A bank change to apply before the next pass. Changes that arrive between two passes are merged into one."""

    generation: int
    sites: dict[int, _Slots] = field(default_factory=dict)

    @classmethod
    def of(cls, message: SetBank, d: int, width: int) -> StagedBank:
        """Unpack a message. Raises ValueError if its probes do not fit `d`, `width` or each other."""
        return cls(message.generation, {bank.site: _unpack(bank, d, width) for bank in message.sites})

    def over(self, older: StagedBank | None) -> StagedBank:
        """Merge this change over `older`, which was staged but not applied yet."""
        return self if older is None else StagedBank(self.generation, {**older.sites, **self.sites})

    def put(self, buffers: TapBuffers, now: InForce) -> InForce:
        """Write the change into `buffers` and return the bank that replaces `now`. The model must not run meanwhile."""
        columns_of, since = dict(now.columns_of), now.since.copy()
        for site, slots in self.sites.items():
            k = slots.weight.shape[1]
            buffers.active[site] = 0
            buffers.columns[site] = buffers.n_columns  # the spare column
            buffers.weight[site, :, :k] = slots.weight
            for name in ("bias", "jump", "activation", "columns"):
                getattr(buffers, name)[site, :k] = getattr(slots, name)
            buffers.active[site] = k
            columns_of[site] = slots.columns.tolist()
            since[columns_of[site]] = slots.since
        buffers.board.fill_(torch.nan)
        return InForce(columns_of, since, self.generation)


def _unpack(bank: SiteBank, d: int, width: int) -> _Slots:
    """Copy one site's probes into tensors. Raises ValueError for mismatched sizes or columns outside `width`."""
    k = len(bank.columns)
    if k > width or len(bank.activation) != k or any(not 0 <= column < width for column in bank.columns):
        raise ValueError(f"site {bank.site}: {k} probes in columns {bank.columns}, there are {width} columns")
    weight = np.frombuffer(bank.weight, np.float32).reshape(d, k)
    bias, jump = (np.frombuffer(raw, np.float32).reshape(k) for raw in (bank.bias, bank.jump))
    return _Slots(
        torch.from_numpy(weight.copy()),
        torch.from_numpy(bias.copy()),
        torch.from_numpy(jump.copy()),
        torch.tensor(bank.activation, dtype=torch.int64),
        torch.tensor(bank.columns, dtype=torch.int64),
        bank.since,
    )

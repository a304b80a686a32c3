"""Probes on their way into the model: unpacked on one thread, put in force by the model's own between two passes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from actscope.engines.vllm.sidecar_protocol import SetBank, SiteBank
from actscope.taps.tap import TapBuffers


@dataclass(slots=True)
class _Slots:
    """One site's probes, as the buffers take them: weight [d, k], the rest [k]."""

    weight: Tensor
    bias: Tensor
    jump: Tensor
    activation: Tensor
    columns: Tensor
    since: list[int]


@dataclass(slots=True)
class InForce:
    """The bank that the coming pass is scored with: which columns each site fills, and since when each column has its probe."""

    columns_of: dict[int, list[int]]
    since: np.ndarray  # int64 [width]
    generation: int = 0


@dataclass(slots=True)
class StagedBank:
    """What is to be in force from the next pass on; several changes between two passes become one."""

    generation: int
    sites: dict[int, _Slots] = field(default_factory=dict)

    @classmethod
    def of(cls, message: SetBank, d: int, width: int) -> StagedBank:
        """Unpack a message. Raises ValueError for numbers that do not fit."""
        return cls(message.generation, {bank.site: _unpack(bank, d, width) for bank in message.sites})

    def over(self, older: StagedBank | None) -> StagedBank:
        """This change on top of one that has not been put in force yet."""
        return self if older is None else StagedBank(self.generation, {**older.sites, **self.sites})

    def put(self, buffers: TapBuffers, now: InForce) -> InForce:
        """Put it in force, instead of `now`. The model must not run meanwhile."""
        columns_of, since = dict(now.columns_of), now.since.copy()
        for site, slots in self.sites.items():
            k = slots.weight.shape[1]
            buffers.active[site] = 0
            buffers.columns[site] = buffers.n_columns  # the spare
            buffers.weight[site, :, :k] = slots.weight
            for name in ("bias", "jump", "activation", "columns"):
                getattr(buffers, name)[site, :k] = getattr(slots, name)
            buffers.active[site] = k
            columns_of[site] = slots.columns.tolist()
            since[columns_of[site]] = slots.since
        buffers.board.fill_(torch.nan)
        return InForce(columns_of, since, self.generation)


def _unpack(bank: SiteBank, d: int, width: int) -> _Slots:
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

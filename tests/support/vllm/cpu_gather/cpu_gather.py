"""A vLLM plugin with the two collectives that vLLM 0.32 lacks on CPU, so that data-parallel engines of a MoE model run there.

A stand-in for kernels, written from their description in vLLM's base class. Found by its entry point, and only by processes that
have this folder on PYTHONPATH.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def register() -> None:
    """Once per process, as vLLM loads plugins more than once."""
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    CpuCommunicator.all_gatherv = _all_gatherv
    CpuCommunicator.reduce_scatterv = _reduce_scatterv


def _all_gatherv(self: Any, input_: Any, dim: int = 0, sizes: Sequence[int] | None = None) -> Any:
    """The rows of all ranks, of which each has its own number."""
    import torch

    if isinstance(input_, list):
        return [_all_gatherv(self, one, dim, sizes) for one in input_]
    sizes = sizes or [len(input_)] * self.world_size
    padded = input_.new_zeros((max(sizes), *input_.shape[1:]))
    padded[: len(input_)] = input_
    gathered = [torch.empty_like(padded) for _ in sizes]
    torch.distributed.all_gather(gathered, padded, group=self.device_group)
    return torch.cat([rows[:size] for rows, size in zip(gathered, sizes, strict=True)])


def _reduce_scatterv(self: Any, input_: Any, dim: int = -1, sizes: Sequence[int] | None = None) -> Any:
    """The sum over all ranks, of which each gets its own rows."""
    import torch

    sizes = sizes or [len(input_) // self.world_size] * self.world_size
    whole = input_.contiguous().clone()
    torch.distributed.all_reduce(whole, group=self.device_group)
    start = sum(sizes[: self.rank_in_group])
    return whole[start : start + sizes[self.rank_in_group]].clone()

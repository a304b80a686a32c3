"""Operations that run inside the model's forward pass, as `torch.library` custom ops.

Each writes into whole buffers that outlive the step and declares so (`mutates_args`). torch.compile would clone a view, and would
remove an op without declared mutation as dead code.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("actscope::score", mutates_args=["board"])
def score(
    hidden: Tensor, board: Tensor, weight: Tensor, bias: Tensor, jump: Tensor, activation: Tensor, columns: Tensor
) -> None:
    """Score every row of `hidden` [..., d] into column `columns[j]` of the first rows of `board`.

    board float32 [max_rows, width + 1]; its last column is a spare for the unused probes of a fixed-capacity bank.
    weight float32 [d, k]; bias, jump float32 [k]; activation int64 [k], codes of `actscope.probes.ACTIVATIONS`;
    columns int64 [k]. Rows beyond `max_rows` are not scored. NaN on the board means "not computed", so a NaN score is
    written as infinity: computed, but not finite.
    """
    rows = hidden.reshape(-1, hidden.shape[-1])[: board.shape[0]]
    z = torch.addmm(bias, rows.to(weight.dtype), weight)
    scores = activate(z, activation, jump)
    board[: len(rows)].index_copy_(1, columns, torch.where(scores.isnan(), torch.inf, scores))


@score.register_fake
def _(hidden, board, weight, bias, jump, activation, columns) -> None:  # type: ignore[no-untyped-def]  # shapes only
    return None


def activate(z: Tensor, activation: Tensor, jump: Tensor) -> Tensor:
    """Apply each column's own activation to z [n, k]. Torch counterpart of `actscope.probes.score.activate`."""
    out = torch.where(activation == 1, z.clamp(min=0), z)
    out = torch.where(activation == 2, z.sigmoid(), out)
    return torch.where((activation == 3) & (z <= jump), 0.0, out)


@torch.library.custom_op("actscope::keep", mutates_args=["store"])
def keep(hidden: Tensor, store: Tensor, slot: int) -> None:
    """Copy the rows of `hidden` [..., d] to the first rows of `store[slot]`. store is [n_sites, max_rows, d]."""
    rows = hidden.reshape(-1, hidden.shape[-1])[: store.shape[1]]
    store[slot, : len(rows)].copy_(rows)


@keep.register_fake
def _(hidden, store, slot) -> None:  # type: ignore[no-untyped-def]  # shapes only
    return None

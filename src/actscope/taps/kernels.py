"""The tap on CUDA: scores and rows of one site in one forward pass, with a torch reference of the same signature.

The tests run the kernels (`actscope.taps.triton_tap`) in Triton's interpreter on CPU tensors, and compile them for sm_90 without
launching them. They have not been run on a GPU. The reference has run on CPU tensors only. Both guarantee:

* `x = hidden + residual`, summed in float32 and rounded once to the dtype of `hidden`; `hidden` itself without a residual.
  Scores are of that x, with products and sums in float32: a score is exactly that of the row kept beside it.
* `board[:n, columns[site, j]] = act_j(x @ weight[site, :, j] + bias[site, j])` for j < `active[site]`; NaN becomes +inf.
* `store[:n, keep[site] * d : (keep[site] + 1) * d] = x` if `wanted[0] != 0` and the store has that part.
* `fired[site] += 1`, in stream order after all of the above.
* Rows beyond the board's or the store's are ignored. A column outside the board means the spare, its last column, whose content
  is meaningless. No value is read back to the host and no kernel is chosen by timing, so a CUDA graph can capture both.

Operands are whole buffers that outlive the step. hidden, residual [..., d]: float32, bfloat16 or float16. board float32
[max_rows, width + 1]; store [max_rows, n_kept * d] of those dtypes; weight float32 [n_sites, d, K]; bias, jump float32
[n_sites, K]; activation (codes of `actscope.probes.ACTIVATIONS`), columns: integers [n_sites, K]; active, keep int32 [n_sites];
wanted int32 [1]; fired int64 [n_sites]. All but hidden and residual are contiguous.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from actscope.taps.ops import activate

_BLOCK_ROWS, _BLOCK_SLOTS, _BLOCK_DIMS = 16, 16, 128  # tl.dot needs at least 16 by 16
_COPY_ROWS, _COPY_DIMS = 4, 1024
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def available() -> bool:
    """Return whether Triton is installed and can run here: on a GPU, or in its interpreter (`TRITON_INTERPRET=1`)."""
    runs = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
    return runs and importlib.util.find_spec("triton") is not None


def tap_cuda(
    hidden: Tensor, residual: Tensor | None, board: Tensor, store: Tensor, weight: Tensor, bias: Tensor, jump: Tensor,
    activation: Tensor, columns: Tensor, active: Tensor, keep: Tensor, wanted: Tensor, fired: Tensor, site: int,
) -> None:  # fmt: skip
    """Run the tap on the current stream: Triton kernels, or the reference if Triton is unavailable. See the module docstring.

    Raises ValueError for operands that the kernels cannot read.
    """
    if not available():
        tap_reference(
            hidden, residual, board, store, weight, bias, jump, activation, columns, active, keep, wanted, fired, site
        )
        return
    hidden, residual = _rows(hidden), None if residual is None else _rows(residual)
    _check(hidden, residual, board, store, weight, site)
    triton_tap = _kernels()
    stream = _stream(hidden, residual)
    _score(triton_tap, stream, board, (weight, bias, jump, activation, columns, active), site)
    _copy(triton_tap, stream, store, keep, wanted, site)
    triton_tap.count_pass[(1,)](fired, site)


def tap_reference(
    hidden: Tensor, residual: Tensor | None, board: Tensor, store: Tensor, weight: Tensor, bias: Tensor, jump: Tensor,
    activation: Tensor, columns: Tensor, active: Tensor, keep: Tensor, wanted: Tensor, fired: Tensor, site: int,
) -> None:  # fmt: skip
    """Run the tap in torch operations without data-dependent shapes; unrequested values are computed, then masked."""
    x = _sum(_rows(hidden), None if residual is None else _rows(residual))
    used = torch.arange(weight.shape[2], device=x.device) < active[site]
    to = torch.where(used & _within(columns[site], board.shape[1] - 1), columns[site], board.shape[1] - 1)
    _score_reference(x, board, (weight[site], bias[site], jump[site], activation[site], to))
    _copy_reference(x, store, keep[site], wanted[0] != 0)
    fired[site].add_(1)


def _sum(hidden: Tensor, residual: Tensor | None) -> Tensor:
    return hidden if residual is None else (hidden.float() + residual.float()).to(hidden.dtype)


def _within(index: Tensor, size: int) -> Tensor:
    return (index >= 0) & (index < size)


def _score_reference(x: Tensor, board: Tensor, operands: tuple[Tensor, ...]) -> None:
    weight, bias, jump, activation, to = operands
    x = x[: board.shape[0]]
    scores = activate(torch.addmm(bias, x.to(weight.dtype), weight), activation, jump)
    board[: len(x)].index_copy_(1, to.to(torch.int64), torch.where(scores.isnan(), torch.inf, scores))


def _copy_reference(x: Tensor, store: Tensor, part: Tensor, wanted: Tensor) -> None:
    x, d = x[: store.shape[0]], x.shape[1]
    parts = store.shape[1] // d
    if not parts:
        return
    kept = store[: len(x), : parts * d].view(len(x), parts, d)
    to = part.clamp(0, parts - 1).to(torch.int64).reshape(1)
    taken = torch.where(wanted & _within(part, parts), x.to(store.dtype)[:, None], kept.index_select(1, to))
    kept.index_copy_(1, to, taken)


def _rows(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def _check(hidden: Tensor, residual: Tensor | None, board: Tensor, store: Tensor, weight: Tensor, site: int) -> None:
    n_sites, d, _ = weight.shape
    if not 0 <= site < n_sites or hidden.shape[1] != d or (residual is not None and residual.shape != hidden.shape):
        found = (list(hidden.shape), None if residual is None else list(residual.shape))
        raise ValueError(f"tap of site {site} of {n_sites}: expected hidden, residual [n, {d}], found {found}")
    for what, tensor in (("hidden", hidden), ("residual", residual), ("store", store)):
        if tensor is not None and tensor.dtype not in _DTYPES:
            raise ValueError(f"tap: {what} is {tensor.dtype}; expected one of {', '.join(map(str, _DTYPES))}")
    if board.dtype != torch.float32 or weight.dtype != torch.float32:
        raise ValueError(f"tap: board and weight must be float32, found {board.dtype} and {weight.dtype}")
    if not (board.is_contiguous() and store.is_contiguous() and weight.is_contiguous()):
        raise ValueError("tap: board, store and weight must be contiguous: pass whole buffers, not views of them")


@functools.cache
def _kernels() -> ModuleType:
    from actscope.taps import triton_tap

    return triton_tap


#: hidden, residual (or hidden again), their strides, and the kernel constants for reading them.
_Stream = tuple[Tensor, Tensor, tuple[int, int, int, int], dict[str, Any]]


def _stream(hidden: Tensor, residual: Tensor | None) -> _Stream:
    other = hidden if residual is None else residual
    constants = {"D": hidden.shape[1], "HAS_RESIDUAL": residual is not None, "SUM": _triton_dtype(hidden.dtype)}
    return hidden, other, (*hidden.stride(), *other.stride()), constants  # type: ignore[return-value]  # both are 2-d


def _triton_dtype(dtype: torch.dtype) -> Any:
    import triton.language as tl  # type: ignore[import-not-found,unused-ignore]  # may be absent where mypy runs

    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]


def _score(kernels: ModuleType, stream: _Stream, board: Tensor, operands: tuple[Tensor, ...], site: int) -> None:
    hidden, residual, strides, constants = stream
    n, k = min(len(hidden), len(board)), operands[0].shape[2]
    if n == 0:
        return
    kernels.score_rows[(-(-n // _BLOCK_ROWS), -(-k // _BLOCK_SLOTS))](
        hidden, residual, board, *operands, n, site, *strides, board.stride(0), board.shape[1] - 1,
        K=k, BLOCK_N=_BLOCK_ROWS, BLOCK_K=_BLOCK_SLOTS, BLOCK_D=_BLOCK_DIMS, **constants,
    )  # fmt: skip


def _copy(kernels: ModuleType, stream: _Stream, store: Tensor, keep: Tensor, wanted: Tensor, site: int) -> None:
    hidden, residual, strides, constants = stream
    n, d = min(len(hidden), len(store)), hidden.shape[1]
    if n == 0 or store.shape[1] < d:
        return
    kernels.copy_rows[(-(-n // _COPY_ROWS), -(-d // _COPY_DIMS))](
        hidden, residual, store, keep, wanted, n, site, *strides, store.stride(0), store.shape[1],
        BLOCK_N=_COPY_ROWS, BLOCK_D=_COPY_DIMS, STORE=_triton_dtype(store.dtype), **constants,
    )  # fmt: skip

# mypy: ignore-errors
# Triton's language is Python only in its syntax: its types are not Python's, and it may be absent where mypy runs.
"""The tap's three Triton kernels, launched by `actscope.taps.kernels`. Import this module only if Triton is installed.

`n` and `site` are not specialized, so another batch size never compiles a kernel. Row offsets are int64: a store of 8,192 rows
of 80 sites of width 8,192 has more elements than int32 can count.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _rounded(x, TO: tl.constexpr):
    """fp32 `x` rounded to nearest, ties to even, to what dtype TO can hold; stays fp32.

    bfloat16 is rounded by its bits: Triton's interpreter truncates where the GPU rounds, and so both agree exactly.
    """
    if TO == tl.bfloat16:  # noqa: SIM300  TO is the variable
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    if TO == tl.float16:  # noqa: SIM300
        x = x.to(tl.float16).to(tl.float32)
    return x


@triton.jit
def _stream(
    hidden, residual, rows, at, inside, h_row, h_col, r_row, r_col, HAS_RESIDUAL: tl.constexpr, SUM: tl.constexpr
):
    """fp32 tile of the stream: `hidden`, or `hidden + residual` rounded once to SUM, as torch's `+` does it."""
    x = tl.load(hidden + rows[:, None] * h_row + at[None, :] * h_col, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        r = tl.load(residual + rows[:, None] * r_row + at[None, :] * r_col, mask=inside, other=0.0)
        x = _rounded(x + r.to(tl.float32), SUM)
    return x


@triton.jit
def _activated(z, code, jump):
    """`activate` of taps/ops.py, then NaN as +inf. Comparisons are written so that NaN passes through them."""
    small = tl.exp(-tl.abs(z))  # never overflows
    sigmoid = tl.where(z < 0, small, 1.0) / (1.0 + small)
    y = tl.where((code == 1) & (z < 0), 0.0, z)
    y = tl.where(code == 2, sigmoid, y)
    y = tl.where((code == 3) & (z <= jump), 0.0, y)
    return tl.where((y != y) | (z != z), float("inf"), y)


@triton.jit(do_not_specialize=["n", "site"])
def score_rows(
    hidden, residual, board, weight, bias, jump, activation, columns, active,
    n, site, h_row, h_col, r_row, r_col, board_row, width,
    D: tl.constexpr, K: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SUM: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program scores BLOCK_N rows by BLOCK_K slots of `site`. `width` is the number of the spare column."""
    in_use = tl.minimum(tl.load(active + site), K)
    if tl.program_id(1) * BLOCK_K >= in_use:
        return
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    slots = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    used = slots < in_use
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in range(0, D, BLOCK_D):
        at = start + tl.arange(0, BLOCK_D)
        inside = (rows < n)[:, None] & (at < D)[None, :]
        x = _stream(hidden, residual, rows, at, inside, h_row, h_col, r_row, r_col, HAS_RESIDUAL, SUM)
        place = (site.to(tl.int64) * D + at)[:, None] * K + slots[None, :]
        w = tl.load(
            weight + place, mask=(at < D)[:, None] & (slots < K)[None, :], other=0.0
        )  # K's factor of 16 is seen
        total = tl.dot(x, w, total, input_precision="ieee")
    first = site.to(tl.int64) * K + slots
    z = total + tl.load(bias + first, mask=used, other=0.0)[None, :]
    code = tl.load(activation + first, mask=used, other=0)
    y = _activated(z, code[None, :], tl.load(jump + first, mask=used, other=0.0)[None, :])
    column = tl.load(columns + first, mask=used, other=0).to(tl.int64)
    column = tl.where((column >= 0) & (column < width), column, width)
    tl.store(board + rows[:, None] * board_row + column[None, :], y, mask=(rows < n)[:, None] & used[None, :])


@triton.jit(do_not_specialize=["n", "site"])
def copy_rows(
    hidden, residual, store, keep, wanted, n, site, h_row, h_col, r_row, r_col, store_row, width,
    D: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SUM: tl.constexpr, STORE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program copies BLOCK_N rows by BLOCK_D dimensions. A slot that `store`, `width` wide, has not is not written."""
    if tl.load(wanted) == 0:
        return
    slot = tl.load(keep + site).to(tl.int64)
    if (slot < 0) | ((slot + 1) * D > width):
        return
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    at = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (rows < n)[:, None] & (at < D)[None, :]
    x = _stream(hidden, residual, rows, at, inside, h_row, h_col, r_row, r_col, HAS_RESIDUAL, SUM)
    to = store + rows[:, None] * store_row + slot * D + at[None, :]
    tl.store(to, _rounded(x, STORE).to(STORE), mask=inside)


@triton.jit(do_not_specialize=["site"])
def count_pass(fired, site):
    """One program, in stream order after the other two: whoever sees the count sees all that they wrote."""
    tl.atomic_add(fired + site, tl.full((), 1, tl.int64), sem="release", scope="sys")

"""The tap's kernels against its reference, in Triton's interpreter: run by test_kernels.py in a process of its own.

The interpreter is chosen when Triton is imported, so `TRITON_INTERPRET=1` must be set before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from actscope.taps import kernels

# A row of NaN or infinities makes numpy, on which the interpreter runs, warn where a GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def operands(
    *, n: int = 10, d: int = 32, k: int = 16, max_rows: int = 16, dtype: torch.dtype = torch.float32,
    residual: torch.dtype | None = None, store: torch.dtype = torch.float32, parts: int = 2, used: tuple[int, ...] = (4, 16, 0),
    keep: tuple[int, ...] = (1, -1, 0), wanted: int = 1, seed: int = 0, whole: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Operands of three sites. Where `whole`, sums are exact in float32 in any order, and exactly meet some thresholds."""
    g, sites = torch.Generator().manual_seed(seed), len(used)

    def numbers(*shape: int, most: int = 32, step: float = 0.25) -> Tensor:
        if not whole:
            return torch.randn(*shape, generator=g)
        return torch.randint(-most, most, shape, generator=g) * step

    width = k + 3
    return {
        "hidden": numbers(n, d, step=0.125).to(dtype),
        "residual": None if residual is None else numbers(n, d, most=255, step=2).to(residual),
        "board": torch.full((max_rows, width + 1), torch.nan),
        "store": torch.full((max_rows, parts * d), 7, dtype=store),
        "weight": numbers(sites, d, k, most=4),
        "bias": numbers(sites, k),
        "jump": numbers(sites, k),
        "activation": torch.randint(0, 4, (sites, k), generator=g),
        "columns": torch.stack([torch.randperm(width, generator=g)[:k] for _ in used]),
        "active": torch.tensor(used, dtype=torch.int32),
        "keep": torch.tensor(keep, dtype=torch.int32),
        "wanted": torch.tensor([wanted], dtype=torch.int32),
        "fired": torch.zeros(sites, dtype=torch.int64),
    }


def both(given: dict[str, Any], tolerance: float = 1e-6) -> None:
    """Run kernels and reference on every site of equal operands, and compare all that they write but the spare column."""
    expected: dict[str, Any] = {name: None if tensor is None else tensor.clone() for name, tensor in given.items()}
    for site in range(len(given["fired"])):
        with np.errstate(all="ignore"):
            kernels.tap_cuda(**given, site=site)
        kernels.tap_reference(**expected, site=site)
    torch.testing.assert_close(
        given["board"][:, :-1], expected["board"][:, :-1], rtol=tolerance, atol=tolerance, equal_nan=True
    )
    torch.testing.assert_close(given["store"], expected["store"], rtol=0, atol=0, equal_nan=True)
    assert given["fired"].tolist() == expected["fired"].tolist() == [1] * len(given["fired"])


def test_the_interpreter_is_on() -> None:
    """What follows runs the kernels, not the reference twice."""
    assert kernels.available()


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_kernels_write_what_the_reference_writes(data: st.DataObject) -> None:
    """For any shape, dtype, site in use or not, with a residual or without, with more rows than places, NaN and infinities."""
    draw = data.draw
    given = operands(
        n=draw(st.integers(0, 40)),
        d=draw(st.sampled_from([1, 5, 16, 33, 128, 200])),
        k=draw(st.sampled_from([1, 7, 16, 20, 32])),
        max_rows=draw(st.integers(1, 24)),
        dtype=draw(st.sampled_from(DTYPES)),
        residual=draw(st.none() | st.sampled_from(DTYPES)),
        store=draw(st.sampled_from(DTYPES)),
        parts=draw(st.integers(0, 3)),
        used=tuple(draw(st.lists(st.sampled_from([0, 1, 5, 16, 32]), min_size=3, max_size=3))),
        keep=tuple(draw(st.lists(st.integers(-1, 3), min_size=3, max_size=3))),
        wanted=draw(st.integers(0, 1)),
        seed=draw(st.integers(0, 2**31)),
        whole=True,
    )
    for row in draw(st.sets(st.integers(0, 39), max_size=4)):
        if row < len(given["hidden"]):
            given["hidden"][row, draw(st.integers(0, given["hidden"].shape[1] - 1))] = draw(
                st.sampled_from([torch.nan, torch.inf, -torch.inf])
            )
    both(given)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_a_models_width_are_scored_alike(dtype: torch.dtype) -> None:
    """On ordinary numbers and a width of 2,048 they differ by the rounding of sums only."""
    both(operands(n=20, d=2048, dtype=dtype, residual=dtype, store=dtype), tolerance=2e-3)


def test_what_is_not_a_number_does_not_reach_the_row_before() -> None:
    """Where a row ends inside a block of dimensions, the next row's first number is not read with it."""
    given = operands(n=6, d=33)
    given["hidden"][1::2, 0] = torch.nan
    both(given, tolerance=1e-4)
    assert given["board"][0:6:2, given["columns"][0, :4]].isfinite().all()


def test_columns_and_parts_that_are_not_there_hit_nothing_but_the_spare() -> None:
    given = operands(used=(16, 16, 16), keep=(-7, 2, 99))
    given["columns"][:, :4] = torch.tensor([-1, -(2**40), 19, 2**40])
    before = given["store"].clone()
    both(given, tolerance=1e-4)
    assert torch.equal(given["store"], before)


def test_rows_that_lie_apart_in_memory_are_read_where_they_lie() -> None:
    """A slice of a wider tensor, and a batch of sequences, give what their copies give."""
    given = operands(n=12, residual=torch.float32)
    given["hidden"] = torch.randn(12, 64)[:, ::2]
    given["residual"] = torch.randn(32, 12).t()
    both(given, tolerance=1e-4)
    batch = operands(n=12)
    batch["hidden"] = batch["hidden"].reshape(3, 4, -1)
    both(batch, tolerance=1e-4)

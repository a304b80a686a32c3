"""The tap for CUDA: its reference against numpy, and its kernels against the reference where Triton is installed.

Triton comes with vLLM. To run all of it: `<vLLM's python> -m pytest tests/taps/test_kernels.py`.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.taps.interpreted import DTYPES, operands
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)

from actscope.probes import ACTIVATIONS, score
from actscope.taps import kernels

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed here; it comes with vLLM: run this file with the python of a vLLM environment",
)


def run(given: dict[str, Any], site: int = 0) -> None:
    kernels.tap_reference(**given, site=site)


def stream(given: dict[str, Any]) -> np.ndarray:
    x = given["hidden"].float()
    x = x if given["residual"] is None else (x + given["residual"].float()).to(given["hidden"].dtype).float()
    array: np.ndarray = x.numpy()
    return array


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("residual", [None, *DTYPES])
def test_scores_are_those_of_the_definition(dtype: torch.dtype, residual: torch.dtype | None) -> None:
    """Of the stream rounded to the model's dtype, for every activation; no other column and no later row is written."""
    given = operands(dtype=dtype, residual=residual, used=(11, 0, 0))
    run(given)
    columns = given["columns"][0, :11].tolist()
    codes = {code: name for name, code in ACTIVATIONS.items()}
    names = [codes[code] for code in given["activation"][0, :11].tolist()]
    expected = score(
        stream(given),
        given["weight"][0, :, :11].numpy(),
        given["bias"][0, :11].numpy(),
        names,
        given["jump"][0].numpy(),
    )
    np.testing.assert_allclose(given["board"][:10, columns].numpy(), expected, rtol=1e-4, atol=1e-4)
    others = sorted(set(range(given["board"].shape[1] - 1)) - set(columns))
    assert given["board"][:, others].isnan().all() and given["board"][10:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_the_stream_in_the_dtype_of_the_store(dtype: torch.dtype) -> None:
    given = operands(dtype=torch.bfloat16, residual=torch.bfloat16, store=dtype)
    run(given)
    assert torch.equal(given["store"][:10, 32:], torch.from_numpy(stream(given)).to(dtype))
    assert (given["store"][10:] == 7).all() and (given["store"][:, :32] == 7).all()


def test_what_is_not_asked_for_is_left_alone_and_every_pass_is_counted() -> None:
    """A site without probes and without a part of the store, and a pass in which no rows are wanted, write nothing."""
    given = operands(used=(0, 4, 0), keep=(1, -1, 5), wanted=0)
    for site in (0, 2, 2):
        run(given, site)
    given["wanted"][:] = 1
    run(given, 2)
    assert given["board"][:, :-1].isnan().all() and (given["store"] == 7).all()
    assert given["fired"].tolist() == [1, 0, 3]


def test_more_rows_than_the_board_holds_and_wrong_columns_do_no_harm() -> None:
    given = operands(n=40, used=(16, 0, 0), keep=(0, -1, -1))
    given["columns"][0, :3] = torch.tensor([-4, 19, 1000])
    run(given)
    seen = given["columns"][0, 3:].tolist()
    assert given["board"][:, seen].isfinite().all() and int(given["board"][0, :-1].isfinite().sum()) == len(set(seen))
    assert torch.equal(given["store"][:, :32], given["hidden"][:16])


def test_a_score_that_is_not_a_number_is_infinite() -> None:
    given = operands(used=(16, 0, 0))
    given["hidden"][3, 5] = torch.nan
    run(given)
    assert (given["board"][3, given["columns"][0]] == torch.inf).all()


def test_the_reference_reads_nothing_back_and_has_fixed_shapes() -> None:
    """It runs on tensors that have shapes and no numbers, so that a CUDA graph can hold it."""
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        given = {name: mode.from_tensor(tensor) for name, tensor in operands(residual=torch.float32).items()}
        shapes = {name: tensor.shape for name, tensor in given.items()}
        with pytest.raises(DataDependentOutputException):
            given["fired"].max().item()  # what reads a number back is noticed
        with pytest.raises(DynamicOutputShapeException):
            given["active"].nonzero()  # and so is a shape that depends on numbers
        for site in range(3):
            run(given, site)
    assert all(isinstance(tensor, FakeTensor) for tensor in given.values())
    assert {name: tensor.shape for name, tensor in given.items()} == shapes
    assert (shapes["board"], shapes["store"]) == ((16, 20), (16, 64))


def test_without_triton_the_tap_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda: False)
    given, expected = operands(), operands()
    kernels.tap_cuda(**given, site=0)
    run(expected)
    torch.testing.assert_close(given["board"], expected["board"], equal_nan=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden": torch.zeros(3, 31)}, r"expected hidden, residual \[n, 32\]"),
        ({"hidden": torch.zeros(10, 32, dtype=torch.float64)}, "hidden is torch.float64"),
        ({"board": torch.zeros(16, 20, dtype=torch.float16)}, "board and weight must be float32"),
        ({"store": torch.zeros(16, 128)[:, :64]}, "pass whole buffers"),
        ({"site": 3}, "site 3 of 3"),
    ],
)
def test_operands_that_the_kernels_would_misread_are_refused(
    change: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "available", lambda: True)
    with pytest.raises(ValueError, match=says):
        kernels.tap_cuda(**operands() | {"site": 0} | change)


@needs_triton
def test_kernels_equal_the_reference_in_tritons_interpreter() -> None:
    """The tests of interpreted.py pass, none skipped, in a process in which Triton interprets."""
    command = [sys.executable, "-m", "pytest", "-rs", str(Path(__file__).parents[1] / "support/taps/interpreted.py")]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert ran.returncode == 0 and "skipped" not in ran.stdout, ran.stdout[-4000:] + ran.stderr[-2000:]


COMPILE = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from actscope.taps import triton_tap

def compiled(kernel, pointers, constants):
    names = kernel.arg_names
    kinds = {n: "*" + pointers[n] if n in pointers else "constexpr" if n in constants else "i32" for n in names}
    source = ASTSource(kernel, kinds, {(names.index(n),): value for n, value in constants.items()})
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]

stream = {"hidden": "bf16", "residual": "bf16"}
how = {"D": 4096, "HAS_RESIDUAL": True, "SUM": tl.bfloat16}
tables = dict.fromkeys(("board", "weight", "bias", "jump"), "fp32") | dict.fromkeys(("activation", "columns"), "i64")
score = {"K": 64, "BLOCK_N": 16, "BLOCK_K": 16, "BLOCK_D": 128}
copy = {"STORE": tl.bfloat16, "BLOCK_N": 4, "BLOCK_D": 1024}
scores = compiled(triton_tap.score_rows, stream | tables | {"active": "i32"}, how | score)
compiled(triton_tap.copy_rows, stream | {"store": "bf16", "keep": "i32", "wanted": "i32"}, how | copy)
count = compiled(triton_tap.count_pass, {"fired": "i64"}, {})
assert "mma" not in scores, "float32 products must not go through TF32"
assert "sys.release.add" in count or "release.sys" in count, count
"""


@needs_triton
def test_kernels_compile_for_an_h100(tmp_path: Path) -> None:
    """Compiled for sm_90, without a GPU: products are not TF32's, and the count is released to the whole system."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]

"""The custom ops against their numpy reference, and under torch.compile."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actscope.probes import ACTIVATIONS, score
from actscope.taps import ops

WIDTH, D = 6, 32


def operands(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    names = list(ACTIVATIONS)
    return {
        "hidden": torch.randn(2, 5, D, dtype=dtype),
        "weight": torch.randn(D, len(names)),
        "bias": torch.randn(len(names)),
        "jump": torch.rand(len(names)),
        "activation": torch.tensor([ACTIVATIONS[name] for name in names]),
        "columns": torch.tensor([4, 0, 2, 5]),
    }


def run(board: torch.Tensor, t: dict[str, torch.Tensor]) -> None:
    ops.score(t["hidden"], board, t["weight"], t["bias"], t["jump"], t["activation"], t["columns"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_equal_the_numpy_reference_for_every_activation(dtype: torch.dtype) -> None:
    t, board = operands(dtype), torch.full((16, WIDTH + 1), torch.nan)
    run(board, t)
    rows = t["hidden"].reshape(-1, D).float().numpy()
    expected = score(rows, t["weight"].numpy(), t["bias"].numpy(), list(ACTIVATIONS), t["jump"].numpy())
    np.testing.assert_allclose(board[:10][:, t["columns"]].numpy(), expected, rtol=1e-5, atol=1e-5)


def test_other_columns_and_later_rows_are_left_alone() -> None:
    t, board = operands(), torch.full((16, WIDTH + 1), 7.0)
    run(board, t)
    assert (board[:10, [1, 3, 6]] == 7).all()
    assert (board[10:] == 7).all()


def test_more_rows_than_the_board_holds_are_not_written_past_its_end() -> None:
    t, board = operands(), torch.zeros(3, WIDTH + 1)
    run(board, t)
    assert board.shape == (3, WIDTH + 1)


def test_both_ops_survive_torch_compile_and_write_in_place() -> None:
    """Compiled, the boards are filled as in eager mode: neither op is removed as dead code, and no copy is filled instead."""
    t = operands()
    eager_board, board = torch.zeros(16, WIDTH + 1), torch.zeros(16, WIDTH + 1)
    store = torch.zeros(2, 16, D)

    def model(x: torch.Tensor, board: torch.Tensor, store: torch.Tensor) -> torch.Tensor:
        hidden = x * 1.0
        ops.score(hidden, board, t["weight"], t["bias"], t["jump"], t["activation"], t["columns"])
        ops.keep(hidden, store, 1)
        return hidden + 1

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(t["hidden"], board, store)
    run(eager_board, t)
    torch.testing.assert_close(board, eager_board)
    torch.testing.assert_close(store[1, :10], t["hidden"].reshape(-1, D))
    assert (store[0] == 0).all()


def test_a_score_that_is_not_a_number_is_distinguished_from_one_that_was_not_computed() -> None:
    """NaN stands for "not computed" on the board; NaN rows come out as infinity."""
    t, board = operands(), torch.full((16, WIDTH + 1), torch.nan)
    t["hidden"][0, 1] = torch.nan
    run(board, t)
    assert board[1, t["columns"]].isinf().all()
    assert not board[:10][:, t["columns"]].isnan().any()

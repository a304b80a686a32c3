"""The lines of `actscope watch`."""

from __future__ import annotations

import numpy as np
from typer.testing import CliRunner

from actscope.cli.app import app
from actscope.cli.common.following import as_compact
from actscope.errors import SettingsError
from actscope.frames import ROW_META
from actscope.ring.host import StepRecord

NAN = float("nan")


def compact(rows: list[list[float]], **columns: int) -> str | None:
    values = np.array(rows, np.float32)
    return as_compact(StepRecord(7, 0, 1, (), np.zeros(len(values), ROW_META), values), columns)


def test_a_compact_line_is_of_the_rows_with_scores_other_than_zero() -> None:
    """As the older sidecar: rows that are all 0 are not in the batch; every score of the others is in the mean."""
    assert compact([[0, 0, 9], [1, 0, 9], [2, 4, 9]], a=0, b=1) == "[7] Batch: 2 | Avg Score: 1.7500"


def test_a_step_without_such_rows_has_no_line() -> None:
    """No probe, no rows, only zeros, or nothing computed."""
    assert compact([[1, 2]]) is None
    assert compact([[0, NAN], [0, 0]], a=0, b=1) is None
    assert as_compact(StepRecord(1, 0, 1, (), np.zeros(0, ROW_META), np.zeros((0, 2), np.float32)), {"a": 0}) is None


def test_a_score_that_was_not_computed_is_not_in_the_mean() -> None:
    assert compact([[0.5, NAN]], a=0, b=1) == "[7] Batch: 1 | Avg Score: 0.5000"


def test_compact_and_json_exclude_each_other() -> None:
    done = CliRunner().invoke(app, ["watch", "--compact", "--json"])
    assert isinstance(done.exception, SettingsError) and "choose one" in str(done.exception)

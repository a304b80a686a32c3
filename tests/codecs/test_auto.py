"""`auto` takes the best ratio among the codecs that are fast enough, and says what it measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from actscope.codecs import CODECS, Encoder, decode, encoder
from actscope.codecs import auto as module
from actscope.codecs.auto import chosen


def report_of(one: Encoder) -> dict[str, Any]:
    """The report of an encoder; what a value is depends on its name."""
    return dict(one.report())


Rows = Callable[..., np.ndarray]


def test_without_a_bound_nothing_is_lost(activations: Rows) -> None:
    one = encoder("auto")
    for seed in range(3):
        rows = activations(600, 128, "bfloat16", seed)
        encoded = one.encode(rows, "bfloat16")
        assert encoded.row_errors is None
        assert (
            decode(encoded.codec, encoded.payload, rows.shape[0], rows.shape[1], "bfloat16").tobytes() == rows.tobytes()
        )
    report = report_of(one)
    assert report["blocks"] == 3 and report["chosen"] in report["measured"]
    assert set(report["measured"]) == {"none", "lz4", "zstd", "shuffle_zstd", "lossless"}


def test_with_a_bound_the_error_bounded_codec_is_a_candidate(
    monkeypatch: pytest.MonkeyPatch, activations: Rows
) -> None:
    monkeypatch.setattr(module, "FLOOR_GBPS", 0.0)
    one = encoder("auto:1e-2")
    rows = activations(600, 128)
    encoded = one.encode(rows, "float32")
    assert encoded.codec == CODECS["error_bounded"] and one.report()["chosen"] == "error_bounded:0.01"
    assert encoded.row_errors is not None and encoded.row_errors.max() <= 1e-2


def test_a_floor_that_nothing_reaches_leaves_rows_alone(monkeypatch: pytest.MonkeyPatch, activations: Rows) -> None:
    monkeypatch.setattr(module, "FLOOR_GBPS", 1e9)
    assert encoder("auto").encode(activations(600, 128), "float32").codec == CODECS["none"]


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ({"none": (1.0, 100), "zstd": (1.3, 0.5), "lossless": (1.5, 0.9)}, "lossless"),
        ({"none": (1.0, 100), "zstd": (1.3, 0.5), "lossless": (1.5, 0.1)}, "zstd"),
        ({"none": (1.0, 100), "zstd": (0.99, 0.5)}, "none"),
        ({"none": (1.0, 0.1), "zstd": (1.3, 0.1)}, "none"),
    ],
)
def test_the_best_ratio_among_the_fast_enough_is_chosen(
    measured: dict[str, tuple[float, float]], expected: str
) -> None:
    assert chosen({name: {"ratio": ratio, "gbps": gbps} for name, (ratio, gbps) in measured.items()}) == expected


def test_candidates_are_measured_seldom(monkeypatch: pytest.MonkeyPatch, activations: Rows) -> None:
    monkeypatch.setattr(module, "REMEASURE_BLOCKS", 3)
    one, seen = encoder("auto"), []
    for seed in range(8):
        one.encode(activations(1024, 128, seed=seed), "float32")
        seen.append(one.report()["measured_at_block"])
    assert seen == [0, 0, 0, 3, 3, 3, 6, 6]


def test_a_block_too_small_to_judge_by_is_measured_again(activations: Rows) -> None:
    one = encoder("auto")
    one.encode(activations(2, 16), "float32")
    one.encode(activations(3000, 128), "float32")
    assert one.report()["measured_at_block"] == 1


def test_an_empty_block_is_no_reason_to_choose() -> None:
    one = encoder("auto")
    encoded = one.encode(np.empty((0, 16), np.float32), "float32")
    assert decode(encoded.codec, encoded.payload, 0, 16, "float32").shape == (0, 16)
    assert one.report()["measured_at_block"] == -1

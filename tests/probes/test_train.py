"""Fitting: a planted direction is found, noise is not, and no text is on both sides of the split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actscope.errors import ProbeError
from actscope.probes.labels import LabelledText, read_labelled
from actscope.probes.train import CHOOSE, FIT, Examples, Fit, ShrunkCovariance, fit, to_probe


def planted(strength: float, n: int = 3000, d: int = 24) -> Examples:
    rng = np.random.default_rng(1)
    labels = rng.random(n) < 0.3
    rows = rng.normal(size=(n, d)).astype(np.float32) * 5 + 2
    rows[:, 3] += strength * labels
    return Examples(rows, labels, np.arange(n) // 10)


def fitted(examples: Examples) -> Fit:
    return fit(examples, ShrunkCovariance.of(examples.rows, examples.texts))


def test_a_planted_direction_is_found_and_the_shuffled_control_is_not() -> None:
    result = fitted(planted(40.0))
    assert result.auroc > 0.99
    assert result.control is not None
    assert abs(result.control - 0.5) < 0.15
    assert result.fpr < 0.05
    assert int(np.abs(result.weight).argmax()) == 3


def test_without_signal_the_held_out_auroc_is_chance() -> None:
    assert abs(fitted(planted(0.0)).auroc - 0.5) < 0.1


def test_the_three_parts_share_no_text_and_leave_none_out() -> None:
    examples = planted(1.0)
    parts = [set(examples.part(*bounds).texts.tolist()) for bounds in ((0, FIT), (FIT, CHOOSE), (CHOOSE, 1))]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(set(examples.texts.tolist()))


def test_a_fit_becomes_a_probe_whose_test_vectors_hold() -> None:
    probe = to_probe(fitted(planted(40.0)), label="planted", site="layers.0.resid_post", model="m", revision="r")
    probe.verify()
    assert len(probe.test_scores) == 4


def test_too_few_examples_are_an_error_that_counts_them() -> None:
    few = planted(1.0)
    with pytest.raises(ProbeError, match="positive tokens"):
        fitted(Examples(few.rows, np.zeros(len(few.labels), bool), few.texts))


def test_a_token_is_labelled_when_it_touches_a_span() -> None:
    text = LabelledText("a wolf ran", {"danger": ((2, 6),)})
    offsets = [(0, 0), (0, 1), (1, 6), (6, 10)]
    assert text.token_labels("danger", offsets).tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    "line", ['{"text": 3}', '{"text": "a"}', '{"text": "a", "spans": {"x": [[0, 2]]}}', '{"text": "a", "labels": {}}']
)
def test_a_bad_line_is_an_error_with_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text('{"text": "fine", "label": {"x": true}}\n' + line + "\n")
    with pytest.raises(ProbeError, match="line 2"):
        list(read_labelled(path))
